"""From shops of four cities to an adapter for each: what everyone gains over the city's adapter on later rows.

    python -m pipelines.personal [--smoke] [--seeds N] [--json] [--keep] [key=value ...]

The shops are generated, and said to be (`pipelines.shops`). A city's rows train one adapter, every shop goes on from
it, and whom that does not help keeps it. `before` is the city's adapter, `after` whichever answers for a shop, both on
texts that nobody trained on: the mean accuracy over shops. The gain is shown with a bootstrap interval over shops, and
so is the share of them that gain. There is no training of every weight for a shop, and none of its head alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines import shops
from pipelines.story import SMOKE_ROWS, Asked, Line, asked, console, finish, serve, step, table
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import Json, Recipe
from ray_lora.running.local_ray import start_ray
from ray_lora.running.people import PersonalTrainer
from ray_lora.store import open_store
from ray_lora.store.people import group_name
from ray_lora.tasks import build_task, scoring_of

RECIPE = Path(__file__).parents[1] / "examples/personal.yaml"
METRIC = "accuracy"
DRAWS = 10_000  # of the bootstrap
AT_ONCE = 32  # adapters in the engine while they are scored
TEXT = "it does what it says, though I expected more for the price"


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    if given.smoke:
        rows = shops.write_rows("data", shops=8, rows=SMOKE_ROWS, test=8)
        few = ["personal.num_train_epochs=1", "personal.min_rows=8"]
    else:
        rows, few = shops.write_rows("data"), []
    start_ray()
    recipe = given.recipe(RECIPE, [f"data.train={rows}/train.parquet", *few])
    found = [one_seed(recipe, rows / "test.parquet", seed) for seed in range(max(1, given.seeds))]
    report(recipe, rows / "test.parquet", found, given)


def one_seed(recipe: Recipe, test: Path, seed: int) -> dict[str, Any]:
    """Everyone trained with a seed, and each shop's scores: of the city's adapter, and of the one that answers."""
    recipe = recipe.override({"name": f"shops-{seed}", "training.seed": seed})
    step(f"personal: seed {seed}, everyone of {recipe.data.train}")
    trained = PersonalTrainer(recipe).fit()
    store = open_store(recipe.store, recipe.tracking.uri)
    answers = {str(line["person"]): str(line["answers"]) for line in trained.table}
    cities = {
        str(line["person"]): store.resolve(group_name(recipe.name, str(line["group"]))).ref for line in trained.table
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(test).to_pylist():
        rows.setdefault(row["shop"], []).append({"text": row["text"], "label": row["label"]})
    loaded = {ref: store.load(ref)[1] for ref in {*answers.values(), *cities.values()}}
    before, after = score(recipe, loaded, cities, rows), score(recipe, loaded, answers, rows)
    gain = np.array([after[shop] - before[shop] for shop in answers])
    low, high = interval(gain)
    own = [shop for shop, ref in answers.items() if ref != cities[shop]]
    best = max(own or list(answers), key=lambda shop: after[shop] - before[shop])
    adapter = loaded[answers[best]]
    return {
        "seed": seed, "shops": len(gain), "own": len(own), "before": mean(before), "after": mean(after),
        "gain": float(gain.mean()), "low": low, "high": high, "gain_share": float((gain > 0).mean()),
        "loss_share": float((gain < 0).mean()), "seconds": trained.summary["seconds"],
        "refs": list(dict.fromkeys([answers[best], cities[best]])), "trainable": adapter.num_parameters,
        "bytes": store.resolve(answers[best]).bytes,
    }  # fmt: skip


def score(
    recipe: Recipe,
    loaded: Mapping[str, Adapter],
    refs: Mapping[str, str],
    rows: Mapping[str, Sequence[dict[str, Any]]],
) -> dict[str, float]:
    """Each shop's accuracy by the adapter that it is given."""
    base = load_base(recipe.base)
    ordered = sorted(refs, key=lambda shop: refs[shop])
    found = {}
    for at in range(0, len(ordered), AT_ONCE):
        mine = ordered[at : at + AT_ONCE]
        needed = list(dict.fromkeys(refs[shop] for shop in mine))
        engine = AdapterEngine(base, slots=len(needed), max_rank=max(loaded[ref].config.r for ref in needed))
        slots = {ref: engine.load(loaded[ref]) for ref in needed}
        for shop in mine:
            spec = loaded[refs[shop]].card.task
            assert spec is not None
            task, slot = build_task(spec, base.processor), slots[refs[shop]]
            features = task.encode(list(rows[shop]))
            given = [scoring_of(task)] * len(features)
            answers = predict(engine, {slot: task}, features, [slot] * len(features), given)
            found[shop] = task.score(answers, features)[METRIC]
        engine.close()
    return found


def interval(gain: Sequence[float] | np.ndarray[Any, Any]) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean over shops (Efron and Tibshirani 1993)."""
    values = np.asarray(gain, float)
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def mean(scores: Mapping[str, float]) -> float:
    return float(np.mean(list(scores.values())))


def report(recipe: Recipe, test: Path, seeds: Sequence[dict[str, Any]], given: Asked) -> None:
    """The table, and the object with `--json`."""
    first = seeds[0]
    line = Line("shops", recipe, str(test), TEXT, f"the city's adapter, mean of {first['shops']} shops", metric=METRIC)
    total = sum(parameter.numel() for parameter in load_base(recipe.base).backbone.parameters())
    found = {
        "before": float(np.mean([one["before"] for one in seeds])), "after": [one["after"] for one in seeds],
        "head_only": [], "full": [], "test_rows": pq.read_metadata(test).num_rows, "trainable": first["trainable"],
        "total": total + first["trainable"], "adapter_bytes": first["bytes"], "refs": first["refs"],
        "seconds": float(np.mean([one["seconds"] for one in seeds])), "people": list(seeds),
    }  # fmt: skip
    served = serve([line], {line.name: found}, given)
    result: dict[str, Json] = finish(line, found, served)
    console.print(table([result]))
    for one in seeds:
        console.print(
            f"seed {one['seed']}: {one['own']} of {one['shops']} shops have an adapter of their own; gain "
            f"{one['gain']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]; {one['gain_share']:.0%} gain, "
            f"{one['loss_share']:.0%} lose"
        )
    if given.json:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
