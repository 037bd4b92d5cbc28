"""A search's pictures: learning curves, rank and rate against the score, all keys at once, and which of them matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_lora.running.progress import describe
from ray_lora.search.advice import RANK, RATE
from ray_lora.search.summary import Summary, Trial
from ray_lora.training.history import read_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_NAMED = 20  # trials; more have no line of their own in a legend
_DECADE = 10.0
_FEW = 6  # rates that are named on an axis, each
_BACKGROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}


def draw(summary: Summary, output: Path) -> list[str]:
    """Draw what the search has to show into its folder; returns the files' paths."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    scored = [trial for trial in summary.trials if math.isfinite(_score(trial, summary))]
    figures = {
        "learning_curves": _learning_curves(summary, output),
        "rank_by_rate": _rank_by_rate(scored, summary),
        "parallel_coordinates": _parallel(scored, summary),
        "importance": _importance(summary),
        "pareto": _pareto(scored, summary),
    }
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            paths.append(str(output / f"{name}.png"))
            figure.savefig(paths[-1], dpi=120)
    return paths


def _score(trial: Trial, summary: Summary) -> float:
    return trial.metrics.get(summary.metric, math.nan)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _short(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _learning_curves(summary: Summary, output: Path) -> Figure:
    """Loss and score over steps, one line a configuration."""
    import matplotlib

    figure = _figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    colours = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for number, trial in enumerate(summary.trials):
        curves = _curves(output / "jobs" / trial.name, summary.metric)
        style = {"color": colours[number % 20], "marker": "o", "markersize": 3, "lw": 1.2}
        for axis, key in ((left, "loss"), (right, summary.metric)):
            if curves[key]:
                label = describe(trial.config) if number < _NAMED else None
                axis.plot(*zip(*curves[key], strict=True), label=label, **style)
    left.set(xlabel="step", ylabel="training loss", yscale="log", title="Loss of the training rows")
    right.set(xlabel="step", ylabel=summary.metric, title=f"{summary.metric} of the validation rows")
    handles, labels = right.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", fontsize="x-small")
    return figure


def _rank_by_rate(scored: Sequence[Trial], summary: Summary) -> Figure | None:
    """A point a configuration where both were searched: its colour is the score, its size too."""
    shown = [trial for trial in scored if RANK in trial.config and RATE in trial.config]
    if len({(trial.config[RANK], trial.config[RATE]) for trial in shown}) < 2:
        return None
    scores = [_score(trial, summary) for trial in shown]
    figure = _figure(7, 4.5)
    axis = figure.subplots()
    rates, ranks = [[trial.config[key] for trial in shown] for key in (RATE, RANK)]
    sizes = [40 + 260 * share for share in _shares(scores, summary.mode)]
    points = axis.scatter(rates, ranks, c=scores, s=sizes, cmap="viridis", edgecolors="black", linewidths=0.5)
    best = shown[0]  # best first
    label = f"{_score(best, summary):.4f}"
    place = (best.config[RATE], best.config[RANK])
    axis.annotate(label, place, xytext=(0, 13), textcoords="offset points", ha="center")
    if min(rates) > 0:
        axis.set_xscale("log")
    if len(set(rates)) <= _FEW:
        axis.set_xticks(sorted(set(rates)), [f"{rate:g}" for rate in sorted(set(rates))])
        axis.minorticks_off()
    if max(ranks) >= _DECADE * min(ranks):
        axis.set_yscale("log", base=2)
    axis.set_yticks(sorted(set(ranks)), [str(rank) for rank in sorted(set(ranks))])
    axis.set(xlabel="learning rate", ylabel="rank", title=f"{summary.metric} by rank and learning rate")
    axis.margins(0.15)
    figure.colorbar(points, label=summary.metric)
    return figure


def _parallel(scored: Sequence[Trial], summary: Summary) -> Figure | None:
    """One line a configuration through all searched keys to its score."""
    keys = [key for key in (scored[0].config if scored else {}) if len({str(t.config.get(key)) for t in scored}) > 1]
    if len(keys) < 2:
        return None
    import matplotlib

    columns: dict[str, list[Any]] = {key: [trial.config.get(key) for trial in scored] for key in keys}
    columns[summary.metric] = [_score(trial, summary) for trial in scored]
    figure = _figure(2.2 * len(columns) + 2, 4.5)
    axis = figure.subplots()
    heights = {key: _heights(values) for key, values in columns.items()}
    colour = matplotlib.colormaps["viridis"]
    for row in reversed(range(len(scored))):  # the best is drawn last, on top
        line = [heights[key][row] for key in columns]
        axis.plot(range(len(columns)), line, color=colour(heights[summary.metric][row]), lw=2.5 if row == 0 else 1.2)
    for place, (key, values) in enumerate(columns.items()):
        axis.axvline(place, color="black", lw=0.8)
        for height, value in sorted(set(zip(heights[key], map(_said, values), strict=True))):
            if not isinstance(values[0], float) or height in (0.0, 1.0):
                axis.text(place + 0.03, height, value, fontsize="small", va="center", bbox=_BACKGROUND)
    axis.set_xticks(range(len(columns)), [_short(key) for key in columns])
    axis.set_xlim(-0.1, len(columns) - 0.6)
    axis.set_yticks([])
    axis.set_frame_on(False)
    axis.set_title(f"Configurations and their {summary.metric}")
    return figure


def _pareto(scored: Sequence[Trial], summary: Summary) -> Figure | None:
    """The first metric against each other one: the Pareto set joined by a line, the choice as a star."""
    names = [name for name, _ in summary.objectives]
    shown = [trial for trial in scored if all(math.isfinite(trial.metrics.get(name, math.nan)) for name in names)]
    if len(names) < 2 or not any(trial.pareto for trial in shown):
        return None
    figure = _figure(1 + 4.5 * (len(names) - 1), 4.5)
    for axis, other in zip(figure.subplots(1, len(names) - 1, squeeze=False)[0], names[1:], strict=True):
        for kept, style in ((False, {"color": "lightgrey"}), (True, {"color": "tab:blue"})):
            points = sorted((trial.metrics[other], trial.metrics[names[0]]) for trial in shown if trial.pareto == kept)
            axis.plot(
                *zip(*points, strict=True) if points else ((), ()), "o-" if kept and len(names) == 2 else "o", **style
            )
        best = summary.best
        if best is not None:
            place = (best.metrics[other], best.metrics[names[0]])
            axis.plot(*place, "*", color="tab:red", markersize=16)
            axis.annotate(describe(best.config), place, xytext=(0, -16), textcoords="offset points", ha="center")
        axis.set(xlabel=other, ylabel=names[0], title=f"{names[0]} and {other}")
        axis.margins(0.15)
    return figure


def _importance(summary: Summary) -> Figure | None:
    """A bar a searched key."""
    if not summary.importance:
        return None
    figure = _figure(7, 1.2 + 0.4 * len(summary.importance))
    axis = figure.subplots()
    keys = list(reversed(summary.importance))
    axis.barh([_short(key) for key in keys], [summary.importance[key] for key in keys])
    axis.set(xlim=(0, 1), xlabel="share of the scores' variance", title=f"What decides {summary.metric} (fANOVA)")
    return figure


def _curves(folder: Path, metric: str) -> dict[str, list[tuple[int, float]]]:
    """ "loss" and the metric -> (step, value) points, a resumed job's repeated steps once."""
    found: dict[str, dict[int, float]] = {"loss": {}, metric: {}}
    for line in read_history(folder):
        for key, points in found.items():
            if key in line["metrics"]:
                points[line["step"]] = line["metrics"][key]
    return {key: sorted(points.items()) for key, points in found.items()}


def _shares(scores: Sequence[float], mode: str) -> list[float]:
    """Where each score lies between the worst (0) and the best (1)."""
    worst, best = (min(scores), max(scores)) if mode == "max" else (max(scores), min(scores))
    return [(score - worst) / (best - worst) if best != worst else 1.0 for score in scores]


def _heights(values: Sequence[Any]) -> list[float]:
    """Values as heights from 0 to 1: numbers to scale, over a decade and more to a logarithmic one; others evenly."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        if low > 0 and high >= _DECADE * low:
            values, low, high = [math.log(value) for value in values], math.log(low), math.log(high)
        return [(value - low) / (high - low) if high > low else 0.5 for value in values]
    order: Mapping[str, int] = {text: place for place, text in enumerate(sorted({_said(value) for value in values}))}
    return [order[_said(value)] / max(1, len(order) - 1) for value in values]


def _said(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
