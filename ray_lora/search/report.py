"""What a search has to say at its end: the table, the best, the smallest rank that is as good, what to try next,
plots."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import ResultGrid
from rich.table import Table

from ray_lora.adapters.adapter import Adapter
from ray_lora.inference.intervals import standard_error
from ray_lora.running.coordinator import Record
from ray_lora.running.progress import describe
from ray_lora.training.history import read_history

if TYPE_CHECKING:
    from ray_lora.tracking import Tracker

_RATE, _RANK = "training.learning_rate", "lora.r"


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
    """A finished search."""

    metric: str
    mode: str
    trials: list[Trial]  # best first
    best: Trial | None
    smallest: Trial | None  # of the smallest rank within one standard error of the best
    seconds: float
    advice: str
    plots: list[str] = field(default_factory=list)


def summarise(
    grid: ResultGrid, records: Sequence[Record], output: Path, metric: str, mode: str, seconds: float, rows: int
) -> Summary:
    """Put the trials of Ray's ResultGrid in order.

    Args:
        records: the coordinator's, for states and times of this session's trials.
        rows: validation rows, for the standard error.
    """
    known = {record.job.name: record for record in records}
    trials = [_trial(grid[number], known, output) for number in range(len(grid))]
    sign = -1 if mode == "max" else 1
    trials.sort(key=lambda t: (not _ranked(t, metric), sign * t.metrics[metric] if _ranked(t, metric) else 0.0))
    scored = [trial for trial in trials if _ranked(trial, metric)]
    best = scored[0] if scored else None
    smallest = _smallest(scored, metric, mode, rows) if best is not None else None
    return Summary(metric, mode, trials, best, smallest, seconds, _advice(scored, metric, mode, rows))


def _ranked(trial: Trial, metric: str) -> bool:
    """Whether a trial has an adapter and a score that can be compared: no number is neither better nor worse."""
    return trial.adapter is not None and math.isfinite(trial.metrics.get(metric, math.nan))


def leaderboard(summary: Summary, most: int = 30) -> Table:
    """The trials as a table, best first."""
    shown = Table(title=f"{len(summary.trials)} configurations in {summary.seconds:.0f} s", title_justify="left")
    for column in ("configuration", summary.metric, "state", "seconds", "file"):
        shown.add_column(column, justify="left" if column in ("configuration", "state") else "right")
    for trial in summary.trials[:most]:
        score = trial.metrics.get(summary.metric)
        mark = " *" if trial is summary.best else " ~" if trial is summary.smallest else ""
        shown.add_row(
            describe(trial.config) + mark,
            f"{score:.4f}" if score is not None else "-",
            trial.status + (f": {trial.error.splitlines()[0][:60]}" if trial.error else ""),
            f"{trial.seconds:.0f}" if trial.seconds is not None else "-",
            f"{trial.bytes / 1e6:.2f} MB" if trial.bytes is not None else "-",
        )
    shown.caption = "* best   ~ smallest rank within one standard error of it"
    return shown


def write(summary: Summary, tracker: Tracker, output: Path) -> Summary:
    """Write summary.json and the plots into the run's folder and into MLflow; returns the summary with its plots."""
    plots = draw(summary, output)
    (output / "summary.json").write_text(json.dumps(asdict(summary) | {"plots": plots}, indent=2))
    tracker.leaderboard([{**trial.config, **trial.metrics, "status": trial.status} for trial in summary.trials])
    for path in [*plots, str(output / "summary.json")]:
        tracker.log_artifact(Path(path))
    return Summary(**{**summary.__dict__, "plots": plots})


