"""Programs find a Ray that runs, as on a machine where somebody has started one; no other test's programs see it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest


@pytest.fixture(scope="module")
def running_ray() -> Iterator[Path]:
    """Ray in a folder of its own, which whatever is started in this file joins; the folder."""
    folder = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))  # short, because of sockets
    command = [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--num-cpus=2", "--port=0"]
    command += ["--include-dashboard=false", "--object-store-memory=200000000", "--disable-usage-stats"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        ray = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        while not (folder / "ray" / "ray_current_cluster").exists():
            assert ray.poll() is None, "Ray has not started"
            time.sleep(0.1)
        yield folder
        _leave()
    for process in [*psutil.Process(ray.pid).children(recursive=True), psutil.Process(ray.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    ray.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _leave() -> None:
    """What a program's part in this process may have joined."""
    import ray

    ray.shutdown()
