"""Questions on countries with answers in a text, as parquet; countries are held out.

    python -m pipelines.factbook_questions [--out data]

From the World Factbook (public domain, a snapshot of 2015; `pipelines.factbook`). A text is a stretch of a section of
one country's entry, or the whole section; an answer is a span of it, or there is none: the question's field stands
elsewhere. A seventh of the texts are longer than 384 tokens of MiniLM, a fifth of the questions have no answer.

    data/questions-people/   capitals, government, currency, religions, ...: what an adapter is trained for
    data/questions-land/     area, climate, terrain, highest points, ...: other questions, which it is compared with

    {"question": "What is the capital of France?", "context": "Capital - name: Paris. Capital - geographic ...",
     "answers": {"text": ["Paris"], "answer_start": [16]}}

Rows are SQuAD 2's: empty lists where there is no answer. Forty countries are in test files alone, twenty in validation.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import factbook
from pipelines.factbook import Country
from pipelines.kept_rows import digest, keep, mixed
from ray_lora.errors import DataError

HELD = {"test": 40, "validation": 20}  # countries
SIZES = {"train": 500, "validation": 150, "test": 240}  # rows at most
WHOLE, NOWHERE = 0.15, 0.2  # shares of texts that are a whole section, and of questions without an answer
SHORT = 450  # letters of a stretch
LONG = 4000  # letters of a whole section at most
_BEFORE = r"\s*[(;]| - |, note"  # where an answer ends: what follows says more about it
Row = dict[str, Any]

# field: (where an answer ends, wordings)
QUESTIONS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "people": {
        "Government/Capital - name": (
            _BEFORE,
            ("What is the capital of {}?", "Which city is {}'s capital?", "Name the capital of {}."),
        ),
        "Government/Government type": (
            r"\s*;",
            ("What type of government does {} have?", "How is {} governed?"),
        ),
        "Government/Independence": (
            r"\s*[(;]",
            ("When did {} become independent?", "What is the date of {}'s independence?"),
        ),
        "Government/National holiday": (r"\s*[(;]", ("What is the national holiday of {}?", "What does {} celebrate?")),
        "Government/Country name - conventional long form": (
            r"\s*;",
            ("What is the full name of {}?", "What is {} officially called?"),
        ),
        "Government/Suffrage": (r"\s*;", ("Who may vote in {}?", "At what age can people vote in {}?")),
        "People and Society/Population": (r"\s*[(;]", ("How many people live in {}?", "What is the population of {}?")),
        "People and Society/Religions": (
            r"\s*[,(;]|\s*\d",
            ("What is the main religion of {}?", "Which religion is most common in {}?"),
        ),
        "People and Society/Languages": (
            r"\s*[,(;]|\s*\d",
            ("What is the main language of {}?", "Which language do most people in {} speak?"),
        ),
        "People and Society/Median age - total": (r"\s*[(;]", ("What is the median age in {}?",)),
        "Economy/Exchange rates": (
            r"\s*\(| per ",
            ("What is the currency of {}?", "Which money is used in {}?"),
        ),
        "Economy/Unemployment rate": (r"\s*[(;]", ("How high is unemployment in {}?",)),
        "Economy/GDP (purchasing power parity)": (r"\s*[(;]", ("How large is the GDP of {}?",)),
    },
    "land": {
        "Geography/Area - total": (r"\s*[(;]", ("How large is {}?", "What is the area of {}?")),
        "Geography/Climate": (r"\s*;", ("What is the climate of {}?", "What is the weather like in {}?")),
        "Geography/Terrain": (r"\s*;", ("What is the terrain of {}?",)),
        "Geography/Location": (r"\s*;", ("Where is {}?",)),
        "Geography/Elevation extremes - highest point": (
            r"\s+-?\d[\d,]* m.*",
            ("What is the highest point of {}?", "Which mountain is the highest in {}?"),
        ),
        "Geography/Coastline": (r"\s*[(;]", ("How long is the coast of {}?",)),
        "Geography/Natural resources": (r"\s*;", ("Which natural resources does {} have?",)),
        "Energy/Electricity - production": (r"\s*[(;]", ("How much electricity does {} produce?",)),
        "Transportation/Airports": (r"\s*[(;]", ("How many airports does {} have?",)),
        "Transportation/Railways - total": (r"\s*[(;]", ("How long are the railways of {}?",)),
    },
}


def prepare(out: str | Path = "data", names: Sequence[str] = tuple(QUESTIONS)) -> None:
    """Make the files that are missing or of another making; DataError when the archive cannot be had."""
    for name in names:
        asked = {field: [end, *wordings] for field, (end, wordings) in QUESTIONS[name].items()}
        making = {"source": factbook.SOURCE.sha256, "held": HELD, "sizes": SIZES, "asked": asked,
                  "shares": [WHOLE, NOWHERE], "letters": [SHORT, LONG], "form": 1}  # fmt: skip
        keep(out, f"questions-{name}", making, partial(_files, name, factbook.read_countries))


def _files(name: str, read: Callable[[], list[Country]]) -> dict[str, list[Row]]:
    files = {}
    for split, countries in held_out(read()).items():
        rows = [row for country in countries for row in rows_of(country, QUESTIONS[name])]
        check(rows)
        files[f"questions-{name}/{split}.parquet"] = mixed(rows, _key)[: SIZES[split]]
    return files


def held_out(countries: Sequence[Country]) -> dict[str, list[Country]]:
    """Countries by split, drawn by their names."""
    drawn = mixed(list(countries), lambda country: country.name)
    test, validation = HELD["test"], HELD["test"] + HELD["validation"]
    return {"train": drawn[validation:], "validation": drawn[test:validation], "test": drawn[:test]}


def rows_of(country: Country, asked: Mapping[str, tuple[str, tuple[str, ...]]]) -> list[Row]:
    """The questions on one country that its entry answers, each once; what is drawn follows from its name."""
    rows = []
    for field, (end, wordings) in asked.items():
        section, _, name = field.partition("/")
        chance = random.Random(digest(f"{country.name} {field}"))
        text = country.sections.get(section, {}).get(name, "")
        answer = re.split(end, text)[0].strip(" ,;")
        if not answer or answer.lower() in ("na", "none") or len(answer) > 120:
            continue
        question = chance.choice(wordings).format(country.name)
        fields = country.sections[section]
        if chance.random() < NOWHERE:
            room = room_of(chance)
            context = stretch({key: value for key, value in fields.items() if key != name}, None, chance, room)
            found: Row = {"text": [], "answer_start": []}
            if answer in context:
                continue
        else:
            context = stretch(fields, name, chance, room_of(chance))
            begin = context.index(f"{name}: {text}") + len(f"{name}: ") + text.index(answer)
            found = {"text": [answer], "answer_start": [begin]}
        rows.append({"question": question, "context": context, "answers": found})
    return rows


def room_of(chance: random.Random) -> int:
    """Letters that a text may have."""
    return LONG if chance.random() < WHOLE else SHORT


def stretch(fields: Mapping[str, str], held: str | None, chance: random.Random, room: int) -> str:
    """Fields of a section one after the other: with `held` among them, as many as there is room for, in letters."""
    names = list(fields)
    first = names.index(held) if held else chance.randrange(len(names)) if names else 0
    begin = end = first
    end += 1
    while end - begin < len(names):
        grown = (begin - 1, end) if begin > 0 and (end == len(names) or chance.random() < 0.5) else (begin, end + 1)
        if len(written(fields, names[grown[0] : grown[1]])) > room:
            break
        begin, end = grown
    return written(fields, names[begin:end])


def written(fields: Mapping[str, str], names: Sequence[str]) -> str:
    """The fields as one text."""
    return " ".join(f"{name}: {fields[name]}." for name in names)


def check(rows: Sequence[Row]) -> None:
    """DataError unless every answer stands where it is said to."""
    for number, row in enumerate(rows):
        for text, begin in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            if not text or row["context"][begin : begin + len(text)] != text:
                raise DataError(f"row {number}: {text!r} does not stand at letter {begin} of its context")


def _key(row: Row) -> str:
    return f"{row['question']} {row['context']}"


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Prepare the questions")
    options.add_argument("--out", default="data", help="folder to write to")
    prepare(options.parse_args().out)
