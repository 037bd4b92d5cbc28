"""What each run was told already, by this process or one before it on the same record: nothing is told twice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ray_lora.tracking.journal import Event

PARENT = ""  # the parent's place among the jobs


@dataclass
class Told:
    """One run's state as MLflow will show it when everything has arrived."""

    status: str = "RUNNING"
    last: dict[str, int] = field(default_factory=dict)  # metric -> its last step
    not_finite: int = 0
    adapter: str | None = None

    def fresh(self, step: int, metrics: Mapping[str, float | None]) -> dict[str, float]:
        """The finite metrics that this step is the first to tell, remembered; others are counted in `not_finite`."""
        fresh = {}
        for key, value in metrics.items():
            if value is None or step <= self.last.get(key, -1):
                continue
            self.last[key] = step
            if math.isfinite(value):
                fresh[key] = float(value)
            else:
                self.not_finite += 1
                fresh["not_finite"] = float(self.not_finite)
        return fresh


def remember(events: Iterable[Event]) -> tuple[str, dict[str, Told]]:
    """(the parent's key, each job's state) after these events; the key is empty when no parent was opened."""
    key = ""
    told: dict[str, Told] = {}
    for event in events:
        job, kind = str(event.get("job", PARENT)), event["event"]
        if kind == "parent":
            key = event["key"]
            told[PARENT] = Told()
        elif kind == "child":
            told[job] = Told()
        elif kind == "reopen":
            told[job].status = "RUNNING"
        elif kind in ("log", "end"):
            state = told[job]
            state.last |= dict.fromkeys(event["metrics"], event["step"])
            state.not_finite = int(event["metrics"].get("not_finite", state.not_finite))
            if kind == "end":
                state.status, state.adapter = event["status"], event["adapter"]
    return key, told
