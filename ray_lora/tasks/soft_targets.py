"""What a teacher's logits say of a row, and how far a student's are from them: knowledge distillation, task by task.

    parts = teacher_task.logits(outputs, windows)                 # of each window
    soft = teacher_task.soft_targets(parts, features)             # of the row, [terms, classes]
    features = task.with_soft_targets(features, soft)             # what the student trains on
    task.divergence(outputs, [features], temperatures)            # beside `task.loss`

The distance of two distributions is temperature² KL(softmax(teacher / temperature) || softmax(student / temperature)):
Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), whose square keeps gradients of one size at any temperature. It knows
logits and rows, no adapters. Here are rows with one label, several, or a number; `soft_words` and `soft_spans` have
words and answers, `soft_tokens` what is written, `soft_objects` what is where.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from ray_lora.errors import DataError
from ray_lora.recipe import TaskSpec
from ray_lora.tasks.task import Features

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

SOFT = "soft_targets"  # in the features of a row, or of each of its windows
Agreement = Literal["rows", "pieces", "vocabulary", "input"]


@runtime_checkable
class Distilled(Protocol):
    """What a `Task` has beside, whose adapters can learn from another adapter's logits.

    Attributes:
        agreement: what a teacher must share with its student: the rows; the very pieces in which each reads a row;
            every token's number too; or of pictures the size and the anchors, which its `sees` says.
    """

    agreement: ClassVar[Agreement]

    def teaching(self, spec: TaskSpec) -> TaskSpec:
        """A teacher's options, changed so that it reads this task's rows."""
        ...

    def logits(self, outputs: Any, features: Sequence[Features]) -> list[Tensor]:
        """Of each window what a teacher's outputs say, float32 on the CPU."""
        ...

    def soft_targets(self, parts: Sequence[Tensor], features: Features) -> Tensor:
        """Of a whole row, [terms, classes], from what `logits` gave for each of its windows."""
        ...

    def with_soft_targets(self, features: Features, soft: NDArray[np.float32]) -> Features:
        """A row with its soft targets, whose classes are in this task's order; DataError where they are not of it."""
        ...

    def divergence(self, outputs: Any, features: Sequence[Features], temperatures: Tensor) -> Tensor:
        """The distance from each row's soft targets, [rows], summed over the terms that `loss` counts.

        Args:
            temperatures: of each row.
        """
        ...


def distance(student: Tensor, teacher: Tensor, temperatures: Tensor, impossible: Tensor | None = None) -> Tensor:
    """temperature² KL(softmax(teacher / temperature) || softmax(student / temperature)) over the last axis.

    Args:
        student, teacher: [..., classes].
        temperatures: [...].
        impossible: classes that can be neither's, [..., classes].
    """
    heat = temperatures.unsqueeze(-1)
    told, said = teacher / heat, student / heat
    if impossible is not None:
        told, said = (logits.masked_fill(impossible, float("-inf")) for logits in (told, said))
    told, said = told.log_softmax(-1), said.log_softmax(-1)
    shares = told.exp()
    if impossible is not None:  # 0 log 0 is 0, and has no gradient
        told, said = told.masked_fill(impossible, 0), said.masked_fill(impossible, 0)
    return temperatures.square() * (shares * (told - said)).sum(-1)


def yes_or_no(logits: Tensor) -> Tensor:
    """Each logit as a distribution of its own over yes and no, [..., 2]."""
    import torch

    return torch.stack([logits, torch.zeros_like(logits)], -1)


def exact(logits: Tensor) -> Tensor:
    """Logits in float32 where they are narrower."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class SoftRows:
    """Rows of which the outputs say one line of logits, [rows, outputs]. `labels` name the outputs."""

    agreement: ClassVar[Agreement] = "rows"
    labels: tuple[str, ...]

    def teaching(self, spec: TaskSpec) -> TaskSpec:
        """With this task's labels, so that an index among the rows' labels means the same."""
        return spec.model_copy(update={"labels": self.labels}) if getattr(spec, "labels", None) is not None else spec

    def logits(self, outputs: Any, features: Sequence[Features]) -> list[Tensor]:
        return list(outputs.logits.float().cpu())

    def soft_targets(self, parts: Sequence[Tensor], features: Features) -> Tensor:
        return parts[0][None]

    def with_soft_targets(self, features: Features, soft: NDArray[np.float32]) -> Features:
        if soft.shape != (1, len(self.labels)):
            raise DataError(f"soft targets {soft.shape} were given for a row of {len(self.labels)} outputs")
        return features | {SOFT: soft[0]}

    def _pair(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's logits, both [rows, outputs]."""
        import numpy as np
        import torch

        mine = exact(outputs.logits)
        return mine, torch.from_numpy(np.stack([row[SOFT] for row in features])).to(mine)


class SoftLabel(SoftRows):
    """One label a row. A row weighs what `weights` say of its label, as in the task's own loss."""

    weights: Sequence[float] | None = None

    @abstractmethod
    def targets(self, features: Sequence[Features]) -> list[int]:
        """The class index of each row."""

    def divergence(self, outputs: Any, features: Sequence[Features], temperatures: Tensor) -> Tensor:
        import torch

        mine, soft = self._pair(outputs, features)
        found = distance(mine, soft, temperatures.to(mine))
        if self.weights is None:
            return found
        return found * torch.tensor(self.weights).to(found)[torch.tensor(self.targets(features), device=found.device)]


class SoftLabels(SoftRows):
    """Any number of labels a row: each is its own question of yes or no."""

    def divergence(self, outputs: Any, features: Sequence[Features], temperatures: Tensor) -> Tensor:
        mine, soft = self._pair(outputs, features)
        heat = temperatures.to(mine)[:, None].expand(mine.shape)
        return distance(yes_or_no(mine), yes_or_no(soft), heat).sum(-1)


class SoftNumber(SoftRows):
    """A number a row: the squared difference, which a temperature would divide and multiply by the same."""

    def divergence(self, outputs: Any, features: Sequence[Features], temperatures: Tensor) -> Tensor:
        mine, soft = self._pair(outputs, features)
        return (mine[:, 0] - soft[:, 0]).square()
