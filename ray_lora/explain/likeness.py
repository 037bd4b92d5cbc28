"""Which adapters change a base in the same directions.

    likeness(one, other).value       # 1 for the same directions, about `chance` for unrelated ones

Hu et al. 2021 (LoRA, arXiv 2106.09685, section 7.2) measure how much of one subspace lies in another: the squared
singular values of U'V summed up, over the smaller of the two dimensions, as Grassmann distances are normalised.
Here the subspaces are what A reads (its rows) and what B writes (its columns). It knows tensors and stores, no rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import AdapterError, AdapterNotFoundError
from ray_lora.store import Entry, Store

_ZERO = 1e-6  # of the largest singular value: what is less spans nothing
READ = 64  # adapters of a store that are read at most


@dataclass(frozen=True)
class Likeness:
    """How alike two adapters' directions are, from 0 to 1.

    Attributes:
        value: the mean of `reads` and `writes`.
        reads, writes: of A's row spaces and of B's column spaces, means over layers.
        chance: what unrelated adapters of these ranks have, about. layers: how many both change.
    """

    value: float
    reads: float
    writes: float
    chance: float
    layers: int


@dataclass(frozen=True)
class Near:
    """Another adapter of the store."""

    ref: str
    task: str | None
    likeness: Likeness


@dataclass(frozen=True)
class Neighbours:
    """Those nearest first.

    Attributes:
        read: how many were compared. left: how many of the same base were not: too many, or they cannot be read.
    """

    near: tuple[Near, ...]
    read: int
    left: int


def likeness(one: Adapter, other: Adapter) -> Likeness | None:
    """Of the layers that both change; None where there are none of one shape."""
    reads, writes, chances = [], [], []
    for name in sorted(one.layers.keys() & other.layers.keys()):
        mine, theirs = one.layers[name], other.layers[name]
        if mine.A.shape[1:] != theirs.A.shape[1:] or mine.B.shape[0] != theirs.B.shape[0]:
            continue
        sides = [(_rows(mine.A), _rows(theirs.A)), (_rows(mine.B.flatten(1).T), _rows(theirs.B.flatten(1).T))]
        if any(0 in (len(left), len(right)) for left, right in sides):
            continue  # no change has no directions
        read, write = (overlap(left, right) for left, right in sides)
        reads.append(read)
        writes.append(write)
        chances += [max(len(left), len(right)) / left.shape[1] for left, right in sides]
    if not reads:
        return None
    read, write = _mean(reads), _mean(writes)
    return Likeness((read + write) / 2, read, write, _mean(chances), len(reads))


def overlap(left: Tensor, right: Tensor) -> float:
    """||U V'||² over the smaller dimension, of orthonormal rows U [i, n] and V [j, n]; of random ones it is about
    max(i, j) / n."""
    return float((left @ right.T).square().sum()) / min(len(left), len(right))


def _rows(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span, [its dimension, n] float64."""
    basis: Tensor
    _, values, basis = torch.linalg.svd(matrix.flatten(1).double(), full_matrices=False)
    return basis[values > _ZERO * values.max()] if values.numel() and values.max() > 0 else basis[:0]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def neighbours(store: Store, entry: Entry, adapter: Adapter, most: int = 5, read: int = READ) -> Neighbours:
    """The adapters of a store that change the same base most alike; other versions of its own name among them, single
    persons' not.

    Args:
        most: of them are named. read: so many are compared at most, of the same task and the newest first.
    """
    others = [other for other in store.list(people=False) if other.ref != entry.ref and _same_base(other, adapter)]
    kind = entry.task.type if entry.task else None
    others.sort(key=lambda other: (_task(other) != kind, -other.version, other.name))
    found: list[Near] = []
    compared = 0
    for other in others[:read]:
        try:
            like = likeness(adapter, store.load(other.ref)[1])
        except (AdapterError, AdapterNotFoundError):  # broken, or gone meanwhile
            continue
        compared += 1
        if like is not None:
            found.append(Near(other.ref, _task(other), like))
    found.sort(key=lambda near: -near.likeness.value)
    return Neighbours(tuple(found[:most]), compared, len(others) - compared)


def _same_base(other: Entry, adapter: Adapter) -> bool:
    card = adapter.card
    if card.base_fingerprint is not None and other.base_fingerprint is not None:
        return card.base_fingerprint == other.base_fingerprint
    return card.base is not None and card.base == other.base


def _task(entry: Entry) -> str | None:
    return entry.task.type if entry.task else None
