"""What a search has to say at its end: the table, the best, the smallest rank that is as good, what mattered, what to
try next."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import ResultGrid
from rich.table import Table

from ray_lora.adapters.adapter import Adapter
from ray_lora.inference.intervals import scored_on
from ray_lora.running.progress import describe
from ray_lora.running.records import Record
from ray_lora.search.advice import advice, smallest
from ray_lora.search.alarms import unreached
from ray_lora.search.importance import importances
from ray_lora.search.objectives import Objective, chosen, front
from ray_lora.search.origin import read_origin
from ray_lora.search.plots import draw
from ray_lora.search.summary import Summary, Trial
from ray_lora.tracking.plain import table
from ray_lora.training.history import read_history
from ray_lora.training.rungs import WHOLE

if TYPE_CHECKING:
    from ray_lora.tracking import Tracker


def summarise(
    grid: ResultGrid,
    records: Sequence[Record],
    output: Path,
    objectives: Sequence[Objective],
    seconds: float,
    rows: int,
    default: Mapping[str, Any],
    ending: str = "",
    alarms: Sequence[str] = (),
) -> Summary:
    """Put the trials of Ray's ResultGrid in order.

    Args:
        records: the coordinator's, for states and times of this session's trials.
        objectives: the metrics that decide; where there are several, the best is the one that `chosen` takes.
        rows: validation rows, for the standard error.
        default: the recipe's own values of the searched keys, and of those that clones have values for.
        ending, alarms: as in `Summary`.
    """
    metric, mode = objectives[0]
    known = {record.job.name: record for record in records}
    trials = [_trial(grid[number], known, output, metric, rows) for number in range(len(grid))]
    # a key that only clones have other values for is the recipe's own in all other trials
    trials = [replace(trial, config=trial.config | _missing(default, trial.config)) for trial in trials]
    sign = -1 if mode == "max" else 1
    trials.sort(key=lambda trial: _place(trial, metric, sign, rows))
    scored = [trial for trial in trials if _ranked(trial, metric)]
    even = [trial for trial in scored if trial.rows == scored[0].rows]  # of scores that can be compared
    best, choice = (scored[0] if scored else None), ""
    if len(objectives) > 1 and even:
        whole = [trial for trial in even if all(math.isfinite(each.cost(trial)) for each in objectives)] or even[:1]
        names = {trial.name for trial in front(whole, objectives)}
        trials = [replace(trial, pareto=trial.name in names) for trial in trials]
        marked = {trial.name: trial for trial in trials}
        scored, even, whole = ([marked[trial.name] for trial in some] for some in (scored, even, whole))
        best, choice = chosen(whole, objectives, whole[0].rows or rows)
    first = min((rung for trial in scored for rung in trial.rungs), default=None)
    own = [trial for trial in scored if not trial.since]  # what others learnt from a parent is not their keys' doing
    tried = [(t.config, t.rungs[first]) for t in own if first in t.rungs] if first is not None else None
    return Summary(
        metric=metric,
        mode=mode,
        trials=trials,
        best=best,
        smallest=smallest(even, metric, mode, even[0].rows or rows) if even else None,
        default=next((trial for trial in own if trial.config == default), None),
        seconds=seconds,
        rows=rows,
        importance=importances(tried or [(trial.config, trial.metrics[metric]) for trial in own]),
        advice=advice(scored, metric, mode, rows),
        ending=ending,
        alarms=[*alarms, *unreached(scored)],
        objectives=[(each.name, each.mode) for each in objectives],
        choice=choice,
    )


def _missing(default: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in default.items() if key not in config}


def _place(trial: Trial, metric: str, sign: int, rows: int) -> tuple[bool, int, float]:
    """Where a trial stands: a score on part of the rows is never counted above one on more of them."""
    if not _ranked(trial, metric):
        return True, 0, 0.0
    return False, -(trial.rows or rows), sign * trial.metrics[metric]


def _ranked(trial: Trial, metric: str) -> bool:
    """Whether a trial has an adapter and a score that can be compared: no number is neither better nor worse."""
    return trial.adapter is not None and math.isfinite(trial.metrics.get(metric, math.nan))


def leaderboard(summary: Summary, most: int = 30) -> Table:
    """The trials as a table, best first: what was searched, the score with its interval, how it ended, what it cost."""
    shown = Table(title=f"{len(summary.trials)} configurations in {summary.seconds:.0f} s", title_justify="left")
    more_metrics = [name for name, _ in summary.objectives[1:]]
    for column in ("configuration", summary.metric, *more_metrics, "state", "seconds", "file"):
        shown.add_column(column, justify="left" if column in ("configuration", "state") else "right")
    for trial in summary.trials[:most]:
        mark = " *" if trial is summary.best else " ~" if trial is summary.smallest else ""
        mark += " P" if trial.pareto else ""
        shown.add_row(
            describe(trial.config) + _begun(trial) + mark,
            said(summary, trial),
            *(f"{trial.metrics[name]:.6g}" if name in trial.metrics else "-" for name in more_metrics),
            trial.status + _where(trial) + (f": {trial.error.splitlines()[0][:60]}" if trial.error else ""),
            f"{trial.seconds:.0f}" if trial.seconds is not None else "-",
            f"{trial.bytes / 1e6:.2f} MB" if trial.bytes is not None else "-",
        )
    left = len(summary.trials) - most
    more = f"\n{left} more are in leaderboard.csv" if left > 0 else ""
    pareto = "   P no other is better in one metric and as good in the rest" if more_metrics else ""
    shown.caption = f"* best   ~ smallest rank within one standard error of it{pareto}{more}"
    return shown


def _begun(trial: Trial) -> str:
    """Where a clone went on from."""
    return f" (from step {trial.since} of {trial.parent})" if trial.since else ""


def _where(trial: Trial) -> str:
    """At which part of its steps a trial was stopped."""
    reached = max((int(rung) for rung in trial.rungs), default=WHOLE)
    return f" at {Fraction(reached, WHOLE)}" if trial.status == "stopped" and reached < WHOLE else ""


def said(summary: Summary, trial: Trial) -> str:
    """A trial's score with the half of its 95 % interval, where the score is a share of the validation rows; and of
    how many, where those are not all."""
    score = trial.metrics.get(summary.metric)
    if score is None:
        return "-"
    rows = trial.rows or summary.rows
    return scored_on(score, rows, summary.mode) + (f" on {rows} rows" if rows < summary.rows else "")


def closing(summary: Summary) -> list[Any]:
    """What a person reads at the end: the table, then a line each of what follows from it."""
    lines: list[Any] = [leaderboard(summary)]
    best, small, default = summary.best, summary.smallest, summary.default
    if best is not None:
        lines.append(f"best        {describe(best.config)}: {summary.metric} {said(summary, best)}")
    if summary.choice:
        lines.append(f"choice      {summary.choice}")
    if best is not None and default is not None and default is not best:
        lines.append(
            f"default     {describe(default.config)}: {said(summary, default)}; {_gained(summary, best, default)}"
        )
    elif default is not None:
        lines.append("default     the best has the recipe's own values")
    else:
        lines.append("default     the recipe's own values were not among what was tried")
    if small is not None and small is not best:
        lines.append(f"smallest    {describe(small.config)}: {said(summary, small)}")
    if summary.importance:
        shares = ", ".join(f"{key.rpartition('.')[2]} {share:.0%}" for key, share in summary.importance.items())
        early = " at the first rung" if any(trial.rungs for trial in summary.trials) else ""
        lines.append(f"importance  {shares} of the scores' variance{early} (fANOVA over {len(summary.trials)} trials)")
    lines.append(f"advice      {summary.advice}")
    lines += [f"ALARM       {alarm}" for alarm in summary.alarms]
    if summary.ending:
        lines.append(f"stopping    {summary.ending}")
    if summary.plots:
        lines.append(f"plots       {', '.join(summary.plots)}")
    return lines


def _gained(summary: Summary, best: Trial, default: Trial) -> str:
    """How far the best is from the recipe's own values, on rows that both were scored on."""
    if best.rows == default.rows:
        return f"the best is {best.metrics[summary.metric] - default.metrics[summary.metric]:+.4f} from it"
    shared = max((int(rung) for rung in default.rungs if rung in best.rungs), default=None)
    if shared is None:
        return "it and the best have no rows in common that both were scored on"
    gain = best.rungs[str(shared)] - default.rungs[str(shared)]
    return f"the best was {gain:+.4f} from it at {Fraction(shared, WHOLE)} of the steps, on the same rows"


