"""Ray, where none runs yet, and Ray Data without a word of its own. Knows nothing of what runs on them."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import ray

from ray_lora.errors import RayLoraError
from ray_lora.uncollected import uncollected

_TRIES = 2  # of half a minute each, which Ray gives its own processes
_LATE = "timed out during startup"  # as Ray says it
_LONGEST = 300  # letters of a reason


class StartError(RayLoraError, ConnectionError):
    """Ray or Serve did not come up, or a replica did not."""


def start_ray() -> None:
    """Join the running cluster, or start Ray on this machine.

    Raises:
        StartError: it did not come up.
    """
    if ray.is_initialized():
        return
    with in_a_sentence("Ray"):
        for left in reversed(range(_TRIES)):
            try:
                ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
                return
            except Exception as error:
                if not left or _LATE not in str(error):  # on a busy machine a second try comes through
                    raise
                ray.shutdown()


def start_importing(module: str) -> None:
    """`start_ray`, and meanwhile import a module, which takes as long.

    Raises:
        StartError: as `start_ray`.
    """
    with uncollected(), ThreadPoolExecutor(1) as aside:
        imported = aside.submit(importlib.import_module, module)
        start_ray()
        imported.result()


@contextlib.contextmanager
def in_a_sentence(what: str) -> Iterator[None]:
    """StartError in place of what Ray raises while `what` starts, which is pages long; errors of ours pass."""
    try:
        yield
    except RayLoraError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[-1][:_LONGEST] if lines else type(error).__name__
        raise StartError(
            f"{what} could not be started ({why}); where the machine is busy, try again, else see Ray's logs in "
            "session_latest/logs of its folder"
        ) from None


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
