"""One cluster of four CPUs for all tests of this folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture
def own_ray() -> Iterator[dict[str, str]]:
    """The environment of a program that starts a cluster which no other program of this machine is to join: Ray joins
    whatever runs in its folder. The folder's name is short, because of sockets."""
    folder = tempfile.mkdtemp(prefix="rl-", dir="/tmp")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    yield environment | {"RAY_TMPDIR": folder, "PYTHONPATH": str(Path(__file__).parents[2])}
    shutil.rmtree(folder, ignore_errors=True)


def _start() -> None:
    """Ray with four CPUs, which are what Ray counts, not what there is."""
    import ray

    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=200 << 20
    )


def _stop() -> None:
    import ray

    ray.shutdown()
