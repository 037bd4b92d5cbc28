"""How a score grows with the rows that train, and whether more of them would pay: `ray-lora curve RECIPE`.

    found = learning_curve(Recipe.load("tweets.yaml"), draws=3)
    found["points"][-1]["mean"], found["verdict"]

Rows are drawn at random, smaller sets inside larger ones. Every set trains an adapter with the recipe's own settings;
all of them share one base, in packs. It knows recipes and scores, not what rows mean.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_lora.atomic import write_atomic
from ray_lora.bases.load import describe_base
from ray_lora.errors import DataError, RayLoraError, RecipeError
from ray_lora.recipe import Json, Recipe
from ray_lora.running.sources import check_tables, read_tables, table_hash
from ray_lora.running.trainer import LoraTrainer
from ray_lora.tasks import task_of

_LEAST_ROWS, _MOST_SIZES = 8, 6  # of the sizes that are chosen: halves of all rows, again and again
_LEAST_STEPS = 100  # of a small set, unless all rows take fewer: an epoch of eight rows teaches nothing
_SURE = 0.95


@dataclass(frozen=True)
class Point:
    """One number of rows.

    Attributes:
        scores: of each draw on the validation rows; `mean` is theirs, `low` and `high` its 95 % interval by Student's t
            over the draws, None of one draw.
        gain: by how much the mean is better than with the next smaller number, draw by draw, with its interval; None of
            the smallest.
    """

    rows: int
    scores: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    gain: tuple[float, float | None, float | None] | None


@dataclass(frozen=True)
class Curve:
    """Scores over rows.

    Attributes:
        enough: the least rows that all larger numbers are not told apart from; None where the largest still gains.
    """

    metric: str
    mode: str
    points: tuple[Point, ...]
    enough: int | None
    verdict: str


def learning_curve(
    recipe: Recipe, sizes: Sequence[int] | None = None, draws: int = 3, quiet: bool = False
) -> dict[str, Json]:
    """Train on growing numbers of rows and write `curve.json` and `curve.png` into `<output_dir>/<name>-curve`.

    Args:
        sizes: numbers of rows; None for all, a half, a quarter and so on, at most six and none below eight.
        draws: how often rows are drawn for each; the largest number too, with seeds of its own.

    Returns:
        `Curve` as a dict, and `files`.

    Raises:
        RayLoraError: the recipe, its rows or a size is wrong; or a training failed.
    """
    if draws < 1:
        raise RecipeError(f"draws {draws} must be at least 1")
    task = task_of(recipe.task)
    metric = recipe.search.metric or task.metric
    if metric not in task.metrics:
        raise RecipeError(f"unknown metric {metric!r}; {recipe.task.type} reports {', '.join(task.metrics)}")
    splits = read_tables(recipe, None)
    if "validation" not in splits:
        raise RecipeError("a learning curve compares scores on validation rows; set data.validation")
    if splits["train"].elsewhere:
        raise DataError(
            "the training rows name files of their own, of which no part is drawn yet; give them as bytes, in parquet"
        )
    spec = check_tables(recipe, splits, describe_base(recipe.base).processor)
    table = splits["train"].table
    chosen = _sizes(table.num_rows, sizes)
    folder = Path(recipe.output_dir) / f"{recipe.name}-curve"
    drawn = _draw(table, chosen, draws, folder / "rows", recipe.training.seed)
    told = recipe.override({"task": spec.recorded(), "output_dir": str(folder / "runs")})
    jobs = [_job(told, size, draw, path, table.num_rows) for (size, draw), path in drawn.items()]
    results = LoraTrainer(jobs, quiet=quiet).fit()
    assert isinstance(results, list)
    scores: dict[int, list[float]] = {size: [] for size in chosen}
    for (size, _), job, result in zip(drawn, jobs, results, strict=True):
        if result.error is not None or result.metrics is None:
            raise RayLoraError(f"{job.name}: {result.error}")
        scores[size].append(float(result.metrics[metric]))
    curve = summarise(scores, metric, recipe.search.mode or task.metrics[metric])
    files = [str(folder / "curve.json"), str(folder / "curve.png")]
    found = asdict(curve) | {"files": files}
    write_atomic(folder / "curve.json", json.dumps(found, indent=2))
    write_atomic(folder / "curve.png", _picture(curve, recipe.name))
    return found


def summarise(scores: Mapping[int, Sequence[float]], metric: str, mode: str) -> Curve:
    """What scores over rows say.

    Args:
        scores: by number of rows, in rising order; of each the draws in one order.
    """
    sign = 1.0 if mode == "max" else -1.0
    sizes = list(scores)
    points = []
    for at, size in enumerate(sizes):
        mean, low, high = interval(scores[size])
        gain = interval(_gains(scores, sizes[at - 1], size, sign)) if at else None
        points.append(Point(size, tuple(scores[size]), mean, low, high, gain))
    enough = sizes[-1]
    for size in reversed(sizes[:-1]):
        _, low, _ = interval(_gains(scores, size, sizes[-1], sign))
        if low is None or low > 0:
            break
        enough = size
    told = enough if enough < sizes[-1] else None
    return Curve(metric, mode, tuple(points), told, _verdict(points, told, metric))


def interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean, and its 95 % interval by Student's t; no interval of one value."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    half = float(t.ppf((1 + _SURE) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _gains(scores: Mapping[int, Sequence[float]], few: int, many: int, sign: float) -> list[float]:
    return [sign * (more - less) for less, more in zip(scores[few], scores[many], strict=True)]


def _verdict(points: Sequence[Point], enough: int | None, metric: str) -> str:
    last = points[-1]
    if last.gain is None:
        return f"{last.rows:,} rows alone say nothing of more; give several sizes"
    gain, low, high = last.gain
    told = f"{points[-2].rows:,} to {last.rows:,} rows: {metric} better by {gain:.4f}"
    if low is None or high is None:
        return f"{told}; one draw says nothing of chance, so give draws of 3 or more"
    told = f"{told} ({low:.4f} to {high:.4f})"
    if enough is None:
        return f"{told}: more rows still pay"
    return f"{told}: from {enough:,} rows on nothing is gained that these draws can tell from chance"


def _sizes(rows: int, asked: Sequence[int] | None) -> list[int]:
    if asked is None:
        halves = [rows // 2**power for power in range(_MOST_SIZES)]
        return sorted({size for size in halves if size >= _LEAST_ROWS} or {rows})
    wrong = [size for size in asked if not 0 < size <= rows]
    if wrong or not asked:
        raise RecipeError(f"sizes {list(asked)}: each is from 1 to the {rows:,} training rows that there are")
    return sorted(set(asked))


def _draw(table: pa.Table, sizes: Sequence[int], draws: int, folder: Path, seed: int) -> dict[tuple[int, int], Path]:
    """A file of rows for each size and draw, under a name that follows from the rows; the largest set of each draw
    begins with the smaller ones."""
    mark = hashlib.sha256(f"{table_hash(table)}|{seed}".encode()).hexdigest()[:12]
    found = {}
    for draw in range(draws):
        order = np.random.default_rng([seed, draw]).permutation(table.num_rows)
        for size in sizes:
            path = found[size, draw] = folder / f"{mark}-{draw}-{size}.parquet"
            if not path.exists():
                sink = io.BytesIO()
                pq.write_table(table.take(pa.array(order[:size])), sink)
                write_atomic(path, sink.getvalue())
    return found


def _job(recipe: Recipe, size: int, draw: int, path: Path, rows: int) -> Recipe:
    """The recipe on one set of rows; scored at its end alone."""
    training = recipe.training

    def steps(count: int) -> int:
        each = math.ceil(count / training.per_device_train_batch_size)
        return max(1, math.ceil(training.num_train_epochs * each))

    asked = training.max_steps if training.max_steps > 0 else max(steps(size), min(_LEAST_STEPS, steps(rows)))
    return recipe.override(
        {
            "name": f"{recipe.name}-{size}-{draw}",
            "data.train": str(path),
            "data.columns": {},
            "training.max_steps": asked,
            "training.eval_steps": asked,
            "training.seed": training.seed + draw,
        }
    )


def _picture(curve: Curve, name: str) -> bytes:
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    rows, means = [point.rows for point in curve.points], [point.mean for point in curve.points]
    around = [[point.mean - (point.mean if point.low is None else point.low) for point in curve.points]] * 2
    axis.errorbar(rows, means, yerr=around, marker="o", capsize=4)
    for point in curve.points:
        axis.scatter([point.rows] * len(point.scores), point.scores, s=10, color="grey", zorder=3)
    axis.set_xscale("log", base=2)
    axis.set_xticks(rows, [f"{count:,}" for count in rows])
    axis.set(xlabel="training rows", ylabel=curve.metric, title=f"{name}: {curve.metric} over rows")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120)
    return sink.getvalue()
