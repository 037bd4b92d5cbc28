"""Ray, where none runs yet, and Ray Data without a word of its own. Knows nothing of what runs on them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import ray


def start_ray() -> None:
    """Join the running cluster, or start Ray on this machine."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)


@contextlib.contextmanager
def quiet_data() -> Iterator[None]:
    """Ray Data without bars and lines of its own."""
    from ray.data import DataContext

    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    bars, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)
