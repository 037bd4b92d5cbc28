"""What everyone gained, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_lora.recipe import Json


def gains(table: Sequence[Mapping[str, Json]], metric: str) -> Any:
    """A matplotlib figure: how much less each trained person's loss on later rows is than the group's, sorted; and the
    score before and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    known = [line for line in table if line.get("loss before") is not None]
    less = sorted(line["loss before"] - line["loss after"] for line in known)
    left.bar(range(len(less)), less, width=1.0)
    left.set(xlabel="people, by gain", ylabel="loss less than the group's", title="Gain on everyone's later rows")
    before = [line[f"{metric} before"] for line in known]
    after = [line[f"{metric} after"] for line in known]
    right.scatter(before, after, s=10, alpha=0.4)
    ends = [min([*before, *after], default=0.0), max([*before, *after], default=1.0)]
    right.plot(ends, ends, linewidth=0.8, color="gray")
    right.set(
        xlabel=f"{metric} of the group's adapter", ylabel=f"{metric} of the one that answers now", title="Each person"
    )
    return figure
