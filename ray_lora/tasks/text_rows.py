"""Rows of tokens on their way into a base: how long they may be, and their tensors. Knows no labels and no answers.

What all tasks of texts share is here, so that rows of several such tasks can share a pass: rows go through one pass
only where one `collate` makes their tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ray_lora.bases.padding import pad
from ray_lora.tasks.augmented import Tokens
from ray_lora.tasks.lengths import Length
from ray_lora.tasks.task import Features
from ray_lora.transform_spec import Needs

if TYPE_CHECKING:
    from torch import Tensor


class TextRows:
    """Rows that have `input_ids` and, where they join two texts, `token_type_ids`: which of the two a token is of."""

    _tokenizer: Any
    _length: Length

    @property
    def longest(self) -> int:
        return self._length.longest

    def size(self, features: Features) -> int:
        """Tokens."""
        return len(features["input_ids"])

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """input_ids, attention_mask and, where a row has them, token_type_ids, [rows, longest]."""
        types = [row.get("token_type_ids") for row in features]
        return pad([row["input_ids"] for row in features], self._tokenizer, types if any(types) else None)

    def held(self, count: int, width: int) -> slice:
        """Where in a padded row its tokens lie."""
        left = getattr(self._tokenizer, "padding_side", "right") == "left"
        return slice(width - count, width) if left else slice(0, count)

    @property
    def augments(self) -> frozenset[Needs]:
        """Tokens may be hidden where there is one that hides them. Labels may be of tokens: none may move."""
        hides = getattr(self._tokenizer, "mask_token_id", None) is not None
        return frozenset({"tokens", "mask"} if hides else {"tokens"})

    def view(self, features: Features) -> Tokens:
        """Special tokens are fixed, but for those that stand for a word."""
        ids, told = tuple(features["input_ids"]), self._tokenizer
        words = {getattr(told, name, None) for name in ("unk_token_id", "mask_token_id")}
        special = set(getattr(told, "all_special_ids", ())) - words
        fixed = tuple(one in special for one in ids)
        return Tokens(ids, tuple(range(len(ids))), fixed, getattr(told, "mask_token_id", None), self._names)

    def _names(self, ids: Sequence[int]) -> Sequence[str]:
        names: Sequence[str] = self._tokenizer.convert_ids_to_tokens(list(ids))
        return names

    def with_view(self, features: Features, view: Tokens) -> Features:
        found = features | {"input_ids": list(view.ids)}
        if "token_type_ids" in features:
            found["token_type_ids"] = [features["token_type_ids"][place] for place in view.places]
        return found


class LongTextRows(TextRows):
    """Rows of which long ones are read in `windows`, as `inference.windows.Windowed` has it.

    Attributes:
        truths: what a row calls the list of its windows' targets, and what a window calls its own.
    """

    truths: ClassVar[tuple[str, str]]

    def windows(self, features: Features) -> Sequence[Features]:
        """The windows of a row, each with its target where the row has them; a row without windows itself."""
        if "windows" not in features:
            return (features,)
        of_row, of_window = self.truths
        windows: Sequence[Features] = features["windows"]
        if of_row not in features:
            return windows
        return [window | {of_window: truth} for window, truth in zip(windows, features[of_row], strict=True)]

    def size(self, features: Features) -> int:
        """Tokens, of a row those of its windows."""
        return sum(map(super().size, features.get("windows", [features])))
