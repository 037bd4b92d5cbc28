"""Where a text is cut: what the options ask for, and what the base takes.

length = Length.of(max_length, tokenizer)       # RecipeError: the base has fewer positions
length.longest                                  # tokens
length.mark(features, encoded)                  # those that were cut say so
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_lora.errors import RecipeError
from ray_lora.tasks.task import Features

LENGTH = 128  # tokens, where nobody says more; gives way to a base of fewer positions
_NO_LIMIT = 10**9  # tokens: what tokenizers count with ends soon after


@dataclass(frozen=True)
class Length:
    """Tokens of the longest row, and what is said of one that is cut."""

    longest: int
    why: str

    @classmethod
    def of(cls, asked: int | None, tokenizer: Any, default: int = LENGTH) -> Length:
        """The length asked for; None for as many tokens as the base takes.

        Args:
            default: what is asked for where nobody says more, which gives way to a base of fewer positions.

        Raises:
            RecipeError: the base has fewer positions, or nothing of a text would be read.
        """
        positions = getattr(tokenizer, "positions", None)
        if asked is not None and positions is not None and asked > positions and asked != default:
            raise RecipeError(
                f"task.max_length is {asked}, the base has {positions} positions; set it to {positions} or less"
            )
        special = tokenizer.num_special_tokens_to_add() if hasattr(tokenizer, "num_special_tokens_to_add") else 0
        if asked is not None and asked <= special:
            raise RecipeError(
                f"task.max_length {asked} leaves no token to a text beside {special} special ones of the base; set it "
                f"to {special + 1} or more"
            )
        most = _NO_LIMIT if positions is None else positions
        longest = min(asked or getattr(tokenizer, "model_max_length", None) or most, most)
        whose = "task.max_length, " if asked == longest else "what the base takes, "
        return cls(longest, f"longer than {whose}{longest} tokens,")

    def mark(self, features: Sequence[Features], encoded: Any) -> None:
        """Say of the rows that were cut why they were, in `cut`.

        Args:
            encoded: what the tokenizer gave for these rows, in order.
        """
        whole = getattr(encoded, "encodings", None)  # of tokenizers in Rust, which keep what they cut off
        for row, feature in enumerate(features):
            if len(feature["input_ids"]) >= self.longest and (whole is None or whole[row].overflowing):
                feature["cut"] = self.why