def write(summary: Summary, tracker: Tracker, output: Path) -> Summary:
    """Write summary.json, leaderboard.csv and the plots into the run's folder and into MLflow; returns the summary with
    its plots."""
    summary = replace(summary, plots=draw(summary, output))
    (output / "summary.json").write_text(json.dumps(asdict(summary), indent=2))
    several = len(summary.objectives) > 1
    rows = [
        {**trial.config, **trial.metrics, **({"pareto": trial.pareto} if several else {}), "status": trial.status}
        for trial in summary.trials
    ]
    (output / "leaderboard.csv").write_text(table(rows), encoding="utf-8")
    for path in [*summary.plots, str(output / "summary.json"), str(output / "leaderboard.csv")]:
        tracker.log_artifact(Path(path))
    return summary


def _trial(result: Any, known: Mapping[str, Record], output: Path, metric: str, rows: int) -> Trial:
    metrics = result.metrics or {}
    name = str(metrics.get("trial_id") or Path(result.path).name)
    record = known.get(name)
    folder = output / "jobs" / name / "adapter"
    kept = folder.exists() and result.error is None
    finished = kept and metrics.get("step") == metrics.get("total_steps")
    status = record.status if record else "finished" if finished else "failed" if result.error else "stopped"
    scores = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float)) and k in _kept(metrics)}
    card = Adapter.load(folder).card if kept else None
    own = card.metrics if card is not None else {}
    counted = scores.get("validation_rows")
    if card is not None and any(scores.get(key) != value for key, value in own.items()):
        scores = dict(own)  # it was evaluated once more than Tune heard of before the search was ended
        counted = (card.recipe or {}).get("evaluated", {}).get("validation_rows")
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if kept else None
    error = str(result.error).strip().splitlines()[-1] if result.error else None
    took = (record.ended or 0) - (record.started or 0) if record and record.ended else metrics.get("time_total_s")
    config, adapter = dict(result.config or {}), str(folder) if kept else None
    part = int(counted) if counted is not None and counted < rows else None
    folder = output / "jobs" / name
    origin = read_origin(folder)
    came = (origin.trial, origin.step) if origin is not None else (None, None)
    return Trial(name, config, scores, status, adapter, took, size, error, part, _rungs(folder, metric), *came)


def _rungs(folder: Path, metric: str) -> dict[str, float]:
    """The score at each rung that a job came to, from its history."""
    lines = [line for line in read_history(folder) if line.get("rung") and metric in line["metrics"]]
    return {str(line["rung"]["eighths"]): line["metrics"][metric] for line in lines}


def _kept(metrics: Mapping[str, Any]) -> set[str]:
    """The names in a Tune result that are ours."""
    own = {
        "timestamp", "time_this_iter_s", "time_total_s", "pid", "time_since_restore", "iterations_since_restore",
        "training_iteration", "done", "checkpoint_dir_name", "should_checkpoint",
    }  # fmt: skip
    return {name for name in metrics if name not in own}
