"""Imports while the garbage collector waits, in an interpreter of its own: a run of tests has millions of objects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECKS = Path(__file__).with_name("uncollected_checks.py")


def test_imports_while_the_collector_waits() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-n", "0", str(CHECKS)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, capture_output=True, text=True, env=plain)
    assert done.returncode == 0, done.stdout
    assert "6 passed" in done.stdout
