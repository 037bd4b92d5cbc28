"""A search's processes killed at once."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

_STATES = ("callback-states*", "experiment_state*", "search_gen_state*", "searcher-state*")


def kill(search: subprocess.Popen[Any], run: Path) -> None:
    """SIGKILL, at a moment in which none of Tune's files lies half copied: Tune writes them over the ones that it goes
    on from, and begins anew, with a word in its log, where one is cut short."""
    while True:
        os.killpg(search.pid, signal.SIGSTOP)
        if all(path.stat().st_size for name in _STATES for path in run.rglob(name)):
            break
        os.killpg(search.pid, signal.SIGCONT)
        time.sleep(0.01)
    os.killpg(search.pid, signal.SIGKILL)
    search.wait()
