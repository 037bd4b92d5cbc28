"""Whether answers are numbers at all. It knows answers, no adapters and no passes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ray_lora.errors import AdapterError

NOT_FINITE = (
    "the adapter's answers are not finite numbers: its weights are out of range for this base and dtype; train it "
    "again with a lower rate, or fetch it again"
)


class NotFiniteError(AdapterError):
    """Answers are not finite numbers; `slots` says whose."""

    slots: frozenset[int] = frozenset()


def is_finite(answer: Any) -> bool:
    """Whether every number in an answer, or a part of one, is one."""
    if isinstance(answer, Tensor):
        return bool(answer.isfinite().all())
    if isinstance(answer, float):
        return math.isfinite(answer)
    if isinstance(answer, Mapping):
        return all(map(is_finite, answer.values()))
    return all(map(is_finite, answer)) if isinstance(answer, (list, tuple)) else True
