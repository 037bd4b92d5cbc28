"""Plots of what is known of one adapter, as matplotlib's figures. Knows the object that `explain` gives, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORSE, _CALM = "tab:red", "tab:blue"
_MOST = 80  # lines of a plot that are named


def plots(told: Mapping[str, Any]) -> dict[str, Figure]:
    """By name: `change`, `singular_values`, and where rows were given `switched_off` and `reliability`."""
    found = {"change": _change(told["layers"]), "singular_values": _spectrum(told["layers"])}
    if told["switched_off"]:
        found["switched_off"] = _off(told["switched_off"])
    if told["reliability"]:
        found["reliability"] = _reliability(told["reliability"])
    for number, row in enumerate(told["attributions"]):
        if row["tokens"] is None:
            found[f"attribution_{number + 1}"] = _maps(row)
    return found


def _lying(count: int) -> tuple[Figure, Any]:
    """A figure for so many bars, the first one above."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.22 * min(count, _MOST)), layout="constrained")
    axis = figure.subplots()
    axis.invert_yaxis()
    return figure, axis


def _name(axis: Any, names: list[str]) -> None:
    step = -(-len(names) // _MOST)
    axis.set_yticks(range(0, len(names), step), names[::step], fontsize=7)


def _change(layers: list[Any]) -> Figure:
    figure, axis = _lying(len(layers))
    axis.barh(range(len(layers)), [layer["relative"] or 0 for layer in layers], color=_CALM)
    _name(axis, [layer["layer"] for layer in layers])
    axis.set(xlabel="norm of the change / norm of the weight")
    return figure


def _spectrum(layers: list[Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    for number, layer in enumerate(layers):
        shade = number / max(1, len(layers) - 1)
        values = [value for value in layer["singular_values"] if value > 0]
        axis.plot(range(1, len(values) + 1), values, color=(shade, 0.3, 1 - shade), lw=1)
    if any(value > 0 for layer in layers for value in layer["singular_values"]):
        axis.set_yscale("log")
    axis.set(xlabel="number", ylabel="singular value of the change (first layers blue, last red)")
    return figure


def _off(off: Mapping[str, Any]) -> Figure:
    groups = off["groups"]
    figure, axis = _lying(len(groups))
    for number, group in enumerate(groups):
        drop = group["drop"]
        colour = _CALM if group["could_go"] else _WORSE
        axis.plot([drop["low"], drop["high"]], [number, number], color=colour, lw=1)
        axis.plot([drop["value"]], [number], "o", color=colour, markersize=4)
    axis.axvline(0, color="black", lw=0.8)
    _name(axis, [group["name"] for group in groups])
    axis.set(xlabel=f"{off['metric']} lost without it, 95 % interval (blue: could go)")
    return figure


def _reliability(told: Mapping[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axis = figure.subplots()
    bins = [one for one in told["bins"] if one["rows"]]
    axis.plot([0, 1], [0, 1], color="grey", lw=0.8)
    axis.bar(
        [(one["low"] + one["high"]) / 2 for one in bins],
        [one["right"] for one in bins],
        width=1 / len(told["bins"]),
        alpha=0.4,
        edgecolor="white",
    )
    axis.plot([one["score"] for one in bins], [one["right"] for one in bins], "o-", color=_WORSE, markersize=4)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="share of right answers")
    axis.set_title(f"expected calibration error {told['ece']:.4f}, {told['rows']:,} rows", fontsize=9)
    return figure


def _maps(row: Mapping[str, Any]) -> Figure:
    """The values of a picture's cells: the adapter's beside the base's, in one scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    most = max(abs(value) for side in ("adapter", "base") for line in row[side]["values"] for value in line) or 1.0
    for axis, side in zip(figure.subplots(1, 2), ("adapter", "base"), strict=True):
        image = axis.imshow(row[side]["values"], cmap="bwr", vmin=-most, vmax=most)
        axis.set_axis_off()
        axis.set_title(f"{side}: {row['target']} {row[side]['output']:.3g}", fontsize=9)
    figure.colorbar(image, ax=figure.axes)
    return figure
