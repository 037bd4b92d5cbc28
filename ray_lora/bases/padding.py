"""Rows of token ids as one tensor, padded on the side that the tokenizer pads.

pad([[5, 6, 7], [8]], tokenizer)["input_ids"]     # [[5, 6, 7], [8, 0, 0]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def pad(ids: Sequence[Sequence[int]], tokenizer: Any) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, both [rows, longest] int64."""
    import torch

    lengths = torch.tensor([len(row) for row in ids])
    longest = int(lengths.max())
    left = getattr(tokenizer, "padding_side", "right") == "left"
    column = torch.arange(longest)[None, :]
    mask = column >= longest - lengths[:, None] if left else column < lengths[:, None]
    padded = torch.full((len(ids), longest), getattr(tokenizer, "pad_token_id", None) or 0)
    padded[mask] = torch.tensor([token for row in ids for token in row], dtype=torch.int64)
    return {"input_ids": padded, "attention_mask": mask.long()}
