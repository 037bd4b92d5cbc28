"""Soft targets of objects: what a teacher says of each anchor, whether there is an object and of which label.

Both are questions of yes and no. The distance of objectness counts at every anchor, as in the loss; that of labels as
far as the teacher sees an object there. Where boxes lie is taught by the rows alone. Teacher and student must have the
same anchors. It knows anchors, no adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ray_lora.errors import DataError
from ray_lora.recipe import TaskSpec
from ray_lora.tasks.soft_targets import SOFT, Agreement, distance, yes_or_no
from ray_lora.tasks.task import Features

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class SoftObjects:
    """Logits of each anchor's labels and its objectness, [anchors, labels + 1]."""

    agreement: ClassVar[Agreement] = "input"
    labels: tuple[str, ...]
    _way: Any

    @property
    def sees(self) -> str:
        """How large a picture is here, and of how many anchors."""
        height, width = self._way.size
        return f"{width} x {height} pixels with {self._way.anchors:,} anchors"

    def teaching(self, spec: TaskSpec) -> TaskSpec:
        """With this task's labels, so that an index among the rows' labels means the same."""
        return spec.model_copy(update={"labels": self.labels})

    def logits(self, outputs: Any, features: Sequence[Features]) -> list[Tensor]:
        return list(self._way.soft(outputs).float().cpu())

    def soft_targets(self, parts: Sequence[Tensor], features: Features) -> Tensor:
        return parts[0]

    def with_soft_targets(self, features: Features, soft: NDArray[np.float32]) -> Features:
        if soft.shape != (self._way.anchors, len(self.labels) + 1):
            raise DataError(f"soft targets {soft.shape} were given for a picture of {self.sees}")
        return features | {SOFT: soft}

    def divergence(self, outputs: Any, features: Sequence[Features], temperatures: Tensor) -> Tensor:
        import numpy as np
        import torch

        mine = self._way.soft(outputs)
        soft = torch.from_numpy(np.stack([row[SOFT] for row in features])).to(mine)
        heat = temperatures.to(mine)[:, None, None].expand(mine.shape)
        apart = distance(yes_or_no(mine), yes_or_no(soft), heat)
        return (apart[..., -1] + soft[..., -1].sigmoid() * apart[..., :-1].sum(-1)).sum(1)
