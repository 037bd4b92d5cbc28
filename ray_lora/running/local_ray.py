"""Ray, where none runs yet. Knows nothing of what runs on it."""

from __future__ import annotations

import logging

import ray


def start_ray() -> None:
    """Join the running cluster, or start Ray on this machine."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
