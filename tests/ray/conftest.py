"""One cluster of two CPUs, as small machines have, for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ray_lora.data.row_cache import FOLDER


@pytest.fixture(scope="session", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray on this machine, whose encoded rows are nobody else's."""
    os.environ[FOLDER] = str(tmp_path_factory.mktemp("rows"))
    _start()
    yield
    _stop()
    del os.environ[FOLDER]


@pytest.fixture(scope="module")
def fresh_cluster(cluster: None) -> None:
    """A cluster whose metrics and logs hold nothing of other modules; it stays for those that follow."""
    _stop()
    _start()


def _start() -> None:
    """Ray with two CPUs, which are what Ray counts, not what there is."""
    import ray

    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=200 << 20
    )


def _stop() -> None:
    import ray

    ray.shutdown()
