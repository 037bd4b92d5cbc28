"""Transforms of a row's tokens. Those that a tokenizer sets around texts stay what and where they are."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from ray_lora.tasks.augmented import Tokens
from ray_lora.transform_spec import Needs, TransformSpec


class TokenMasking(TransformSpec):
    """Tokens are hidden by the tokenizer's mask token, and every other one stays where it is.

    Attributes:
        share: the chance of each token.
    """

    needs: ClassVar[frozenset[Needs]] = frozenset({"tokens", "mask"})
    name: Literal["token_masking"] = "token_masking"
    share: float = Field(default=0.1, gt=0, lt=1)

    def alter(self, view: Tokens, draw: np.random.Generator) -> Tokens:
        hidden = _chosen(view, self.share, draw)
        assert view.mask is not None  # it is needed
        return replace(view, ids=tuple(view.mask if hide else one for one, hide in zip(view.ids, hidden, strict=True)))


class TokenDropout(TransformSpec):
    """Tokens are left out, but never all of a row.

    Attributes:
        share: the chance of each token.
    """

    needs: ClassVar[frozenset[Needs]] = frozenset({"tokens", "order"})
    name: Literal["token_dropout"] = "token_dropout"
    share: float = Field(default=0.1, gt=0, lt=1)

    def alter(self, view: Tokens, draw: np.random.Generator) -> Tokens:
        gone = _chosen(view, self.share, draw)
        free = [at for at, fixed in enumerate(view.fixed) if not fixed]
        if free and all(gone[at] for at in free):
            gone[free[int(draw.integers(len(free)))]] = False
        return _in_order(view, [at for at, out in enumerate(gone) if not out])


class TokenSwap(TransformSpec):
    """Tokens change places with the one behind them; none passes a token that stays, so two texts stay apart.

    Attributes:
        share: the chance of each pair.
    """

    needs: ClassVar[frozenset[Needs]] = frozenset({"tokens", "order"})
    name: Literal["token_swap"] = "token_swap"
    share: float = Field(default=0.1, gt=0, lt=1)

    def alter(self, view: Tokens, draw: np.random.Generator) -> Tokens:
        order, at = list(range(len(view.ids))), 0
        swaps = draw.random(len(order)) < self.share
        while at + 1 < len(order):
            swapped = swaps[at] and not view.fixed[at] and not view.fixed[at + 1]
            if swapped:
                order[at], order[at + 1] = order[at + 1], order[at]
            at += 2 if swapped else 1
        return _in_order(view, order)


def _chosen(view: Tokens, share: float, draw: np.random.Generator) -> list[bool]:
    """Of each token, whether it is one of a share of those that are not fixed."""
    chance = draw.random(len(view.ids)).tolist()
    return [one < share and not fixed for one, fixed in zip(chance, view.fixed, strict=True)]


def _in_order(view: Tokens, order: list[int]) -> Tokens:
    ids, places = (tuple(values[at] for at in order) for values in (view.ids, view.places))
    return replace(view, ids=ids, places=places, fixed=tuple(view.fixed[at] for at in order))
