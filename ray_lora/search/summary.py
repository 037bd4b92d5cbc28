"""What is known of a finished search, as plain data: what `summary.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One configuration's end. `adapter` is its PEFT folder as its last evaluation found it: `metrics` are its scores.
    None when it failed, or was never evaluated."""

    name: str
    config: dict[str, Any]
    metrics: dict[str, float]
    status: str
    adapter: str | None
    seconds: float | None = None
    bytes: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Summary:
    """A finished search.

    Attributes:
        trials: best first.
        smallest: of the smallest rank within one standard error of the best.
        default: with the recipe's own values of all searched keys, where that was tried.
        rows: validation rows.
        importance: each searched key's share of the scores' variance; empty where too few were tried to say.
    """

    metric: str
    mode: str
    trials: list[Trial]
    best: Trial | None
    smallest: Trial | None
    default: Trial | None
    seconds: float
    rows: int
    importance: dict[str, float]
    advice: str
    plots: list[str] = field(default_factory=list)

    @classmethod
    def recall(cls, told: Mapping[str, Any]) -> Summary:
        """A summary from what `asdict` made of it, as in `summary.json`."""
        trials = [Trial(**trial) for trial in told["trials"]]

        def marked(mark: str) -> Trial | None:
            name = (told[mark] or {}).get("name")
            return next((trial for trial in trials if trial.name == name), None)

        return cls(
            metric=told["metric"],
            mode=told["mode"],
            trials=trials,
            best=marked("best"),
            smallest=marked("smallest"),
            default=marked("default"),
            seconds=told["seconds"],
            rows=told["rows"],
            importance=told["importance"],
            advice=told["advice"],
            plots=told["plots"],
        )
