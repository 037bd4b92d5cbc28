"""What is known of a finished search, as plain data: what `summary.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One configuration's end.

    Attributes:
        metrics: scores of its last evaluation.
        adapter: its PEFT folder as that evaluation found it; None when it failed, or was never evaluated.
        rows: validation rows that the scores were taken on; None for all of them.
        pareto: where several metrics decide: whether no other trial beats it in one without being worse in another.
        rungs: in a search that ends early, the deciding score at each evaluation by eighths of the steps, `{"1": 0.7}`.
        parent, since: of a clone, the trial whose configuration it had otherwise, and the step of that trial's
            checkpoint from which it went on, 0 for none.
    """

    name: str
    config: dict[str, Any]
    metrics: dict[str, float]
    status: str
    adapter: str | None
    seconds: float | None = None
    bytes: int | None = None
    error: str | None = None
    rows: int | None = None
    rungs: dict[str, float] = field(default_factory=dict)
    parent: str | None = None
    since: int | None = None
    pareto: bool = False


@dataclass(frozen=True)
class Summary:
    """A finished search.

    Attributes:
        metric, mode: the first of `objectives`, which are the metrics that decide and their modes.
        best: the first trial; where several metrics decide, the one that `choice` says, in a sentence.
        trials: best first; those that were scored on more of the validation rows come before others.
        smallest: of the smallest rank within one standard error of the best.
        default: with the recipe's own values of all searched keys, where that was tried.
        rows: validation rows.
        importance: each searched key's share of the scores' variance; empty where too few were tried to say. Of a
            search that ends early, of the scores at the first rung, which every trial came to.
        ending: how trials were stopped, in a sentence.
        alarms: what is wrong with the search itself, a sentence each.
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
    ending: str = ""
    alarms: list[str] = field(default_factory=list)
    objectives: list[tuple[str, str]] = field(default_factory=list)
    choice: str = ""

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
            ending=told.get("ending", ""),
            alarms=told.get("alarms", []),
            objectives=[(name, mode) for name, mode in told.get("objectives", [])],
            choice=told.get("choice", ""),
        )
