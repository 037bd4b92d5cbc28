"""What a score loses when a layer's change is switched off, each layer in a slot of its own beside all others.

    off = switched_off(tables, rows, "tweets@3", adapter)
    off.groups[0].drop.value                 # 0.042: the accuracy that this layer's change is worth
    off.largest.layers                       # could go at once

The same rows pass through one base, whichever layers are off: an adapter without a layer is one more adapter of the
mixed passes. It knows adapters and rows, no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ray_lora.adapters.adapter import Adapter
from ray_lora.adapters.merge import singular_values
from ray_lora.inference.comparing import add_adapter, answers_to, features_of
from ray_lora.inference.intervals import Scored, intervals
from ray_lora.inference.table_rows import TableRows
from ray_lora.inference.tables import TableAnswers
from ray_lora.recipe import Json

_PARTS = 8  # of what could go are tried at once: an eighth, a quarter, ... all of it
MOST = 64  # groups of layers that are switched off one by one
_BLOCK = re.compile(r"(.*?\.\d+)\.")  # bert.encoder.layer.0. of a layer's name


@dataclass(frozen=True)
class Value:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Off:
    """Layers that were switched off together.

    Attributes:
        score: without them. drop: by how much it is worse than with all, in the same draws of rows; below 0 it is
            better. could_go: whether the drop's interval reaches down to 0.
    """

    name: str
    layers: tuple[str, ...]
    score: Value
    drop: Value
    could_go: bool


@dataclass(frozen=True)
class SwitchedOff:
    """What layers are worth to a score.

    Attributes:
        full: with all changes. bare: with none, the head alone.
        groups: each switched off by itself: a layer, or the layers of a block where there are more than `MOST`.
        could_go: the layers of all groups that could go, each group by itself.
        together: so many of those groups switched off at once, those of the smallest drop and then of the smallest
            change first; the last is all of them. Empty where none could go.
    """

    metric: str
    mode: str
    rows: int
    full: Value
    bare: Off
    groups: tuple[Off, ...]
    could_go: tuple[str, ...]
    together: tuple[Off, ...]

    @property
    def largest(self) -> Off | None:
        """The most layers that could go at once, of those that were tried; None where not even the fewest could."""
        return max((off for off in self.together if off.could_go), key=lambda off: len(off.layers), default=None)


def groups_of(layers: Sequence[str], most: int = MOST) -> dict[str, tuple[str, ...]]:
    """Layers to be switched off together, by a name: each alone; where that makes too many by the block that they
    belong to; where that does too, neighbours."""
    if len(layers) <= most:
        return {name: (name,) for name in layers}
    blocks: dict[str, list[str]] = {}
    for name in layers:
        block = _BLOCK.match(name)
        blocks.setdefault(block[1] if block else name, []).append(name)
    named = list(blocks.items())
    parts = [named[part[0] : part[-1] + 1] for part in np.array_split(range(len(named)), min(most, len(named)))]
    return {
        part[0][0] if len(part) == 1 else f"{part[0][0]} to {part[-1][0]}": tuple(
            layer for _, mine in part for layer in mine
        )
        for part in parts
    }


def switched_off(
    tables: TableAnswers,
    rows: TableRows,
    ref: str,
    adapter: Adapter,
    answers: Sequence[Json],
    order: Sequence[str] | None = None,
    most: int = MOST,
) -> SwitchedOff:
    """Score the adapter without each of its layers.

    Args:
        tables: that know the ref, and score. rows: with what scores them.
        answers: the adapter's own, to every row.
        order: its layers in the order in which they are to be named.
        most: groups that are switched off one by one.

    Raises:
        AdapterError: without a layer an answer is no number.
    """
    task = tables.task(ref)
    features = features_of(rows, task, range(rows.table.num_rows))
    full = intervals(task, answers, features)[task.metric]
    groups = groups_of(list(order or adapter.layers), most)

    def without(chosen: Mapping[str, Sequence[str]]) -> dict[str, Off]:
        asked = {f"{ref} without {name}": gone for name, gone in chosen.items()}
        for name, gone in asked.items():
            kept = {layer: pair for layer, pair in adapter.layers.items() if layer not in gone}
            add_adapter(tables, name, tables.pinned.entries[ref], replace(adapter, layers=kept), name)
        found = answers_to(tables, rows, list(asked))
        return {
            name: _off(name, tuple(gone), full, intervals(task, mine, features)[task.metric], task.metrics[task.metric])
            for (name, gone), mine in zip(chosen.items(), found.values(), strict=True)
        }

    nothing = "all layers"
    measured = without({**groups, nothing: tuple(adapter.layers)})
    bare = measured.pop(nothing)
    going = sorted(
        (off for off in measured.values() if off.could_go),
        key=lambda off: (off.drop.value, sum(_energy(adapter, layer) for layer in off.layers)),
    )
    counts = sorted({-(-len(going) * part // _PARTS) for part in range(1, _PARTS + 1)} - {0})
    parts = {f"{count} at once": [layer for off in going[:count] for layer in off.layers] for count in counts}
    return SwitchedOff(
        task.metric,
        task.metrics[task.metric],
        len(features),
        Value(full.value, full.low, full.high),
        bare,
        tuple(measured.values()),
        tuple(layer for off in measured.values() if off.could_go for layer in off.layers),
        tuple(without(parts).values()) if parts else (),
    )


def _energy(adapter: Adapter, layer: str) -> float:
    """The squared norm of a layer's change."""
    return float(singular_values(adapter.layers[layer], adapter.scaling(layer)).square().sum())


def _off(name: str, layers: tuple[str, ...], full: Scored, score: Scored, mode: str) -> Off:
    """The drop in the same draws of rows, by the percentile bootstrap of `inference.intervals`."""
    sign = 1 if mode == "max" else -1
    drops = sign * (np.asarray(full.draws) - np.asarray(score.draws))
    low, high = np.nanpercentile(drops, [2.5, 97.5]).tolist()
    drop = Value(sign * (full.value - score.value), low, high)
    return Off(name, layers, Value(score.value, score.low, score.high), drop, low <= 0)
