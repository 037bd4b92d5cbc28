"""How sure answers are, and how often they are right: a reliability curve and the expected calibration error.

    reliability(task, answers, features)["ece"]      # 0.021

Guo et al. 2017 (arXiv 1706.04599): answers in bins of equal width by their score, and of each bin the mean score beside
the share of right answers. It knows answers and rows, no adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_lora.recipe import Json
from ray_lora.tasks import Features, Task
from ray_lora.tasks.classification import Classification
from ray_lora.tasks.inspection import Inspection

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Answers whose score is above `low` and at most `high`; `score` and `right` are means, None of no rows."""

    low: float
    high: float
    rows: int
    score: float | None
    right: float | None


@dataclass(frozen=True)
class Reliability:
    """`ece`: the mean over rows of the distance between each bin's score and its share of right answers."""

    ece: float
    rows: int
    bins: tuple[Bin, ...]


def why_not(task: Task) -> str | None:
    """Why a task has no reliability: its answers are not one label with its probability."""
    interest = isinstance(task, Inspection)
    if isinstance(task, Classification) and not interest:
        return None
    kind = getattr(task.spec, "problem_type", None)
    told = "a label of interest among others" if interest else kind or task.spec.type
    return f"reliability is of answers that are one label with its probability, and {told} has others"


def reliability(task: Task, answers: Sequence[Json], features: Sequence[Features]) -> Reliability:
    """Of answers as `task.score` takes them, of a task of which `why_not` says nothing."""
    assert isinstance(task, Classification)
    truth = [task.labels[target] for target in task.targets(features)]
    right = [answer["label"] == label for answer, label in zip(answers, truth, strict=True)]
    return curve([answer["score"] for answer in answers], right)


def curve(scores: Sequence[float], right: Sequence[bool], bins: int = BINS) -> Reliability:
    """Of scores from 0 to 1, and whether each answer is right."""
    held: list[list[int]] = [[] for _ in range(bins)]
    for row, score in enumerate(scores):
        held[min(bins - 1, max(0, -int(-score * bins // 1) - 1))].append(row)
    found, error = [], 0.0
    for number, rows in enumerate(held):
        mean = sum(scores[row] for row in rows) / len(rows) if rows else None
        share = sum(right[row] for row in rows) / len(rows) if rows else None
        found.append(Bin(number / bins, (number + 1) / bins, len(rows), mean, share))
        if mean is not None and share is not None:
            error += len(rows) / len(scores) * abs(mean - share)
    return Reliability(error, len(scores), tuple(found))
