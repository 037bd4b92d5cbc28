"""Losses of tokens that follow others in a row: cross entropy, as in transformers' own losses, or another, row by row.

    sums, counts = of_rows(outputs, [(3, [17, 2]), (5, [9, 2])])    # row 0: 17 after its token 3, 2 after its token 4
    logits = logits_of(outputs, rows, columns)                      # of some tokens

It knows numbers, no texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", slice], "Tensor"]  # logits of some terms, [terms, vocabulary], and which -> [terms]


def of_rows(outputs: Any, told: Sequence[tuple[int, Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Sum of losses and number of terms of each row, both [rows].

    Args:
        outputs: logits of every token, or where they are asked for (`engine.token_states`).
        told: of each row the column of the token that its first target follows, and its targets.
    """
    import torch
    import torch.nn.functional as F

    targets = torch.tensor([target for _, mine in told for target in mine])

    def loss(logits: Tensor, part: slice) -> Tensor:
        return F.cross_entropy(logits, targets[part].to(logits.device), reduction="none")

    return summed(outputs, [(first, len(mine)) for first, mine in told], loss)


def summed(outputs: Any, told: Sequence[tuple[int, int]], loss: Loss) -> tuple[Tensor, Tensor]:
    """Sum of a loss and number of terms of each row, both [rows]; a few tokens' logits at a time where outputs can.

    Args:
        told: of each row the column of its first term, and how many there are one after the other.
        loss: of logits in float32 at least; it is asked for the terms of all rows from the first on.
    """
    import torch

    of_row, columns = places(told)
    few = getattr(outputs, "losses", None)  # of outputs that have logits only where they are asked for
    if few is None:
        logits = outputs.logits[of_row, columns]
        losses = loss(logits.to(torch.promote_types(logits.dtype, torch.float32)), slice(0, len(of_row)))
    else:
        losses = few(of_row, columns, loss)
    of_row = of_row.to(losses.device)
    sums = losses.new_zeros(len(told)).index_add(0, of_row, losses)
    return sums, torch.bincount(of_row, minlength=len(told)).to(sums)


def places(told: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Row and column of each term, both [terms]; `told` as in `summed`."""
    import torch

    rows = [row for row, (_, count) in enumerate(told) for _ in range(count)]
    columns = [first + at for first, count in told for at in range(count)]
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)


def logits_of(outputs: Any, rows: Tensor, columns: Tensor) -> Tensor:
    """Logits of the tokens at rows and columns, [terms, vocabulary]."""
    at = getattr(outputs, "logits_at", None)
    found: Tensor = outputs.logits[rows, columns] if at is None else at(rows, columns)
    return found
