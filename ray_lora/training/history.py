"""What a job has logged, a line a report, in the job's own folder.

Its pack writes it, so that a killed driver loses none.

{"step": 10, "time": 1795466222.4, "metrics": {"loss": 0.41, "learning_rate": 0.001}}
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILE = "history.jsonl"


def write_history(
    folder: Path, step: int, metrics: Mapping[str, float], rung: Mapping[str, float] | None = None
) -> None:
    """Append what was logged at a step.

    Args:
        rung: of an evaluation of a job with rungs, its `Report.rung`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _FILE).open("a") as file:
        line = {"step": step, "time": time.time(), "metrics": dict(metrics)} | ({"rung": dict(rung)} if rung else {})
        file.write(json.dumps(line) + "\n")


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Every line; a step that was repeated after a kill stands twice. A line that was cut off by a kill is left out."""
    path = folder / _FILE
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]
