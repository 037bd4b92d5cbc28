"""One cluster of four CPUs for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine."""
    _start()
    yield
    _stop()


@pytest.fixture(scope="module")
def fresh_cluster(cluster: None) -> None:
    """A cluster whose metrics and logs hold nothing of other modules; it stays for those that follow."""
    _stop()
    _start()


def _start() -> None:
    """Ray with four CPUs, which are what Ray counts, not what there is."""
    import ray

    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=200 << 20
    )


def _stop() -> None:
    import ray

    ray.shutdown()
