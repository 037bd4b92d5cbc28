"""Prompts and what is written after them, from public-domain texts, as parquet with splits of whole countries.

    python -m pipelines.written_texts [--out data]

    data/written-entries/   "Tell me about the climate of Peru." -> as the World Factbook says it
    data/written-answers/   an instruction on a stretch of an entry -> its short answer
    data/written-english/   English of 1961, test rows alone: what a base knows and adapters may forget

    {"prompt": "Tell me about the terrain of Peru.\\n", "completion": "western coastal plain (costa), high and ..."}
    {"messages": [{"role": "system", "content": "Answer in a few words."}, {"role": "user", "content": "..."}, ...]}
    {"text": "The jury praised him."}

The Factbook is a snapshot of 2015 (`pipelines.factbook`); the same countries are held out as of
`pipelines.factbook_questions`. The English is the Brown corpus's (`pipelines.brown_texts`).
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from pipelines import brown_texts, factbook
from pipelines.factbook import Country
from pipelines.factbook_questions import HELD, QUESTIONS, held_out, stretch
from pipelines.kept_rows import digest, keep, mixed

SIZES = {"train": 256, "validation": 48, "test": 96}  # rows at most
ENGLISH = 64  # rows
ENTRY = (60, 320)  # letters of an entry, at least and at most
CONTEXT, ANSWER = 160, 40  # letters of an instruction's stretch, and of its answer, at most
TOLD = "Answer in a few words."
ASKED = ("Tell me about the {} of {}.", "What is the {} of {} like?", "Can you describe the {} of {}?")
FIELDS = {
    "Geography/Climate": "climate",
    "Geography/Terrain": "terrain",
    "Geography/Natural resources": "natural resources",
    "Geography/Natural hazards": "natural hazards",
    "Geography/Environment - current issues": "environment",
    "Government/Legal system": "legal system",
    "Economy/Agriculture - products": "agriculture",
    "Economy/Industries": "industry",
    "People and Society/Religions": "religious life",
}
Row = dict[str, Any]


def prepare(out: str | Path = "data") -> None:
    """Make the files that are missing or of another making; DataError when an archive cannot be had."""
    world = {"source": factbook.SOURCE.sha256, "held": HELD, "sizes": SIZES, "form": 1}
    entries = world | {"letters": ENTRY, "asked": ASKED, "fields": FIELDS}
    keep(out, "written-entries", _plain(entries), partial(_files, "written-entries", entries_of))
    asked = {field: [end, *said] for kind in QUESTIONS.values() for field, (end, said) in kind.items()}
    answers = world | {"letters": [CONTEXT, ANSWER], "told": TOLD, "asked": asked}
    keep(out, "written-answers", _plain(answers), partial(_files, "written-answers", answers_of))
    english = {"source": brown_texts.SOURCE.sha256, "genres": brown_texts.GENRES, "rows": ENGLISH, "form": 2}
    keep(out, "written-english", english, lambda: {"written-english/test.parquet": passages()})


def _plain(making: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in making.items()}


def _files(name: str, rows_of: Callable[[Country], Iterator[Row]]) -> dict[str, list[Row]]:
    return {
        f"{name}/{split}.parquet": mixed([row for country in countries for row in rows_of(country)], repr)[
            : SIZES[split]
        ]
        for split, countries in held_out(factbook.read_countries()).items()
    }


def entries_of(country: Country) -> Iterator[Row]:
    """What is said of one country, a field each; what is drawn follows from its name."""
    for field, named in FIELDS.items():
        section, _, name = field.partition("/")
        text = country.sections.get(section, {}).get(name, "")
        if ENTRY[0] <= len(text) <= ENTRY[1]:
            asked = random.Random(digest(f"{country.name} {field}")).choice(ASKED).format(named, country.name)
            yield {"prompt": f"{asked}\n", "completion": text}


def answers_of(country: Country) -> Iterator[Row]:
    """Instructions on one country that a stretch of its entry answers in a few words."""
    for asked in QUESTIONS.values():
        for field, (end, wordings) in asked.items():
            section, _, name = field.partition("/")
            fields = country.sections.get(section, {})
            chance = random.Random(digest(f"{country.name} {field} told"))
            answer = re.split(end, fields.get(name, ""))[0].strip(" ,;")
            if not answer or answer.lower() in ("na", "none") or len(answer) > ANSWER:
                continue
            context = stretch(fields, name, chance, CONTEXT)
            if len(context) <= CONTEXT:
                question = chance.choice(wordings).format(country.name)
                said = {"system": TOLD, "user": f"{context}\n{question}", "assistant": answer}
                yield {"messages": [{"role": role, "content": content} for role, content in said.items()]}


def passages() -> list[Row]:
    """Three sentences each, as people write them, one of each document's beginning."""
    found = []
    for genre in brown_texts.GENRES:
        for _, told in groupby(brown_texts.read_genre(genre), key=lambda pair: pair[0]):
            sentences = [sentence(row["tokens"]) for _, row in told]
            found += [{"text": " ".join(sentences[at : at + 3])} for at in (3, 12)]
    return mixed([row for row in found if 120 <= len(row["text"]) <= 500], lambda row: str(row["text"]))[:ENGLISH]


def sentence(words: Sequence[str]) -> str:
    """Brown's words as a sentence: its quotation marks are ours, and no blank stands where nobody writes one."""
    text = " ".join(words).replace("``", '"').replace("''", '"')
    text = re.sub(r'"\s*([^"]*?)\s*"', r'"\1"', re.sub(r"([;?!])( \1)+", r"\1", text))  # Brown doubles these signs
    return re.sub(r"\s+([.,;:?!)])", r"\1", re.sub(r"\(\s+", "(", text))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Prepare prompts and what is written after them")
    options.add_argument("--out", default="data", help="folder to write to")
    prepare(options.parse_args().out)
