"""A sheet of held-out pictures: those with the best answers above, those with the worst below. Knows matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS, _COLUMNS = 2, 4
RIGHT, WRONG = "lime", "red"


def sheet(order: Sequence[int], draw: Callable[[Any, int], None]) -> Figure:
    """Of few rows the lower half may be empty.

    Args:
        order: rows, those with the best answers first.
        draw: draws a row on matplotlib's axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * _COLUMNS, 3 * _ROWS), layout="tight")
    shown = [*order[:_COLUMNS], *order[_COLUMNS:][-_COLUMNS:]]
    axes = figure.subplots(_ROWS, _COLUMNS, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, row in zip(axes, shown, strict=False):
        draw(axis, row)
    return figure
