"""Rows of different lengths laid end to end, so that a pass computes no padding: where each token lies, and back.

    joined = Joined.of(mask, slots)             # mask [rows, longest]: 1 where a row has a token
    tokens = joined.take(input_ids)             # [1, tokens]
    states = joined.spread(states)              # [1, tokens, hidden] -> [rows, longest, hidden]

Tokens of one slot lie together, and the number of tokens is filled up to a round one, so that there are few
shapes of products, with tokens that belong to no row and that nobody reads. Where the low-rank terms of all slots are
one product of equal blocks, each slot's stretch is filled up to a multiple of `block`; in passes that write on a
processor nothing is filled up, and the slots that have few tokens come last. It knows rows, not models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FILL = 16  # the width of a row's attention: what products and softmax like
_STEPS = ((128, 8), (512, 16), (1024, 32), (math.inf, 64))  # up to so many tokens, in steps of
_WRITING_STEPS = ((16, 4), *_STEPS)  # one to three tokens take longer than four
_BLOCKS = (16, 32, 64, 128, 256)
_SMALL, _FEW = (1, 2, 4, 8), 128  # of passes of so few tokens: one of each row that is being written
_LITTLE = 16  # tokens of a slot that has few in a pass that writes: rows in the making have one each

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Costs:
    """What the low-rank terms cost beside a layer, in tokens of its product: measured for a rank of 8, 384 wide.

    Attributes:
        block: of a block, where all are one product. stretch: of a slot's stretch, where each is a product of its own.
    """

    block: float
    stretch: float


EXACT = Costs(block=2.0, stretch=7.0)  # float32 and float64 on processors: a product's call costs little
NARROW = Costs(block=8.0, stretch=math.inf)  # shorter numbers, and other devices


@dataclass(frozen=True)
class Bucket:
    """Rows whose attention is computed together.

    Attributes:
        tokens: the token at each place, [rows, width]; behind a row's end its first token.
        ends: each row's number of tokens, [rows].
        full: whether no place lies behind a row's end.
    """

    rows: int
    width: int
    tokens: Tensor
    ends: Tensor
    full: bool


@dataclass(frozen=True)
class Joined:
    """The tokens of some rows.

    Attributes:
        rows, width: of the padded form, [rows, width, ...].
        count: tokens of the joined form, those that belong to no row included.
        segments: (slot, first token, one behind the last) of each slot's stretch.
        few: how many of the last segments are of slots that have few tokens; 0 but in such passes.
        block: tokens that have one slot, one after the other, and divide `count`; 0 where stretches are as long as they
            are.
        places: where in the flattened padded form each token lies, [count].
        positions: of each token in its own row, [count].
        of_row: the row of each token, [count].
        firsts: each row's first token, [rows].
        idle: tokens that belong to no row.
        to_padded: the token at each place of the padded form, [rows * width]; a row's first where it has none.
        lengths: each row's number of tokens; starts: its first token.
        kept: what others make of these rows, once.
    """

    rows: int
    width: int
    count: int
    segments: tuple[tuple[int, int, int], ...]
    block: int
    places: Tensor
    positions: Tensor
    of_row: Tensor
    firsts: Tensor
    idle: Tensor
    to_padded: Tensor
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    few: int = 0
    kept: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, mask: Tensor, slots: Sequence[int], device: torch.device, costs: Costs | None = EXACT) -> Joined:
        """Rows that have a token wherever `mask` [rows, longest] is not 0, at least one each, with these slots.

        Args:
            costs: decide whether stretches are filled up to equal blocks; None in a pass that writes on a processor.
        """
        held = mask.cpu().numpy() != 0
        rows, width = held.shape
        lengths = held.sum(1)
        keys, few = (np.asarray(slots), 0) if costs is not None else _short_last(np.asarray(slots), lengths)
        order = np.argsort(keys, kind="stable")
        first, sizes = _by_slot(keys[order], lengths[order])
        block = 0 if costs is None else _block(sizes, costs)
        filled = -(-sizes // block) * block if block else sizes
        count = _rounded(int(filled.sum()), block, _STEPS if costs is not None else _WRITING_STEPS)
        starts = np.empty(rows, dtype=np.int64)
        at = np.concatenate([[0], np.cumsum(lengths[order])[:-1]])
        gaps = np.concatenate([[0], np.cumsum(filled - sizes)[:-1]])
        starts[order] = at + np.repeat(gaps, np.bincount(_numbers(keys[order])))
        of_token = np.repeat(np.arange(rows), lengths)  # in the padded form's order
        inner = np.arange(len(of_token)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        here = starts[of_token] + inner
        flat = np.flatnonzero(held)
        places, positions, of_row = (np.zeros(count, dtype=np.int64) for _ in range(3))
        places[here], positions[here], of_row[here] = flat, inner, of_token
        idle = np.ones(count, dtype=bool)
        idle[here] = False
        to_padded = np.repeat(starts, width)
        to_padded[flat] = here
        return cls(
            rows=rows,
            width=width,
            count=count,
            segments=_segments(np.asarray(slots)[order][first], filled),
            few=few,
            block=block,
            places=_move(places, device),
            positions=_move(positions, device),
            of_row=_move(of_row, device),
            firsts=_move(starts, device),
            idle=_move(np.flatnonzero(idle), device),
            to_padded=_move(to_padded, device),
            lengths=tuple(lengths.tolist()),
            starts=tuple(starts.tolist()),
        )

    @property
    def owners(self) -> list[int]:
        """Slot of each block, [count / block]; what fills up the end is the last one's."""
        owners = [slot for slot, begin, end in self.segments for _ in range((end - begin) // self.block)]
        return owners + owners[-1:] * (self.count // self.block - len(owners))

    def take(self, padded: Tensor) -> Tensor:
        """[rows, longest, ...] as [1, tokens, ...]."""
        return padded.flatten(0, 1).index_select(0, self.places).unsqueeze(0)

    def spread(self, joined: Tensor) -> Tensor:
        """[1, tokens, ...] as [rows, longest, ...]; what stands where a row has no token means nothing."""
        return joined[0].index_select(0, self.to_padded).view(self.rows, self.width, *joined.shape[2:])

    @cached_property
    def buckets(self) -> list[Bucket]:
        """All rows by their width in attention, a multiple of 16; few buckets where rows are few."""
        lengths, starts = np.asarray(self.lengths), np.asarray(self.starts)
        widths = -(-lengths // _FILL) * _FILL if self.rows > 1 else np.asarray([self.count])
        buckets = []
        for group in _groups(widths):
            width, ends = int(widths[group].max()), lengths[group]
            column = np.arange(width)
            tokens = starts[group][:, None] + np.where(column < ends[:, None], column, 0)
            device = self.places.device
            buckets.append(
                Bucket(
                    rows=len(group),
                    width=width,
                    tokens=torch.from_numpy(tokens).to(device),
                    ends=torch.from_numpy(ends).to(device),
                    full=bool((ends == width).all()),
                )
            )
        return buckets


def _by_slot(slots: Index, lengths: Index) -> tuple[Index, Index]:
    """Each slot's first row among sorted ones, and its number of tokens."""
    _, first = np.unique(slots, return_index=True)
    return first, np.add.reduceat(lengths, first)


def _short_last(slots: Index, lengths: Index) -> tuple[Index, int]:
    """Keys that sort slots with few tokens behind all others, and how many such slots there are.

    All of them get as many places as the largest needs; so few is what leaves at most half of the places empty.
    """
    owners, number = np.unique(slots, return_inverse=True)
    sizes = np.bincount(number, lengths).astype(np.int64)
    candidates = sorted({int(size) for size in sizes[owners > 0] if size <= _LITTLE}, reverse=True)
    for most in candidates:
        short = (sizes <= most) & (owners > 0)
        if most * short.sum() <= 2 * sizes[short].sum():
            return slots + short[number] * (int(owners.max()) + 1), int(short.sum())
    return slots, 0


def _segments(of_slot: Index, lengths: Index) -> tuple[tuple[int, int, int], ...]:
    ends = np.cumsum(lengths).tolist()
    return tuple(zip(of_slot.tolist(), [0, *ends[:-1]], ends, strict=True))


def _numbers(slots: Index) -> Index:
    """0 for the first slot among sorted ones, 1 for the next."""
    return np.unique(slots, return_inverse=True)[1]


def _block(sizes: Index, costs: Costs) -> int:
    """Tokens of a block for slots of so many tokens, or 0 for stretches as they are: small blocks fill little up, large
    ones are few."""

    def cost(block: int) -> float:
        filled = -(-sizes // block) * block
        return float(filled.sum() - sizes.sum()) + costs.block * float(filled.sum() // np.gcd.reduce(filled))

    if len(sizes) == 1:
        return 0 if costs.stretch < math.inf else _rounded(int(sizes[0]))
    # of products that are compiled for their shapes, blocks of any size would be ever new ones
    exact = costs.stretch < math.inf and len(set(sizes.tolist())) == 1 and sizes.sum() % _FILL == 0
    alike = [int(sizes[0])] if exact else []
    few = _SMALL if costs.stretch == math.inf and sizes.sum() <= _FEW else ()
    best = min([*alike, *few, *_BLOCKS], key=cost)
    return best if cost(best) <= costs.stretch * len(sizes) else 0


def _groups(widths: Index) -> list[Index]:
    """Rows of like width, widest last; a width that few rows have joins the next wider one."""
    groups: list[list[int]] = [[]]
    for width in np.unique(widths):
        rows = np.flatnonzero(widths == width).tolist()
        few = groups[-1] and len(groups[-1]) * (int(width) - int(widths[groups[-1]].max())) <= 4 * _FILL
        if few or not groups[-1]:
            groups[-1] += rows
        else:
            groups.append(rows)
    return [np.asarray(sorted(group)) for group in groups]


def _rounded(tokens: int, block: int = 0, steps: Sequence[tuple[float, int]] = _STEPS) -> int:
    """A number of tokens as products like it: the more there are, the coarser, so that there are few shapes."""
    multiple = next(step for most, step in steps if tokens <= most)
    if block and multiple % block:
        multiple = block
    return -(-tokens // multiple) * multiple


def _move(array: Index, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
