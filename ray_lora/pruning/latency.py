"""How long models take for one row, side by side. It knows modules and inputs, nothing of what was cut."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def milliseconds(models: Sequence[nn.Module], rows: Sequence[Mapping[str, Tensor]]) -> list[float]:
    """Each model's median over rows, one thread, in turns, so that what else the machine does meets all alike.

    Args:
        rows: inputs of one row each.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spent: list[list[float]] = [[] for _ in models]
    try:
        with torch.inference_mode():
            for number, inputs in enumerate([rows[0], *rows]):
                for model, mine in zip(models, spent, strict=True):
                    began = time.perf_counter()
                    model(**inputs)
                    if number:  # the first warms up
                        mine.append(1000 * (time.perf_counter() - began))
    finally:
        torch.set_num_threads(threads)
    return [round(statistics.median(mine), 3) for mine in spent]
