"""The items that a base knows, by number: what a SASRec's folder has as its processor.

    items = Items((12, 7, 31), positions=50)
    items.number(7)         # 2: the numbers begin at 1, and 0 is padding
    items.number("7")       # None: a text is no whole number

It knows ids, not what they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Items:
    """A vocabulary.

    Attributes:
        ids: in the order of the base's outputs; positions: items of a history that the base reads.
    """

    ids: tuple[int, ...] | tuple[str, ...]
    positions: int
    pad_token_id: int = 0
    padding_side: str = "right"

    @property
    def kind(self) -> str:
        """What its ids are, for people."""
        return "texts" if isinstance(self.ids[0], str) else "whole numbers"

    def number(self, item: Any) -> int | None:
        """An item's number, from 1; None for what is no item of this vocabulary."""
        return self._numbers.get(item) if type(item) is type(self.ids[0]) else None

    def unknown(self, items: Sequence[Any]) -> list[Any]:
        """What of these is not in the vocabulary, each once, in their order."""
        found: list[Any] = []
        for item in items:
            if self.number(item) is None and item not in found:
                found.append(item)
        return found

    @cached_property
    def _numbers(self) -> dict[Any, int]:
        return {item: number for number, item in enumerate(self.ids, start=1)}

    def __getstate__(self) -> dict[str, Any]:
        """Without what was computed on the way, so that equal vocabularies pickle alike."""
        return {name: value for name, value in self.__dict__.items() if name != "_numbers"}
