"""From an adapter of MiniLM to one of a base of half its size that learns from it: tweets, negative or positive.

    python -m pipelines.distill [--smoke] [--seeds N] [--json] [key=value ...]

The teacher is an adapter of MiniLM-L6. The student's base is made of some of its layers (`pipelines.smaller_base`). Its
adapters train in one pack on the same rows, each seed once with the teacher's logits beside the labels and once with
the labels alone. The table has held-out scores, sizes and times of base and adapter together, all in float32; the share
is of the teacher's score. Overrides are of both recipes. In the object `before` is what labels alone teach, the mean
over seeds, and `after` what the teacher does beside them; `lines` has all three.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.table import Table

from pipelines import smaller_base
from pipelines.kept_rows import digest
from pipelines.one_adapter import TEXT, answer_of
from pipelines.rated_texts import prepare
from pipelines.scores import first_seconds
from pipelines.story import Line, asked, console, few, finish, step
from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import RayLoraError
from ray_lora.inference.stored import Opened, open_ref
from ray_lora.recipe import Json, Recipe
from ray_lora.running.local_ray import start_ray
from ray_lora.running.trainer import LoraTrainer
from ray_lora.store import open_store, put_once
from ray_lora.tasks import scoring_of

TEACHER, STUDENT = (Path(__file__).parents[1] / "examples" / name for name in ("tweets.yaml", "distill.yaml"))
TEST = Path("data/tweets/test.parquet")
METRIC = "accuracy"
LARGE = [
    "name=tweets-large", "base.dtype=float32", "training.num_train_epochs=3", "training.eval_steps=null",
    "training.learning_rate=5e-4", "search.space=null",
]  # fmt: skip
ROUNDS = 3  # of all test rows, of which the fastest counts


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    prepare("data")
    start_ray()
    step("1/3  the teacher: an adapter of MiniLM")
    teacher = given.recipe(TEACHER, LARGE)
    train([teacher])
    step("2/3  students on a smaller base, with the teacher's logits and without, in one pack")
    small = smaller_base.cut(teacher.base.model, Path("data/minilm-small"))
    student = given.recipe(STUDENT, [f"base.model={small}"])
    told = {"store": teacher.store, "distillation.teacher": teacher.name}
    student = student.override(told)
    alone = Recipe.parse({key: value for key, value in student.model_dump().items() if key != "distillation"})
    alone = alone.override({"search.space": None})
    seeds = range(max(1, given.seeds))
    taught = [seeded(student, "taught", seed) for seed in seeds]
    labels = [seeded(alone, "labels", seed) for seed in seeds]
    seconds = train([*taught, *labels])
    step("3/3  scores, sizes and times")
    test = few(TEST) if given.smoke else TEST
    lines = {
        "teacher": [score(teacher, test)],
        "student, taught": [score(recipe, test) for recipe in taught],
        "student, labels alone": [score(recipe, test) for recipe in labels],
    }
    found = report(lines, student)
    if given.json:
        print(json.dumps(result_of(found, taught[0], seconds)), flush=True)


def seeded(recipe: Recipe, how: str, seed: int) -> Recipe:
    return recipe.override({"name": f"{recipe.name}-{how}-{seed}", "training.seed": seed})


def train(recipes: Sequence[Recipe]) -> float:
    """Train adapters in one pack and put them into the store; the seconds that it took."""
    mark = digest("".join(recipe.model_dump_json() for recipe in recipes))[:8]  # another set of recipes is another run
    output = str(Path(recipes[0].output_dir) / f"distill-{mark}")
    results = LoraTrainer([recipe.override({"output_dir": output}) for recipe in recipes]).fit()
    assert isinstance(results, list)
    store = open_store(recipes[0].store, recipes[0].tracking.uri)
    for recipe, result in zip(recipes, results, strict=True):
        if result.error is not None or result.checkpoint is None:
            raise RayLoraError(f"{recipe.name}: {result.error}")
        put_once(store, Adapter.load(Path(result.checkpoint.path)), recipe.name)
    return first_seconds(Path(output), results)


def score(recipe: Recipe, test: Path) -> dict[str, float]:
    """Held-out scores of an adapter, numbers of its base and itself, and milliseconds a row."""
    opened = open_ref(recipe.name, recipe.store, tracking_uri=recipe.tracking.uri)
    features = opened.task.encode(pq.read_table(test).to_pylist())
    options = scoring_of(opened.task)
    found = opened.task.score(opened.predict(features, options), features)
    numbers = sum(parameter.numel() for parameter in opened.engine.base.backbone.parameters())
    seconds = min(timed(opened, features, options) for _ in range(ROUNDS))
    opened.engine.close()
    return found | {
        "parameters": numbers + opened.entry.num_parameters,
        "milliseconds": 1000 * seconds / len(features),
    }


def timed(opened: Opened, features: Sequence[dict[str, Any]], options: Mapping[str, Json]) -> float:
    """Seconds in which all rows are answered."""
    began = time.perf_counter()
    opened.predict(features, options)
    return time.perf_counter() - began


def report(lines: Mapping[str, Sequence[dict[str, float]]], student: Recipe) -> dict[str, Any]:
    """Prints the table; each line's figures."""
    metrics = [key for key in lines["teacher"][0] if key not in ("parameters", "milliseconds")]
    large = lines["teacher"][0]
    shown = Table("", *metrics, "of the teacher's", "parameters", "of the teacher's", "ms a row", "of the teacher's")
    found: dict[str, Any] = {}
    for name, seeds in lines.items():
        scores = {key: [one[key] for one in seeds] for key in metrics}
        means = {key: statistics.fmean(values) for key, values in scores.items()}
        speed = min(one["milliseconds"] for one in seeds)  # of adapters of one base, all alike
        line = {
            "scores": scores,
            "share": means[METRIC] / large[METRIC],
            "parameters": int(seeds[0]["parameters"]),
            "size_share": seeds[0]["parameters"] / large["parameters"],
            "milliseconds": speed,
            "time_share": speed / large["milliseconds"],
        }
        found[name] = line
        shown.add_row(
            name, *(f"{means[key]:.4f}" for key in metrics), f"{line['share']:.1%}", f"{line['parameters']:,}",
            f"{line['size_share']:.0%}", f"{speed:.2f}", f"{line['time_share']:.0%}",
        )  # fmt: skip
    spec = student.distillation
    shown.caption = f"{len(lines['student, taught'])} seeds; temperature {spec.temperature:g}, weight {spec.weight:g}"
    console.print(shown)
    return found


def result_of(found: dict[str, Any], first: Recipe, seconds: float) -> dict[str, Json]:
    """The pipeline's object. `first`: the first of the recipes that a teacher taught."""
    entry = open_store(first.store, first.tracking.uri).resolve(first.name)
    line = Line("distill", first, str(TEST), TEXT, "labels alone", metric=METRIC)
    mine, alone = found["student, taught"], found["student, labels alone"]
    figures = {
        "before": statistics.fmean(alone["scores"][METRIC]), "after": mine["scores"][METRIC], "head_only": [],
        "full": [], "trainable": entry.num_parameters, "total": mine["parameters"], "adapter_bytes": entry.bytes,
        "refs": [entry.ref], "seconds": seconds, "lines": found,
    }  # fmt: skip
    return finish(line, figures, {entry.ref: answer_of(line, entry.ref)})


if __name__ == "__main__":
    main()