def draw(summary: Summary, output: Path) -> list[str]:
    """Learning curves of all configurations, and rank x rate against the score where both were searched."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    paths = []
    curves = {trial.name: _curves(output / "jobs" / trial.name, summary.metric) for trial in summary.trials}
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for number, trial in enumerate(summary.trials):
        style = {"color": colours[number % 20], "marker": "o", "markersize": 3, "lw": 1.2}
        for axis, key in ((left, "loss"), (right, summary.metric)):
            points = curves[trial.name][key]
            if points:
                axis.plot(*zip(*points, strict=True), label=describe(trial.config), **style)
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    right.set(xlabel="step", ylabel=summary.metric)
    handles, labels = right.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", fontsize="x-small")
    paths.append(str(output / "learning_curves.png"))
    figure.savefig(paths[-1], dpi=120)
    cells = _cells(summary)
    if cells:
        paths.append(str(output / "rank_by_rate.png"))
        _heat_map(cells, summary.metric).savefig(paths[-1], dpi=120)
    return paths


def _heat_map(cells: Mapping[tuple[int, float], float], metric: str) -> Any:
    from matplotlib.figure import Figure

    ranks, rates = sorted({rank for rank, _ in cells}), sorted({rate for _, rate in cells})
    figure = Figure(figsize=(1.6 + 1.1 * len(rates), 1.4 + 0.6 * len(ranks)), layout="constrained")
    axis = figure.subplots()
    grid = [[cells.get((rank, rate), math.nan) for rate in rates] for rank in ranks]
    image = axis.imshow(grid, origin="lower", aspect="auto", cmap="viridis")
    low, high = min(cells.values()), max(cells.values())
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            if not math.isnan(value):
                light = value < (low + high) / 2
                axis.text(x, y, f"{value:.3f}", ha="center", va="center", color="white" if light else "black")
    axis.set_xticks(range(len(rates)), [f"{rate:.3g}" for rate in rates])
    axis.set_yticks(range(len(ranks)), [str(rank) for rank in ranks])
    axis.set(xlabel="learning rate", ylabel="rank")
    figure.colorbar(image, label=metric)
    return figure


def _cells(summary: Summary) -> dict[tuple[int, float], float]:
    """(rank, rate) -> best score there, when both were searched and few enough values to show."""
    cells: dict[tuple[int, float], float] = {}
    better = max if summary.mode == "max" else min
    for trial in summary.trials:
        score = trial.metrics.get(summary.metric, math.nan)
        if _RANK in trial.config and _RATE in trial.config and math.isfinite(score):
            at = (trial.config[_RANK], trial.config[_RATE])
            cells[at] = better(cells.get(at, score), score)
    return cells if len({rate for _, rate in cells}) <= 12 else {}


def _curves(folder: Path, metric: str) -> dict[str, list[tuple[int, float]]]:
    """ "loss" and the metric -> (step, value) points, a resumed job's repeated steps once."""
    found: dict[str, dict[int, float]] = {"loss": {}, metric: {}}
    for line in read_history(folder):
        for key, points in found.items():
            if key in line["metrics"]:
                points[line["step"]] = line["metrics"][key]
    return {key: sorted(points.items()) for key, points in found.items()}


def _trial(result: Any, known: Mapping[str, Record], output: Path) -> Trial:
    metrics = result.metrics or {}
    name = str(metrics.get("trial_id") or Path(result.path).name)
    record = known.get(name)
    folder = output / "jobs" / name / "adapter"
    kept = folder.exists() and result.error is None
    finished = kept and metrics.get("step") == metrics.get("total_steps")
    status = record.status if record else "finished" if finished else "failed" if result.error else "stopped"
    scores = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float)) and k in _kept(metrics)}
    own = Adapter.load(folder).card.metrics if kept else {}
    if any(scores.get(key) != value for key, value in own.items()):
        scores = dict(own)  # it was evaluated once more than Tune heard of before the search was ended
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if kept else None
    error = str(result.error).strip().splitlines()[-1] if result.error else None
    took = (record.ended or 0) - (record.started or 0) if record and record.ended else metrics.get("time_total_s")
    return Trial(name, dict(result.config or {}), scores, status, str(folder) if kept else None, took, size, error)


def _kept(metrics: Mapping[str, Any]) -> set[str]:
    """The names in a Tune result that are ours."""
    own = {
        "timestamp", "time_this_iter_s", "time_total_s", "pid", "time_since_restore", "iterations_since_restore",
        "training_iteration", "done", "checkpoint_dir_name", "should_checkpoint",
    }  # fmt: skip
    return {name for name in metrics if name not in own}


def _smallest(scored: Sequence[Trial], metric: str, mode: str, rows: int) -> Trial:
    best = scored[0].metrics[metric]
    slack = standard_error(best, rows) if mode == "max" else 0.0  # an error that is to be small is no share of rows
    close = [t for t in scored if abs(t.metrics[metric] - best) <= slack and _RANK in t.config]
    return min(close, key=lambda t: t.config[_RANK], default=scored[0])


def _advice(scored: Sequence[Trial], metric: str, mode: str, rows: int) -> str:
    """The next thing worth trying, from where the best lies in what was tried."""
    if not scored:
        return "no configuration was evaluated; lower training.learning_rate, or let the search go on for longer"
    best = scored[0]
    rates = sorted({trial.config[_RATE] for trial in scored if _RATE in trial.config})
    ranks = sorted({trial.config[_RANK] for trial in scored if _RANK in trial.config})
    if len(rates) > 1 and best.config[_RATE] == rates[-1]:
        return f"the best rate {rates[-1]:.3g} is the largest tried: try rates up to {3 * rates[-1]:.3g}"
    if len(rates) > 1 and best.config[_RATE] == rates[0]:
        return f"the best rate {rates[0]:.3g} is the smallest tried: try rates down to {rates[0] / 3:.3g}"
    small = _smallest(scored, metric, mode, rows)
    if len(ranks) > 1 and small.config.get(_RANK, best.config.get(_RANK)) < best.config[_RANK]:
        return f"rank {small.config[_RANK]} is as good as rank {best.config[_RANK]} within one standard error: use it"
    if len(ranks) > 1 and best.config[_RANK] == ranks[-1]:
        return f"the best rank {ranks[-1]} is the largest tried: try rank {2 * ranks[-1]}, or more training rows"
    return "the best lies inside what was tried: repeat it with three seeds (training.seed) before trusting small gaps"
