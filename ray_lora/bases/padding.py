"""Rows of token ids as one tensor, padded on the side that the tokenizer pads.

pad([[5, 6, 7], [8]], tokenizer)["input_ids"]     # [[5, 6, 7], [8, 0, 0]]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def pad(
    ids: Sequence[Sequence[int]], tokenizer: Any, types: Sequence[Sequence[int] | None] | None = None
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, both [rows, longest] int64.

    Args:
        types: adds `token_type_ids`: which of two texts each token is of; all 0 where a row has none.
    """
    import torch

    lengths = torch.tensor([len(row) for row in ids])
    longest = int(lengths.max())
    left = getattr(tokenizer, "padding_side", "right") == "left"
    column = torch.arange(longest)[None, :]
    mask = column >= longest - lengths[:, None] if left else column < lengths[:, None]
    padded = torch.full((len(ids), longest), getattr(tokenizer, "pad_token_id", None) or 0)
    padded[mask] = torch.tensor([token for row in ids for token in row], dtype=torch.int64)
    batch = {"input_ids": padded, "attention_mask": mask.long()}
    if types is not None:
        batch["token_type_ids"] = torch.zeros_like(padded)
        told = [[0] * len(row) if of_row is None else of_row for row, of_row in zip(ids, types, strict=True)]
        batch["token_type_ids"][mask] = torch.tensor([kind for row in told for kind in row], dtype=torch.int64)
    return batch
