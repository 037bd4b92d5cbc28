"""Sentences of the Factbook with **silver** labels: found by rules, not by people. Rows `{"tokens", "tags"}` in IOB2.

    {"tokens": ["Abdelaziz", "Bouteflika", "won", "in", "April", "1999"],
     "tags": ["B-person", "I-person", "O", "O", "B-date", "I-date"]}

Places (`geo-loc`) are the names of countries and capitals, from the Factbook's own fields. Persons are found by its
custom of writing surnames in CAPITALS, which are lower-cased afterwards, so that no model can read the rule off. Dates
are found by pattern. Whatever else is a person, a place or a date is not marked, so a model learns these rules, and a
score against them is a score against the rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pipelines.factbook import Country

_WORD = re.compile(r"\w+(?:[-'.]\w+)*|[^\w\s]")
_END = re.compile(r"(?<=[.;!?])\s+(?=[A-Z])")
_MONTHS = frozenset("January February March April May June July August September October November December".split())
_SURNAME = re.compile(r"[A-Z]{3,}(?:[-'][A-Z]{2,})*$|[A-Z]['][A-Z]{3,}$")
_GIVEN = re.compile(r"[A-Z][a-z]+(?:[-'][A-Za-z][a-z]*)*$")
_NO_GIVEN = frozenset(  # capitalised words before a surname that are no given names
    """The A An In On At By For From To And Or But Since After Under With When While Its Their This That As Of
    President Vice Prime Minister Deputy First King Queen Prince Princess Emperor Sultan Emir Amir Crown Pope Governor
    General Chancellor Chairman Chairwoman Premier Secretary State Ambassador Speaker Leader Army Colonel Captain Major
    Lieutenant Marshal Admiral Doctor Archbishop Sheikh Shaykh Justice Chief Party National Democratic Union Republic
    Former Acting Interim Independent Organization Front Movement Council Congress Committee Mission Force Forces
    Agreement Court United European African Islamic Communist Socialist Liberal Popular People Workers""".split()
)
_NO_SURNAME = frozenset("NATO ASEAN OPEC ECOWAS UNESCO UNSC UNMIK ICTY AIDS NGOS UNITA FRELIMO RENAMO".split())
_LONGEST = 60  # words: longer ones are lists


def read_silver(countries: Sequence[Country]) -> list[tuple[str, dict[str, list[str]]]]:
    """(country's code, row) of every sentence of a background, an executive branch or a dispute."""
    places = {tuple(_WORD.findall(name)) for country in countries for name in (country.name, country.capital)}
    found = []
    for country in countries:
        for text in _sentences(country):
            row = label(text, places)
            if 4 <= len(row["tokens"]) <= _LONGEST:
                found.append((country.code, row))
    return found


def label(text: str, places: set[tuple[str, ...]]) -> dict[str, list[str]]:
    """A sentence's words and silver labels; `places` are names, each as its words."""
    words = _WORD.findall(text)
    tags = ["O"] * len(words)
    longest = max(map(len, places), default=0)
    at = 0
    while at < len(words):
        end, kind = _date(words, at), "date"
        if end == at:
            end, kind = _person(words, at), "person"
        if end == at:
            end, kind = _place(words, at, places, longest), "geo-loc"
        for place in range(at, end):
            tags[place] = f"{'B' if place == at else 'I'}-{kind}"
        at = max(end, at + 1)
    lowered = [word.title() if tag.endswith("-person") else word for word, tag in zip(words, tags, strict=True)]
    return {"tokens": lowered, "tags": tags}


def _sentences(country: Country) -> Iterator[str]:
    for section, begins in (
        ("Introduction", "Background"),
        ("Government", "Executive branch"),
        ("Transnational Issues", "Disputes"),
    ):
        for field, text in country.sections.get(section, {}).items():
            if field.startswith(begins):
                yield from _END.split(text)


def _date(words: Sequence[str], at: int) -> int:
    """One behind the last word of a date that begins here: a day and month, a month and year, a year after "in"."""
    end = at
    if end < len(words) and re.fullmatch(r"\d{1,2}", words[end]):
        end += 1
    if end < len(words) and words[end] in _MONTHS:
        end += 1
        return end + 1 if end < len(words) and _is_year(words[end]) else end if end - at == 2 else at
    alone = _is_year(words[at]) and at > 0 and words[at - 1].lower() in ("in", "since", "until", "by", "of", "from")
    return at + 1 if alone else at


def _is_year(word: str) -> bool:
    return re.fullmatch(r"1[5-9]\d\d|20[01]\d", word) is not None


def _person(words: Sequence[str], at: int) -> int:
    """One behind the surnames in capitals that follow one to three given names which begin here."""
    end = at
    while end < min(len(words), at + 3) and _GIVEN.match(words[end]) and words[end] not in _NO_GIVEN:
        end += 1
    given = end
    while end < len(words) and _SURNAME.match(words[end]) and words[end] not in _NO_SURNAME:
        end += 1
    return end if at < given < end else at


def _place(words: Sequence[str], at: int, places: set[tuple[str, ...]], longest: int) -> int:
    """One behind the longest name that begins here."""
    most = min(longest, len(words) - at)
    return next((at + size for size in range(most, 0, -1) if tuple(words[at : at + size]) in places), at)
