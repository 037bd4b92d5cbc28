"""Trials of versions in MLflow: one run each, in the experiment of the adapter's name, with metrics a version.

Of the replicas that share a folder the one that holds its lock tells for all. Sending is the tracker's, in a thread of
its own, so MLflow that is away never hurts serving. Knows no HTTP and no engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from ray_lora.errors import RayLoraError
from ray_lora.recipe import Json
from ray_lora.serving.trials.compare import Outcome, compare, read_results
from ray_lora.serving.trials.tally import Arm
from ray_lora.tracking import Tracker

_PATIENCE_S = 5.0  # with MLflow, when a trial or the endpoint ends


class AbRuns:
    """Tells MLflow at `uri` what the results of a folder say. `send` may be called from any one thread at a time.

    Args:
        trial_of: the trial that a name is in now ("" for none); RayLoraError when that is not known.
    """

    def __init__(self, folder: Path, uri: str, trial_of: Callable[[str], str]) -> None:
        self._folder, self._uri, self._trial_of = folder, uri, trial_of
        self._lock = FileLock(folder / ".mlflow.lock", timeout=0, thread_local=False)
        self._trackers: dict[str, tuple[str, Tracker]] = {}  # name -> its trial and that one's run
        self._told: dict[str, dict[str, float]] = {}  # name -> what was told last

    def send(self) -> None:
        """Tell what is new."""
        try:
            self._lock.acquire()
        except (Timeout, OSError):
            return  # another replica does it, or nobody can
        results = read_results(self._folder)
        for name in sorted({arm.name for arm in results if arm.began}):
            found = compare(results, name)
            metrics = _metrics(found)
            if metrics != self._told.get(name):
                self._told[name] = metrics
                self._tell(name, found["began"], metrics, results)

    def close(self) -> None:
        """Send what is left, for some seconds at most."""
        for _, tracker in self._trackers.values():
            tracker.close(_PATIENCE_S)
        self._trackers.clear()
        self._lock.release()

    def _tell(self, name: str, began: str, metrics: dict[str, float], results: dict[Arm, Outcome]) -> None:
        known = self._trackers.get(name)
        if known is None or known[0] != began:
            if known is not None:
                known[1].close(_PATIENCE_S)
            tracker = Tracker(self._uri, name)
            arms = sorted(arm for arm in results if (arm.name, arm.began) == (name, began))
            versions = {kind: [arm.version for arm in arms if arm.variant == kind] for kind in _ON_TRIAL}
            tracker.open_run(f"trial|{name}|{began}", f"{name} since {began[:19]}", {"began": began, **versions}, {})
            known = self._trackers[name] = (began, tracker)
        known[1].log("", int(time.time()), metrics)
        if self._ended(name, began):
            known[1].finish_parent("FINISHED")
            known[1].close(_PATIENCE_S)
            del self._trackers[name]

    def _ended(self, name: str, began: str) -> bool:
        try:
            return self._trial_of(name) != began
        except RayLoraError:
            return False


_ON_TRIAL = ("split", "shadow")


def _metrics(found: dict[str, Json]) -> dict[str, float]:
    """`requests.v3`, `feedback_mean.v4`, `requests.v5.shadow`, `p_value.feedback.v4`, …"""
    metrics: dict[str, float] = {}
    for row in found["versions"]:
        if row["variant"] in _ON_TRIAL:
            place = f"v{row['version']}" + (".shadow" if row["variant"] == "shadow" else "")
            for key in ("requests", "errors", "dropped", "mean_ms", "p50_ms", "p95_ms", "feedback", "feedback_mean"):
                if row[key] is not None:
                    metrics[f"{key}.{place}"] = float(row[key])
            metrics |= {f"label.{label}.{place}": float(count) for label, count in row["labels"].items()}
    for test in found["tests"]:
        if test["p_value"] is not None:
            metrics[f"p_value.{test['metric']}.v{test['versions'][1]}"] = test["p_value"]
    return metrics
