"""Attention of new tokens over what their rows have kept: of rows that are one token ahead, slab by slab where it lies;
of rows that have several new tokens, such as a prompt's, row by row.

It takes the place of `attention.joined_attention`'s own product for the time of one pass, which has no gradients. It
knows places and heads; it knows nothing of slots or adapters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_lora.engine.attention import How
from ray_lora.engine.kv_cache import Place, Slab

_STEP = 16  # keys that are looked at are a multiple


@dataclass(frozen=True)
class NewTokens:
    """A row's tokens in a pass that are not kept yet: `count` of them, from the token `start` of the pass on."""

    place: Place
    start: int
    count: int


@dataclass(frozen=True)
class _Written:
    """Where one slab's new tokens go: the token of the pass, its row, its position, each [tokens], or the one there
    is, which is copied sooner than it is looked up."""

    slab: Slab
    tokens: Tensor | int
    rows: Tensor | int
    positions: Tensor | int


@dataclass(frozen=True)
class _Ahead:
    """A slab's rows that are one token ahead.

    Attributes:
        rows: of the slab, as many as hold the last of them; width: keys that are looked at.
        tokens, index: of each such row the token of the pass and the slab's row.
        seen: tokens that each of the slab's rows sees, its own included, [rows]; 1 where it takes no part.
        lie: where the tokens lie in the pass, when they do so in the order of the slab's rows and none is left out.
    """

    slab: Slab
    rows: int
    width: int
    tokens: Tensor
    index: Tensor
    seen: Tensor
    lie: slice | None


class CachedPass:
    """One pass of new tokens; `done` makes what it wrote count.

    Args:
        count: tokens of the pass, those that belong to no row included.
    """

    def __init__(self, work: Sequence[NewTokens], count: int, device: torch.device) -> None:
        self._work, self.count, self._device = work, count, device
        slabs: dict[int, list[NewTokens]] = {}
        for new in work:
            slabs.setdefault(new.place.slab.capacity, []).append(new)
        self._written = [self._places(mine) for mine in slabs.values()]
        ahead = [[new for new in mine if new.count == 1] for mine in slabs.values()]
        self._ahead = [self._stepping(mine) for mine in ahead if mine]
        self._several = [new for new in work if new.count > 1]
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor] = {}

    def done(self) -> None:
        """All layers have written."""
        for new in self._work:
            new.place.length += new.count

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: How) -> Tensor:
        """[1, tokens, heads, size of a value] for queries, keys and values of the new tokens, [1, heads, tokens, size].

        Each token sees what its row has kept and, of the new ones, those up to itself.
        """
        for written in self._written:
            for kept, x in zip(written.slab.pair(layer, key, value), (key, value), strict=True):
                kept[written.rows, :, written.positions] = x[0].transpose(0, 1)[written.tokens]
        out = query.new_zeros(self.count, query.shape[1], value.shape[-1])
        for number, ahead in enumerate(self._ahead):
            self._step(ahead, number, layer, query, out, how)
        for new in self._several:
            self._stretch(new, layer, query, out, how)
        return out[None]

    def _step(self, ahead: _Ahead, number: int, layer: int, query: Tensor, out: Tensor, how: How) -> None:
        keys, values = (x[: ahead.rows, :, : ahead.width] for x in ahead.slab.layers[layer])
        few, heads = keys.shape[1], query.shape[1]
        if ahead.lie is not None:
            asked = query[0, :, ahead.lie].transpose(0, 1)
        else:
            asked = query.new_zeros(ahead.rows, heads, query.shape[-1])
            asked[ahead.index] = query[0].transpose(0, 1)[ahead.tokens]
        asked = asked.reshape(ahead.rows * few, heads // few, -1)
        mask = self._mask(ahead, number, how, query.dtype)
        scores = torch.bmm(asked, keys.flatten(0, 1).transpose(1, 2)).mul_(how.scale)
        weights = _weights(scores.view(ahead.rows, few, heads // few, -1), mask, how)
        found = torch.bmm(weights.flatten(0, 1), values.flatten(0, 1)).view(ahead.rows, heads, -1)
        if ahead.lie is not None:
            out[ahead.lie] = found
        else:
            out[ahead.tokens] = found[ahead.index]

    def _mask(self, ahead: _Ahead, number: int, how: How, dtype: torch.dtype) -> Tensor:
        """What is added to a slab's scores, [rows, 1, 1, width]; made once a pass, a base's layers are alike."""
        known = self._masks.get((number, how.window, dtype))
        if known is None:
            column, seen = torch.arange(ahead.width, device=self._device), ahead.seen[:, None]
            hidden = column >= seen
            if how.window is not None:
                hidden |= column < seen - how.window
            known = torch.zeros(hidden.shape, dtype=dtype, device=self._device).masked_fill_(hidden, -math.inf)
            self._masks[number, how.window, dtype] = known = known[:, None, None]
        return known

    def _stretch(self, new: NewTokens, layer: int, query: Tensor, out: Tensor, how: How) -> None:
        total = new.place.length + new.count
        keys, values = (x[new.place.index, :, :total] for x in new.place.slab.layers[layer])
        few, heads, end = keys.shape[0], query.shape[1], new.start + new.count
        asked = query[0, :, new.start : end].reshape(few, heads // few * new.count, -1)
        away = torch.arange(new.place.length, total, device=self._device)[:, None] - torch.arange(
            total, device=self._device
        )
        hidden = away < 0
        if how.window is not None:
            hidden |= away >= how.window
        mask = torch.zeros(hidden.shape, dtype=query.dtype, device=self._device).masked_fill_(hidden, -math.inf)
        scores = torch.bmm(asked, keys.transpose(1, 2)).mul_(how.scale).view(few, heads // few, new.count, total)
        weights = _weights(scores, mask, how)
        found = torch.bmm(weights.view(few, -1, total), values).view(heads, new.count, -1)
        out[new.start : end] = found.transpose(0, 1)

    def _places(self, work: Sequence[NewTokens]) -> _Written:
        tokens: list[int] = []
        rows: list[int] = []
        positions: list[int] = []
        for new in work:
            tokens += range(new.start, new.start + new.count)
            rows += [new.place.index] * new.count
            positions += range(new.place.length, new.place.length + new.count)
        if len(tokens) == 1:
            return _Written(work[0].place.slab, tokens[0], rows[0], positions[0])
        moved = (torch.tensor(x, device=self._device) for x in (tokens, rows, positions))
        return _Written(work[0].place.slab, *moved)

    def _stepping(self, work: Sequence[NewTokens]) -> _Ahead:
        slab = work[0].place.slab
        rows = max(new.place.index for new in work) + 1
        seen = [1] * rows
        for new in work:
            seen[new.place.index] = new.place.length + 1
        width = min(-(-max(seen) // _STEP) * _STEP, slab.capacity)
        tokens, index = [new.start for new in work], [new.place.index for new in work]
        at_tokens, at_index, at_seen = (torch.tensor(x, device=self._device) for x in (tokens, index, seen))
        first = tokens[0]
        lies = index == list(range(rows)) and tokens == list(range(first, first + rows))
        lie = slice(first, first + rows) if lies else None
        return _Ahead(slab, rows, width, at_tokens, at_index, at_seen, lie)


def _weights(scores: Tensor, mask: Tensor, how: How) -> Tensor:
    if how.softcap is not None:
        scores = torch.tanh(scores / how.softcap) * how.softcap
    exact = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax((scores + mask).to(exact), -1).to(scores.dtype)
