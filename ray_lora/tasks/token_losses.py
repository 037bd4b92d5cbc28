"""The loss of tokens that follow others in a row: cross entropy, as in transformers' own losses, row by row.

    sums, counts = of_rows(outputs, [(3, [17, 2]), (5, [9, 2])])    # row 0: 17 after its token 3, 2 after its token 4

It knows numbers, no texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def of_rows(outputs: Any, told: Sequence[tuple[int, Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Sum of losses and number of terms of each row, both [rows].

    Args:
        outputs: logits of every token, or where they are asked for (`engine.token_states`).
        told: of each row the column of the token that its first target follows, and its targets.
    """
    import torch

    rows = [row for row, (_, targets) in enumerate(told) for _ in targets]
    columns = [first + at for first, targets in told for at in range(len(targets))]
    of_row = torch.tensor(rows, dtype=torch.int64)
    targets = torch.tensor([target for _, mine in told for target in mine])
    losses = _losses(outputs, of_row, torch.tensor(columns, dtype=torch.int64), targets)
    of_row = of_row.to(losses.device)
    sums = losses.new_zeros(len(told)).index_add(0, of_row, losses)
    return sums, torch.bincount(of_row, minlength=len(told)).to(sums)


def _losses(outputs: Any, rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target after the token at its row and column, [terms]."""
    import torch
    import torch.nn.functional as F

    few = getattr(outputs, "cross_entropy", None)  # of outputs that have logits only where they are asked for
    if few is not None:
        found: Tensor = few(rows, columns, targets)
        return found
    logits = outputs.logits[rows, columns]
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(exact, targets.to(exact.device), reduction="none")
