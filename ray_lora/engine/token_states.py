"""Outputs of a base's own head that are computed where somebody asks for them: of some tokens, not of all.

A row of 500 tokens has 25 million logits over a vocabulary of 50,000, and training asks for the answer's alone. The
plain class's own forward computes them, whatever it does beside its last layer (caps, scales).

    outputs.losses(rows, columns, loss)                  # [terms], with gradients, a few tokens' logits at a time
    outputs.logits_at(rows, columns)                     # [terms, vocabulary]
    outputs.logits                                       # [rows, longest, vocabulary]

It knows tensors, not tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_MOST = 2**23  # logits at once, numbers: more leave caches, and a pack's memory
_FIRST = 32  # tokens, before the size of the vocabulary is seen

Logits = Callable[[Tensor], Tensor]  # [1, tokens, hidden] -> [1, tokens, vocabulary]
Loss = Callable[[Tensor, slice], Tensor]  # logits [terms, vocabulary], float32 at least, and which terms -> [terms]


@dataclass(frozen=True)
class TokenStates:
    """Outputs of a class that gives logits of every token.

    Attributes:
        states: the last hidden states, [rows, longest, hidden].
        head: what makes logits of them.
    """

    states: Tensor
    head: Logits

    @property
    def logits(self) -> Tensor:
        """Of every token, [rows, longest, vocabulary]."""
        logits: Tensor = self.head(self.states.flatten(0, 1)[None])[0].unflatten(0, self.states.shape[:2])
        return logits

    def logits_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Of some tokens, [terms, vocabulary]."""
        return self.head(self._at(rows, columns)[None])[0]

    def losses(self, rows: Tensor, columns: Tensor, loss: Loss) -> Tensor:
        """What `loss` gives for each of some tokens, [terms], with gradients."""
        found: Tensor = _Losses.apply(self._at(rows, columns), self.head, loss)  # type: ignore[no-untyped-call]
        return found

    def _at(self, rows: Tensor, columns: Tensor) -> Tensor:
        places = (rows * self.states.shape[1] + columns).to(self.states.device)
        return self.states.flatten(0, 1).index_select(0, places)


class _Losses(torch.autograd.Function):
    """A few tokens' logits at a time. A loss depends on its own token's state alone, so its gradient, a vector, is
    found beside it, and neither pass keeps logits."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Logits, loss: Loss) -> Tensor:
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        at, step = 0, _FIRST
        while at < len(states):
            mine = states[at : at + step].detach()
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                mine.requires_grad_(ctx.needs_input_grad[0])
                logits = head(mine[None])[0]
                exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
                found = loss(exact, slice(at, at + step))
                if ctx.needs_input_grad[0]:
                    gradients += torch.autograd.grad(found.sum(), mine)
            losses.append(found.detach())
            at, step = at + step, max(1, _MOST // logits.shape[-1])
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return (
            torch.cat(losses) if losses else states.new_zeros(0, dtype=torch.promote_types(states.dtype, torch.float32))
        )

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return (gradients * g[:, None]).to(gradients.dtype), None, None
