"""A temperature for each adapter, from its validation rows: one number by which its outputs are divided so that the
scores of its answers are as sure as the answers are right (Guo et al. 2017, arXiv 1706.04599).

    losses = Losses(engine)
    predict(..., watch=losses.watch)          # while rows are answered anyway
    temperature = losses.best(slot)
    adapter = calibrated(adapter, temperature, last_layer(engine, head))

The head's last Linear layer is divided in the adapter that is written, so whoever answers with it has calibrated scores
and the same best answers. What training goes on from is left alone. It knows outputs and losses, no labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ray_lora.adapters.adapter import Adapter
from ray_lora.engine import AdapterEngine
from ray_lora.tasks import Features, Task

_TEMPERATURES = tuple(2 ** (step / 4) for step in range(-12, 21))  # 0.125 to 32


@runtime_checkable
class Calibrated(Protocol):
    """What a `Task` has beside, whose answers may be calibrated: where `calibrates` is true its scores are
    probabilities, and dividing all outputs by one number changes no answer but its score."""

    @property
    def calibrates(self) -> bool: ...


def calibrates(task: Task) -> bool:
    """Whether a temperature may be fitted to this task's answers."""
    return isinstance(task, Calibrated) and task.calibrates


class Losses:
    """Each slot's loss at every temperature, summed up over the rows that it is shown."""

    def __init__(self, engine: AdapterEngine) -> None:
        device = engine.base.device
        self._sums = torch.zeros(len(_TEMPERATURES) + 1, engine.slots + 1, dtype=torch.float64, device=device)

    def watch(self, task: Task, slots: Sequence[int], features: Sequence[Features], outputs: Any) -> None:
        """Take rows and their outputs, [rows, ...]; what is no mapping of tensors is passed by."""
        if not isinstance(outputs, Mapping) or not calibrates(task):
            return
        index = torch.tensor(slots, device=self._sums.device)
        for row, temperature in enumerate(_TEMPERATURES):
            losses, terms = task.loss(_divided(outputs, temperature), features)
            self._sums[row].index_add_(0, index, losses.detach().double())
        self._sums[-1].index_add_(0, index, terms.double())

    def reduce(self, add: Callable[[Tensor], None]) -> None:
        """Sum over the pack's workers; `add` sums a tensor over all of them, in place."""
        add(self._sums)

    def best(self, slot: int) -> float | None:
        """The temperature of the smallest loss, between those that were tried by the parabola through the three
        smallest; None where nothing was seen, or no loss is a number."""
        *losses, terms = self._sums[:, slot].tolist()
        if not terms or not all(map(math.isfinite, losses)):
            return None
        at = min(range(len(losses)), key=losses.__getitem__)
        if not 0 < at < len(losses) - 1:
            return float(_TEMPERATURES[at])
        left, middle, right = losses[at - 1 : at + 2]
        bend = left - 2 * middle + right
        step = 0.5 * (left - right) / bend if bend > 0 else 0.0
        return float(_TEMPERATURES[at] * 2 ** (step / 4))


def _divided(outputs: Mapping[str, Any], temperature: float) -> Any:
    """Outputs of the same class, every tensor of numbers divided."""
    divided = {
        name: value / temperature if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in outputs.items()
    }
    return divided if type(outputs) is dict else type(outputs)(**divided)


def calibrated(adapter: Adapter, temperature: float | None, last: Collection[str]) -> Adapter:
    """The adapter whose outputs are divided by the temperature, which its card names; as it is where there is none, or
    where its head ends in no Linear layer.

    Args:
        last: the tensors of that layer, from `engine.last_layer`.
    """
    if temperature is None or not last:
        return adapter
    head = {name: tensor / temperature if name in last else tensor for name, tensor in adapter.head.items()}
    return replace(adapter, head=head, card=adapter.card.model_copy(update={"temperature": temperature}))
