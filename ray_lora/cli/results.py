"""What people read of answers of many rows: a table of scores, a table of what was answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray_lora.cli.output import table
from ray_lora.recipe import Json

_MOST_SLICES, _MOST_ADAPTERS = 50, 30  # shown; --json has all


def comparison(result: dict[str, Json]) -> Iterator[Any]:
    """Scores by adapter and slice with their 95 % intervals, best first."""
    metric, other = result["metric"], [name for name in result["scores"][0]["metrics"] if name != result["metric"]]
    slices: dict[Json, list[Json]] = {}
    for line in result["scores"]:
        slices.setdefault(line["slice"], []).append(line)
    rows = []
    for name, lines in list(slices.items())[: _MOST_SLICES + 1]:
        lines = sorted(lines, key=lambda line: line["metrics"][metric]["value"], reverse=result["mode"] == "max")
        for line in lines:
            mark = "*" if line["best"] else "~" if line["as_good"] else ""
            scores = [_score(line["metrics"][key]) for key in (metric, *other)]
            rows.append(["all rows" if name is None else name, line["rows"], line["ref"], mark, *scores])
    by = f", by {result['by']}" if result["by"] else ""
    yield f"{result['rows']:,} rows of {result['data']}{by}; 95 % intervals (percentile bootstrap over rows)"
    yield table([result["by"] or "rows of", "rows", "adapter", "", metric, *other], rows)
    if len(slices) > _MOST_SLICES + 1:
        yield f"and {len(slices) - _MOST_SLICES - 1:,} more values of {result['by']}; --json has all"
    yield f"* best {metric}   ~ not told apart from it in these draws"
    yield from result["notes"]


def answered(result: dict[str, Json]) -> Iterator[Any]:
    """What became of rows, and who answered how many of them."""
    counts = sorted(result["adapters"].items(), key=lambda one: -one[1])
    yield table(["adapter", "rows"], [list(one) for one in counts[:_MOST_ADAPTERS]])
    if len(counts) > _MOST_ADAPTERS:
        yield f"and {len(counts) - _MOST_ADAPTERS:,} more adapters; --json has all"
    yield from result["wrong"]
    if result["errors"] > len(result["wrong"]):
        yield f"and {result['errors'] - len(result['wrong']):,} more rows with an error"
    if result["cut"]:
        yield f"{result['cut']:,} rows are longer than what is read of a row, and are cut"
    yield (
        f"{result['rows']:,} rows, {result['errors']:,} errors, {len(counts):,} adapters, "
        f"{result['rows_per_second']:,.0f} rows/s; {result['parts']:,} files in {result['output']}"
    )


def _score(scored: Json) -> str:
    return f"{scored['value']:.4f} ({scored['low']:.4f} to {scored['high']:.4f})"
