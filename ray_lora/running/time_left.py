"""How long a run still takes: before its first step as `ray-lora plan` foresaw, then at the pace of its own steps.

    left = TimeLeft(expected=12, foreseen=(40.0, 90.0))
    left.said(records)          # "38 s to 88 s left, as plan foresaw", then "50 s to 65 s left"

It is a range while the pace so far and the pace of late differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Literal

from pydantic import BaseModel, ValidationError

from ray_lora.atomic import write_atomic
from ray_lora.recipe import Recipe
from ray_lora.running.records import Record

Kind = Literal["training", "search"]
_POINTS = 64  # that are kept of how the work went on
_ALIKE = 0.9  # of the longer time: a shorter one beyond that is not told beside it


class TimeLeft:
    """The time left of a run that has begun now.

    Args:
        expected: jobs that there will be, also those that nobody has submitted yet.
        foreseen: seconds of the whole run, at least and at most; None where nobody has asked for them.
    """

    def __init__(self, expected: int = 0, foreseen: tuple[float, float] | None = None) -> None:
        self.expected, self._foreseen = expected, foreseen
        self._started = monotonic()
        self._points: list[tuple[float, float]] = []  # when so many jobs' worth of steps were first seen

    def said(self, records: Sequence[Record]) -> str:
        """The time left if nobody is stopped; empty while nothing is known of it."""
        done, left = work(records, self.expected)
        if done and (not self._points or done > self._points[-1][1]):
            self._points.append((monotonic(), done))
            if len(self._points) > _POINTS:
                self._points = [*self._points[:-1:2], self._points[-1]]
        if len(self._points) < 2:
            return self._as_foreseen()
        if not left:
            return ""
        low, high = sorted(left * self._pace(since) for since in (0, (len(self._points) - 1) // 2))
        return f"{'at most ' if any(r.followed for r in records) else ''}{said_range(low, high)} left"

    def _pace(self, since: int) -> float:
        """Seconds for a job's worth of steps, since one of the points."""
        (began, before), (ended, done) = self._points[since], self._points[-1]
        return (ended - began) / (done - before)

    def _as_foreseen(self) -> str:
        if self._foreseen is None:
            return ""
        low, high = (max(0.0, each - (monotonic() - self._started)) for each in self._foreseen)
        return f"{said_range(low, high)} left, as plan foresaw" if high else ""


def work(records: Sequence[Record], expected: int = 0) -> tuple[float, float]:
    """How many jobs' worth of steps were made, and are left: each job counts as one, those to come too."""
    done = [record.step / record.total if record.total else 0.0 for record in records]
    left = [1 - share for record, share in zip(records, done, strict=True) if record.status in ("waiting", "running")]
    return sum(done), sum(left) + max(0, expected - len(records))


def said_time(seconds: float) -> str:
    """Seconds as people say them: `40 s`, `5 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def said_range(low: float, high: float) -> str:
    """From one time to another, or the longer alone where they are about the same."""
    return said_time(high) if low >= _ALIKE * high else f"{said_time(low)} to {said_time(high)}"


class _Kept(BaseModel):
    """What `ray-lora plan` foresaw on this machine, for the run that may follow."""

    kind: Kind
    rows: dict[str, int]
    seconds: tuple[float, float]


def keep_foreseen(recipe: Recipe, kind: Kind, rows: dict[str, int], seconds: tuple[float, float]) -> None:
    """Keep it in `$RAY_LORA_CACHE`, where a run of the same recipe finds it; where that cannot be written, nobody
    does."""
    with contextlib.suppress(OSError):
        write_atomic(_file(recipe), _Kept(kind=kind, rows=rows, seconds=seconds).model_dump_json())


def foreseen_of(recipe: Recipe, kind: Kind, rows: dict[str, int]) -> tuple[float, float] | None:
    """What was foreseen of such a run of this recipe on so many rows; None where nothing was."""
    try:
        kept = _Kept.model_validate_json(_file(recipe).read_bytes())
    except (OSError, ValidationError):
        return None
    return kept.seconds if (kept.kind, kept.rows) == (kind, rows) else None


def _file(recipe: Recipe) -> Path:
    """By all that a run's time follows from: not its name, nor where it writes."""
    told = recipe.model_dump(mode="json", exclude={"name", "output_dir", "store", "tracking"})
    key = hashlib.sha256(json.dumps([told, version("ray_lora"), version("torch")], sort_keys=True).encode()).hexdigest()
    kept = Path(os.environ.get("RAY_LORA_CACHE") or "~/.cache/ray_lora").expanduser()
    return kept / "foreseen" / f"{key[:32]}.json"
