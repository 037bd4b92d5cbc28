"""What an evaluation says of an adapter beside its task's scores, where a search asks: its size, and how evenly
it serves the groups of the validation rows.

    fairness(task, predictions, rows, ["north", "south", ...], "accuracy")
    # {"accuracy_worst_group": 0.81, "accuracy_gap": 0.12}
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_lora.engine import AdapterEngine
from ray_lora.recipe import Json
from ray_lora.tasks import Features, Task
from ray_lora.training.job import GAP, SIZES, WORST_GROUP

_WIDTH = 4  # bytes of a number in a file


def sizes(engine: AdapterEngine, slot: int) -> dict[str, float]:
    """Trained numbers of a slot's adapter, and the bytes of its tensors in a file."""
    numbers = sum(view.numel() for view in engine.read(slot).values())
    return dict(zip(SIZES, (float(numbers), float(numbers * _WIDTH)), strict=True))


def fairness(
    task: Task, predictions: Sequence[Json], rows: Sequence[Features], groups: Sequence[str], metric: str
) -> dict[str, float]:
    """A metric's score in the group where it is worst, and how far that is from the group where it is best.

    Args:
        groups: of each row. A group without rows here counts as none.
    """
    scores = []
    for group in sorted(set(groups)):
        mine = [row for row, whose in enumerate(groups) if whose == group]
        scores.append(task.score([predictions[row] for row in mine], [rows[row] for row in mine])[metric])
    worst = min(scores) if task.metrics[metric] == "max" else max(scores)
    return {metric + WORST_GROUP: worst, metric + GAP: max(scores) - min(scores)}
