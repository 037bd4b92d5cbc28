"""Rows of different lengths without padding: their tokens one after the other, and back.

    ragged = Ragged.of([3, 5], torch.float32, device)
    joined = ragged.join(padded)       # [rows, width, hidden] -> [tokens, hidden]
    padded = ragged.spread(joined)     # and back; what stands behind a row's end means nothing

Most of a pass treats each token for itself, so it need not see padding. It knows lengths, not models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Tokens and width are filled up to a multiple of this: products of few different shapes, whose kernels are made once,
# and rows over which a bfloat16 softmax is fast.
_MULTIPLE = 16


@dataclass(frozen=True)
class Ragged:
    """The tokens of some rows.

    Attributes:
        rows, width: of the padded form, [rows, width, ...].
        length: of every row, where all are of one; the joined form is then [rows * length, ...].
        firsts: where in the joined form each row begins, [rows].
        mask: what attention adds to scores, [rows, width]: 0, and -inf behind a row's end; None where nothing is.
        to_padded: the token at each place of the padded form, [rows, width]; the row's first behind its end.
        to_joined: the place of each token in the flattened padded form, [tokens]; a few at the end mean nothing.
    """

    rows: int
    width: int
    length: int | None
    firsts: Tensor
    mask: Tensor | None
    to_padded: Tensor
    to_joined: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> Ragged:
        """Rows of these lengths, each at least 1; `dtype` is the mask's."""
        width, tokens = _fill(max(lengths)), sum(lengths)
        length = lengths[0] if min(lengths) == max(lengths) else None
        ends = torch.tensor(lengths, device=device)
        firsts, column = ends.cumsum(0) - ends, torch.arange(width, device=device)
        behind = column >= ends[:, None]
        mask = torch.zeros(behind.shape, dtype=dtype, device=device).masked_fill_(behind, float("-inf"))
        to_padded = firsts[:, None] + column.where(~behind, 0)
        to_joined = behind.logical_not_().flatten().nonzero().squeeze(1)
        if length is None:
            to_joined = F.pad(to_joined, (0, _fill(tokens) - tokens))
        return cls(len(lengths), width, length, firsts, None if length == width else mask, to_padded, to_joined)

    @classmethod
    def single(cls, rows: int, device: torch.device) -> Ragged:
        """Rows of one token each."""
        firsts = torch.arange(rows, device=device)
        return cls(rows, 1, 1, firsts, None, firsts[:, None], firsts)

    def spread(self, joined: Tensor) -> Tensor:
        """[tokens, ...] as [rows, length, ...] where there is one length, else as [rows, width, ...]."""
        if self.length is not None:
            return joined.view(self.rows, self.length, *joined.shape[1:])
        return self.widen(joined)

    def widen(self, joined: Tensor) -> Tensor:
        """[tokens, ...] as [rows, width, ...]."""
        return joined.index_select(0, self.to_padded.flatten()).view(self.rows, self.width, *joined.shape[1:])

    def join(self, padded: Tensor) -> Tensor:
        """[rows, width or length, ...] as [tokens, ...]."""
        flat = padded.flatten(0, 1)
        return flat if padded.shape[1] == self.length else flat.index_select(0, self.to_joined)


def _fill(number: int) -> int:
    return -(-number // _MULTIPLE) * _MULTIPLE
