"""How a running search stands: each trial's configuration, state, place and last score, as plain data.

    standing(trials, ready, records, searched, jobs)[0]
    # {"name": "1a2b3_00000", "config": {"lora.r": 4}, "status": "running", "step": 12, "total": 24, ...}

Tune knows all trials, the coordinator those of this session, and these a little sooner. `curves` has what the jobs'
histories say, for a page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial

from ray_lora.inference.intervals import scored_on
from ray_lora.recipe import Json
from ray_lora.running.records import Record
from ray_lora.search.cloning import Searched
from ray_lora.search.origin import read_origin
from ray_lora.training.history import read_history


def standing(
    trials: Sequence[Trial], ready: Sequence[Trial], records: Sequence[Record], searched: Searched, jobs: Path
) -> list[dict[str, Json]]:
    """All trials in their order.

    Args:
        ready: those that Tune has not got yet.
        records: the coordinator's.
        jobs: the folder of the jobs' folders.
    """
    known = {record.job.name: record for record in records}
    return [_trial(trial, known.get(trial.trial_id), searched, jobs) for trial in [*trials, *ready]]


def _trial(trial: Trial, record: Record | None, searched: Searched, jobs: Path) -> dict[str, Json]:
    last = trial.last_result or {}
    if record is not None and record.total:
        step, total, metrics, rows = record.step, record.total, record.metrics, record.rows
    else:
        metrics = {key: value for key, value in last.items() if key == searched.metric}
        step, total, rows = last.get("step", 0), last.get("total_steps", 0), last.get("validation_rows")
    metrics = metrics or {key: value for key, value in last.items() if key == searched.metric}
    score = metrics.get(searched.metric)
    score = score if score is not None and math.isfinite(score) else None
    origin = read_origin(jobs / trial.trial_id)
    return {
        "name": trial.trial_id,
        "config": trial.config,
        "status": _status(trial, record),
        "step": step,
        "total": total,
        "loss": _finite(record.loss if record is not None else None),
        "score": score,
        "said": "" if score is None else scored_on(score, int(rows or searched.rows), searched.mode),
        "rows": int(rows) if rows and rows < searched.rows else None,
        "parent": origin.trial if origin is not None else None,
        "since": origin.step if origin is not None else None,
        "error": record.error if record is not None else None,
    }


def _status(trial: Trial, record: Record | None) -> str:
    """In the coordinator's words."""
    if trial.status in (Trial.PENDING, Trial.PAUSED):
        return "waiting"
    if trial.status == Trial.ERROR:
        return "failed"
    if record is not None and (trial.status == Trial.RUNNING or record.status == "finished"):
        return record.status
    last = trial.last_result or {}
    if trial.status == Trial.TERMINATED:
        return "finished" if "step" in last and last["step"] == last.get("total_steps") else "stopped"
    return "running"


def curves(jobs: Path, names: Sequence[str], metric: str) -> dict[str, list[tuple[int, float]]]:
    """Steps and scores of each trial's evaluations."""
    return {name: _curve(read_history(jobs / name), metric) for name in names}


def _curve(lines: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    """A step that was made again after a kill has its last score; training's own losses are left out."""
    evaluated = {
        line["step"]: line["metrics"][metric]
        for line in lines
        if metric in line["metrics"] and len(line["metrics"].keys() - {"loss", "learning_rate", "grad_norm"}) > 0
    }
    return sorted((step, value) for step, value in evaluated.items() if math.isfinite(value))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
