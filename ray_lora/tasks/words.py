"""Words of a text and the pieces that a tokenizer makes of them, also where a text is read in windows that overlap.

    pieces_of(["Ada", "lives"], [(0, 0), (0, 2), (2, 3), (4, 9), (0, 0)], [1, 0, 0, 0, 1], last=False)    # [1, 3]

It knows texts, places and pieces, no labels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from ray_lora.errors import DataError
from ray_lora.tasks.rows import is_text, say_text
from ray_lora.tasks.task import Features


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


def pieces_of(
    words: Sequence[str], offsets: Sequence[tuple[int, int]], special: Sequence[int], last: bool
) -> list[int | None]:
    """The first (or last) piece of each of the words that stand in a text with a blank between them.

    A piece is of the word that holds its last letter: some tokenizers count the blank before a word as its piece's.
    """
    starts, at = [], 0
    for word in words:
        starts.append(at)
        at += len(word) + 1
    found: list[int | None] = [None] * len(words)
    for piece, ((begin, end), skipped) in enumerate(zip(offsets, special, strict=True)):
        if skipped or end <= begin:
            continue
        number = bisect_right(starts, end - 1) - 1
        if end - 1 < starts[number] + len(words[number]) and (last or found[number] is None):
            found[number] = piece
    return found


def pieces_in(words: Sequence[str], windows: Sequence[Features], last: bool) -> list[tuple[int, int] | None]:
    """(window, its piece) of each word in a text that is read in windows, where the window that owns it has it."""
    found: list[tuple[int, int] | None] = [None] * len(words)
    for number, (window, (begin, end)) in enumerate(zip(windows, owned(windows), strict=True)):
        for word, piece in enumerate(pieces_of(words, window["offsets"], window["special"], last)):
            if piece is not None and begin <= window["offsets"][piece][0] < end:
                found[word] = number, piece
    return found


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
