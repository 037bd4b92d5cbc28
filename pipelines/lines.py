"""A pipeline's objects as lines of a table, for a terminal and for Markdown. Imports nothing heavy."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

HEADERS = (
    "line", "task", "base", "metric", "before", "adapter", "head only", "full", "parameters", "file", "seconds",
)  # fmt: skip


def cells(result: dict[str, Any]) -> list[str]:
    """One object's cells, in the order of `HEADERS`."""
    return [
        result["name"],
        result["task"],
        result["base"],
        result["metric"],
        f"{result['before']:.3f} ({result['source']})",
        spread(result["after"]),
        spread(result["head_only"]),
        spread(result["full"]),
        f"{result['trainable']:,} of {result['total'] / 1e6:.1f} M",
        f"{result['adapter_bytes'] / 1e6:.2f} MB",
        f"{result['seconds']:.0f}",
    ]


def spread(scores: Sequence[float]) -> str:
    """Mean and standard deviation over seeds; "-" where there is nothing of the kind."""
    if not scores:
        return "-"
    mean = f"{statistics.mean(scores):.3f}"
    return f"{mean} ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else mean


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown."""
    rows = [HEADERS, ["---"] * len(HEADERS), *map(cells, results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
