"""The best head alone on the frozen base as a teacher: what it says of a step's rows as the adapter is trained on them.

    teachers = HeadTeachers(engine, group)
    teachers.fit(job, task, splits)                    # of rows and task alone: jobs that share them share it
    features = teachers.taught(features, members)      # with soft targets

A logistic regression on the bare base's mean-pooled hidden states needs few rows. What it has learnt of them it says of
their altered copies too, of which there are as many as one likes: an adapter that answers these alike begins where the
head alone ends, whatever its own head reads. It knows rows and members, not their losses (`distillation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ray_lora.distillation_spec import DistillationSpec
from ray_lora.engine import AdapterEngine
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.baseline import features_of
from ray_lora.recipe import TaskSpec
from ray_lora.tasks import Features, Task
from ray_lora.tasks.classification import Classification
from ray_lora.tasks.soft_targets import SOFT
from ray_lora.training.job import Job
from ray_lora.training.member import Member
from ray_lora.training.shards import Group, Splits

MOST_ROWS = 8192  # that the head is fitted on; the first of the split where there are more
_NEVER = 10.0  # how far below the least likely label one stands that no row has


@dataclass(frozen=True)
class Linear:
    """A linear classifier: weights [labels, hidden], bias [labels]."""

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [rows, labels]."""
        logits: NDArray[np.float32] = (x @ self.weights.T + self.bias).astype(np.float32)
        return logits


class HeadTeachers:
    """The teachers of one pack, on one worker of its group."""

    def __init__(self, engine: AdapterEngine, group: Group, max_rows: int = 64) -> None:
        self._engine, self._group, self._max_rows = engine, group, max_rows
        self._fitted: dict[tuple[str, TaskSpec], Linear] = {}

    def fit(self, job: Job, task: Task, splits: Splits) -> None:
        """Fit the teacher of a job that asks for one. Every worker calls it.

        Raises:
            RecipeError: the task is not one label a row.
            DataError: all training rows have one label.
        """
        if job.training.head_teacher == 0 or (job.data, job.task) in self._fitted:
            return
        check_head_teaches(task)
        assert isinstance(task, Classification)
        numbers = [row for row in splits.train.rows if row < MOST_ROWS]
        rows = [splits.train.rows[row] for row in numbers]
        x = features_of(self._engine, task, rows, self._max_rows) if rows else np.zeros((0, 0), np.float32)
        parts = self._group.gather((numbers, x, task.targets(rows)))
        whole = {row: (one, target) for rows, x, y in parts for row, one, target in zip(rows, x, y, strict=True)}
        order = sorted(whole)
        targets = np.array([whole[row][1] for row in order])
        if len(set(targets.tolist())) < 2:
            raise DataError(
                f"job {job.name!r} has training.head_teacher, and all its training rows have one label, of which no "
                "head learns anything"
            )
        self._fitted[job.data, job.task] = fitted(np.stack([whole[row][0] for row in order]), targets, len(task.labels))

    def taught(self, features: Sequence[Features], members: Sequence[Member]) -> list[Features]:
        """The rows of a step, those of members with such a teacher with what it says of them.

        Args:
            features: as they are trained on. members: of each row.
        """
        found = list(features)
        groups: dict[tuple[str, TaskSpec], list[int]] = {}
        for row, member in enumerate(members):
            if member.job.training.head_teacher > 0:
                groups.setdefault((member.job.data, member.job.task), []).append(row)
        for key, rows in groups.items():
            different = {id(features[row]): features[row] for row in rows}  # what members share is read once
            x = features_of(self._engine, members[rows[0]].task, list(different.values()), self._max_rows)  # type: ignore[arg-type]
            logits = dict(zip(different, self._fitted[key](x), strict=True))
            for row in rows:
                found[row] = features[row] | {SOFT: logits[id(features[row])]}
        return found


def fitted(x: NDArray[np.float32], targets: NDArray[np.int64], labels: int) -> Linear:
    """scikit-learn's logistic regression as it comes, on features of mean 0 and spread 1.

    Args:
        x: [rows, hidden]. targets: class indices of at least two labels, [rows].
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    model = LogisticRegression(max_iter=2000).fit(scaler.transform(x), targets)
    weights, bias = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    if len(weights) == 1:  # of two labels scikit-learn keeps the second one's logit
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    weights = weights / scaler.scale_
    whole = np.zeros((labels, x.shape[1])), np.full(labels, bias.min() - _NEVER)
    whole[0][model.classes_], whole[1][model.classes_] = weights, bias - weights @ scaler.mean_
    return Linear(*whole)


def check_head_teaches(task: Task) -> None:
    """RecipeError for a task whose head alone is no teacher."""
    if not isinstance(task, Classification):
        raise RecipeError(
            f"training.head_teacher is for rows of one label each, and {task.spec.type} as it is set has others; leave "
            "it out"
        )


def teacher_of(job: Job) -> DistillationSpec:
    """What a job's loss has of a teacher: the recipe's, or the head alone."""
    weight = job.training.head_teacher
    if weight == 0:
        return job.distillation
    return DistillationSpec(teacher="the head alone", temperature=1.0, weight=weight)
