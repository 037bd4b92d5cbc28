"""The rows of a step as their jobs' augmentation has them; rows that score, and that heads are fitted on, are as read.

A row is altered once for all members of a pack that share rows, task, seed and augmentation and are in one epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_lora.augmentation.apply import altered
from ray_lora.inference.windows import Spread
from ray_lora.tasks import Features
from ray_lora.training.member import Member


def augmented(spread: Spread, owners: Sequence[tuple[Member, int]]) -> list[Features]:
    """What each window is trained on.

    Args:
        owners: of each given row, the member that trains on it in its next step and its number among all rows.
    """
    made: dict[object, Features] = {}
    found = []
    for features, at, window in zip(spread.features, spread.rows, spread.windows, strict=True):
        member, row = owners[at]
        job = member.job
        if not job.augmentation:
            found.append(features)
            continue
        drawn = (job.training.seed, member.step // member.per_epoch, row, window)
        key = (id(member.splits.train), id(member.task), job.augmentation, drawn)
        if key not in made:
            made[key] = altered(member.task, job.augmentation, features, drawn)
        found.append(made[key])
    return found
