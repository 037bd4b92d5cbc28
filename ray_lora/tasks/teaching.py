"""Labels of rows: which ones a block teaches, which ones all blocks do, and which rows have none of them.

    taught = teach(enumerate(["a", "b", None]))
    labels = settle([taught])                        # ("a", "b")
    list(wrong_labels(enumerate(["a", "c"]), labels))    # [(1, "label 'c' is not one of ...")]

A row may have several labels: then its number comes several times. It knows values, no tables and no tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ray_lora.errors import DataError
from ray_lora.tasks.labels import Learnt, class_word, label_index, learnt, twins

Taught = tuple[list[str], list[tuple[int, str]]]  # the labels of a block, and its rows that have none: why not
NOTHING: Taught = ([], [])
_MOST_NAMED = 10  # rows without a label in one message


def teach(values: Iterable[tuple[int, Any]]) -> Taught:
    """The labels among (row, value), and the first rows that have none."""
    words: dict[str, None] = {}
    wrong: list[tuple[int, str]] = []
    for row, value in values:
        try:
            words[class_word(value)] = None
        except DataError as error:
            wrong.append((row, str(error)))
    return list(words), wrong[:_MOST_NAMED]


def settle(learned: Iterable[Taught], least: int = 2) -> Learnt:
    """The labels of all blocks, in order; DataError when there are fewer than `least`."""
    taught = list(learned)
    labels = learnt(word for words, _ in taught for word in words)
    if len(labels) < least:
        needed = "at least two are" if least == 2 else f"at least {least} is"
        lines = [
            f"the training rows have {len(labels)} different labels {list(labels)}; {needed} needed",
            *(f"row {row + 1}: {why}" for _, wrong in taught for row, why in wrong),
        ]
        raise DataError("\n".join(lines))
    return labels


def wrong_labels(values: Iterable[tuple[int, Any]], labels: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The (row, value) whose value is none of the labels, and the first one of each label that looks like another."""
    said: dict[str, str | None] = {}  # a label, by what it looks like (a list is no key) -> what is wrong with it
    alike = twins(labels)
    for row, label in values:
        shown = repr(label)
        if shown not in said:
            try:
                word = labels[label_index(label, labels)]
                said[shown] = None
            except DataError as error:
                said[shown] = str(error)
            else:
                other = alike.pop(word, None)
                if other is not None:
                    yield (
                        row,
                        f"label {word!a} and label {other!a} differ only in blanks around them or in how "
                        "Unicode writes them; write them alike",
                    )
        why = said[shown]
        if why is not None:
            yield row, why
