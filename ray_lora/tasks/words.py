"""Words of a text and the pieces that a tokenizer makes of them, also where a text is read in windows that overlap.

    places = places_of(["Ada", "lives"], "Ada lives")                                              # [(0, 3), (4, 9)]
    pieces_of(places, [(0, 0), (0, 2), (2, 3), (4, 9), (0, 0)], [1, 0, 0, 0, 1], last=False)       # [1, 3]

It knows texts, places and pieces, no labels.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from ray_lora.errors import DataError
from ray_lora.tasks.rows import is_text, say_text
from ray_lora.tasks.task import Features

UNSPACED = (  # letters of languages that put no blanks between words: Thai, Lao, Burmese, Khmer, kana and Chinese
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff]"
)
_UNSPACED = re.compile(UNSPACED)


def listed(value: Any) -> list[Any] | None:
    """A list of words or labels, also from one string with blanks between them; None for anything else."""
    return value.split() if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else None


def text_of(tokens: Any) -> str:
    """The text that is read: as it is, or words with a blank between them; DataError when they are no words."""
    if isinstance(tokens, str) and is_text(tokens):
        return tokens
    words = listed(tokens)
    if isinstance(tokens, str) or words is None or not words or not all(map(is_text, words)):
        raise DataError(say_text(tokens) + " or a list of such words")
    return " ".join(words)


def is_written_list(value: Any, of_words: bool = False) -> bool:
    """Whether a text is what Python or NumPy writes of a list, as in a table that pandas saved: "['a', 'b']", "[0 1]".

    Args:
        of_words: only where they stand in quotes; a text may begin and end with brackets of its own.
    """
    text = value.strip() if isinstance(value, str) else ""
    if len(text) < 2 or text[0] != "[" or text[-1] != "]":
        return False
    inner = text[1:-1]
    if inner[:1] in ("'", '"') and inner[-1:] in ("'", '"'):
        return True
    return not of_words and (inner.isdigit() or not inner.isalnum()) and not set(inner) & {"[", "]"}


def places_of(words: Sequence[str], text: str) -> list[tuple[int, int]]:
    """(first character, one behind the last) of each word in the text that they make, whatever blanks are between."""
    found, at = [], 0
    for word in words:
        begin = text.index(word, at)
        at = begin + len(word)
        found.append((begin, at))
    return found


def words_of(numbers: Sequence[int | None], offsets: Sequence[tuple[int, int]], text: str) -> list[int | None]:
    """The number of each piece's word. What a tokenizer takes for one between blanks may be a whole sentence, in a
    language that writes none: there each character, or a piece of several, is a word.

    Args:
        numbers: the tokenizer's.
    """
    return [
        number if number is None or not _UNSPACED.search(text, begin, end) else -1 - begin
        for number, (begin, end) in zip(numbers, offsets, strict=True)
    ]


def pieces_of(
    places: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], special: Sequence[int], last: bool
) -> list[int | None]:
    """The first (or last) piece of each of the words that stand in a text at these places.

    A piece is of the word that holds its last letter: some tokenizers count the blank before a word as its piece's.
    """
    starts = [begin for begin, _ in places]
    found: list[int | None] = [None] * len(places)
    for piece, ((begin, end), skipped) in enumerate(zip(offsets, special, strict=True)):
        if skipped or end <= begin:
            continue
        number = bisect_right(starts, end - 1) - 1
        if number >= 0 and end - 1 < places[number][1] and (last or found[number] is None):
            found[number] = piece
    return found


def pieces_in(words: Sequence[str], windows: Sequence[Features], last: bool) -> list[tuple[int, int] | None]:
    """(window, its piece) of each word in a text that is read in windows, where the window that owns it has it."""
    found: list[tuple[int, int] | None] = [None] * len(words)
    places = places_of(words, windows[0]["text"])
    for number, (window, (begin, end)) in enumerate(zip(windows, owned(windows), strict=True)):
        for word, piece in enumerate(pieces_of(places, window["offsets"], window["special"], last)):
            if piece is not None and begin <= window["offsets"][piece][0] < end:
                found[word] = number, piece
    return found


def in_order(windows: Sequence[Features]) -> list[Features]:
    """Windows from a text's beginning to its end; a tokenizer that cuts from the left begins with the last one."""
    return sorted(windows, key=lambda window: _read(window)[0]) if len(windows) > 1 else list(windows)


def owned(windows: Sequence[Features]) -> list[tuple[int, float]]:
    """The characters of a text that each window answers for, (first, one behind the last): all of them, each once, cut
    in the middle of what two windows both read."""
    cuts = []
    for one, other in pairwise(windows):
        (_, end), places = _read(one)[-1], _read(other)
        both = [begin for begin, _ in places if begin < end]
        cuts.append(both[len(both) // 2] if both else places[0][0])
    return list(zip([0, *cuts], [*cuts, float("inf")], strict=True))


def _read(window: Features) -> list[tuple[int, int]]:
    """Places of a window's own tokens."""
    return [place for place, skipped in zip(window["offsets"], window["special"], strict=True) if not skipped]


def numbered(windows: Sequence[Features]) -> list[int]:
    """The number of each window's first piece, where all windows' pieces are counted one after the other."""
    return [0, *accumulate(len(window["input_ids"]) for window in windows)][:-1]
