"""Options of a task that validation rows say, each adapter's own: they are written into its card, which answers read.

    adapter = settled(adapter, task, answers, features)     # its card's task has a threshold

It knows adapters and tasks, not what an option means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from ray_lora.adapters.adapter import Adapter
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks import Features, Task


@runtime_checkable
class Settles(Protocol):
    """What a `Task` has beside, some of whose options follow from answers of validation rows."""

    def settled(self, predictions: Sequence[Json], features: Sequence[Features], temperature: float) -> TaskSpec:
        """The options, completed.

        Args:
            predictions: as `score` takes them.
            temperature: by which outputs are divided when the adapter answers.
        """


def settled(adapter: Adapter, task: Task, answered: tuple[Sequence[Json], Sequence[Features]] | None) -> Adapter:
    """The adapter with the options in its card that its answers of validation rows ask for.

    Args:
        answered: its answers and the rows; None where there are no validation rows, and nothing changes.
    """
    if answered is None or not isinstance(task, Settles):
        return adapter
    spec = task.settled(*answered, adapter.card.temperature or 1.0)
    return replace(adapter, card=adapter.card.model_copy(update={"task": spec}))
