"""Soft targets of answers in a text: what a teacher says of each token as an answer's first and as its last.

The teacher must read rows in the very tokens and windows of the student. It knows windows and tokens, no adapters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ray_lora.errors import DataError
from ray_lora.recipe import TaskSpec
from ray_lora.tasks.soft_targets import SOFT, Agreement, distance, exact
from ray_lora.tasks.task import Features

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

NONE = 0  # the place of the CLS token, which stands for no answer


class SoftSpans:
    """A first and a last token in each window, from `start_logits` and `end_logits`, [rows, tokens]."""

    agreement: ClassVar[Agreement] = "pieces"
    spec: TaskSpec

    @abstractmethod
    def held(self, count: int, width: int) -> slice:
        """Where in a padded row its tokens lie."""

    def teaching(self, spec: TaskSpec) -> TaskSpec:
        """This task's own options, so that windows are the same."""
        return self.spec

    def logits(self, outputs: Any, features: Sequence[Features]) -> list[Tensor]:
        import torch

        both = torch.stack([outputs.start_logits, outputs.end_logits], -1).float().cpu()
        return [row[self.held(len(window["input_ids"]), len(row))] for row, window in zip(both, features, strict=True)]

    def soft_targets(self, parts: Sequence[Tensor], features: Features) -> Tensor:
        """[tokens of all windows, start and end]."""
        import torch

        return torch.cat(list(parts))

    def with_soft_targets(self, features: Features, soft: NDArray[np.float32]) -> Features:
        counts = [len(window["input_ids"]) for window in features["windows"]]
        if sum(counts) != len(soft):
            raise DataError(f"soft targets of {len(soft)} tokens were given for a row of {sum(counts)}")
        windows, at = [], 0
        for window, count in zip(features["windows"], counts, strict=True):
            windows.append(window | {SOFT: soft[at : at + count]})
            at += count
        return features | {"windows": windows}

    def divergence(self, outputs: Any, features: Sequence[Features], temperatures: Tensor) -> Tensor:
        """The mean of both distances, over the tokens that can be in an answer."""
        import torch

        mine = exact(torch.stack([outputs.start_logits, outputs.end_logits], 1))
        soft = torch.zeros(mine.shape)
        for row, window in enumerate(features):
            soft[row, :, self.held(len(window[SOFT]), mine.shape[-1])] = torch.tensor(window[SOFT]).T
        never = impossible(features, mine.shape[-1], self.held).to(mine.device)[:, None].expand(mine.shape)
        heat = temperatures.to(mine)[:, None].expand(mine.shape[:2])
        return distance(mine, soft.to(mine), heat, never).mean(-1)


def impossible(windows: Sequence[Features], width: int, held: Callable[[int, int], slice]) -> Tensor:
    """The tokens that cannot be in an answer, [windows, width]: all but the context's and CLS.

    Args:
        held: where in a padded row of `width` so many tokens lie.
    """
    import torch

    found = torch.ones((len(windows), width), dtype=torch.bool)
    for row, window in enumerate(windows):
        mine = found[row, held(len(window["input_ids"]), width)]
        mine[NONE] = False
        mine[window["begin"] : window["end"]] = False
    return found
