"""Few rows a class: adapters beside the head alone and all weights trained, several draws of rows each.

    python -m benchmarks.few_shot [--shots 8,16,32] [--draws 5] [--domains tweets,...] [--sides lora,full] [KEY=VALUE]

MiniLM, float32, one thread; accuracy on 400 test rows. No side sees validation rows: who has so few labels needs all of
them. A killed run goes on with the domains, numbers of rows, sides and draws that are missing.

    lora        as `examples/few_rows.yaml` says
    lora_fitted the same with `training.head_start: fitted`
    head_only   scikit-learn's logistic regression, as it comes, on the bare base's mean-pooled features
    full        every weight at 1e-4, by the same steps and batches
    below       how far lora's mean lies below head_only's beyond the 95 % interval of the differences of the same draws
                (Student's t); 0 where it does not
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.machine import RESULTS, write
from benchmarks.quality import DOMAINS
from pipelines.baselines import Data, answers_of, train_full
from pipelines.rated_texts import prepare
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.base import Base
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.inference.baseline import features_of
from ray_lora.inference.predict import predict
from ray_lora.recipe import BaseSpec, Recipe
from ray_lora.tasks import Features, build_task
from ray_lora.tasks.text_classification import TextClassification, TextClassificationSpec
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Split, Splits

RECIPE = Path(__file__).parents[1] / "examples/few_rows.yaml"
FULL_RATE = 1e-4
TEST = 400
Rows = Sequence[dict[str, Any]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shots", default="8,16,32", help="rows a class")
    options.add_argument("--draws", type=int, default=5)
    options.add_argument("--at-once", type=int, default=5, help="draws in one pack, which are kept together")
    options.add_argument("--domains", default=",".join(DOMAINS))
    options.add_argument("--sides", default=",".join(SIDES))
    options.add_argument("--name", default="few-shot", help="of the result file")
    options.add_argument("overrides", nargs="*", help="key=value of the recipe")
    asked = options.parse_intermixed_args()
    torch.set_num_threads(1)
    prepare(Path("data"))
    recipe = Recipe.load(RECIPE, asked.overrides)
    place = Place(load_base(BaseSpec(model="minilm", dtype="float32")), recipe)
    settings = settings_of(recipe)
    parts = [range(first, min(first + asked.at_once, asked.draws)) for first in range(0, asked.draws, asked.at_once)]
    asked_for = (asked.domains.split(","), map(int, asked.shots.split(",")), asked.sides.split(","))
    for part, (domain, shots, side) in product(parts, list(product(*asked_for))):
        found = known(asked.name, settings)
        mine = found.setdefault(domain, {}).setdefault(str(shots), {}).setdefault(side, [])
        if len(mine) <= part[0]:
            began = time.process_time()
            mine += SIDES[side](place, domain, shots, part)
            means, seconds = told(found[domain][str(shots)]), time.process_time() - began
            print(f"{domain} {shots} {side} {means} {seconds:.0f} s", flush=True)
            summary = {name: {many: told(sides) for many, sides in by.items()} for name, by in found.items()}
            write(asked.name, {"what": __doc__, "settings": settings, "summary": summary, "accuracy": found})


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Of each side what its figures follow from beside rows and base."""
    whole = recipe.model_dump(mode="json")
    ours = {key: whole[key] for key in ("training", "lora", "augmentation", "distillation") if key in whole}
    steps = ("max_steps", "per_device_train_batch_size", "lr_scheduler_type", "warmup_steps", "max_grad_norm")
    return {
        "head_only": {},
        "lora": ours,
        "lora_fitted": ours,
        "full": {"rate": FULL_RATE, **{key: whole["training"][key] for key in steps}},
    }


def known(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the result file has of these settings: by domain, rows a class and side each draw's accuracy. A side
    that was measured under other settings is not known."""
    path = RESULTS / f"{name}.json"
    held = json.loads(path.read_text()) if path.exists() else {"settings": {}, "accuracy": {}}
    same = {side for side, mine in settings.items() if held["settings"].get(side) == mine}
    return {
        domain: {shots: {side: sides[side] for side in sides if side in same} for shots, sides in by.items()}
        for domain, by in held["accuracy"].items()
    }


def told(sides: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Means over draws, and `below`."""
    found = {side: round(fmean(values), 4) for side, values in sides.items() if values}
    if {"lora", "head_only"} <= found.keys():
        gaps = [head - lora for head, lora in zip(sides["head_only"], sides["lora"], strict=False)]
        if len(gaps) > 1:
            half = float(stats.t.ppf(0.975, len(gaps) - 1)) * stdev(gaps) / len(gaps) ** 0.5
            found["below"] = round(max(0.0, fmean(gaps) - half), 4)
    return found


class Place:
    """The base, the recipe, and a domain's rows."""

    def __init__(self, base: Base, recipe: Recipe) -> None:
        self.base, self.recipe = base, recipe

    def task(self, domain: str) -> TextClassification:
        labels = tuple(sorted(set(self.pool(domain).column("label").to_pylist())))
        task = build_task(TextClassificationSpec(labels=labels, max_length=64), self.base.processor)
        assert isinstance(task, TextClassification)
        return task

    def pool(self, domain: str) -> pa.Table:
        return pq.read_table(f"data/{domain}/train-1024.parquet")

    def test(self, domain: str) -> list[Features]:
        return self.task(domain).encode(pq.read_table(f"data/{domain}/test.parquet").to_pylist()[:TEST])

    def drawn(self, domain: str, shots: int, draw: int) -> Rows:
        """So many rows of each label."""
        pool, chance = self.pool(domain).to_pylist(), random.Random(f"{shots} {draw}")
        of_label = {label: [row for row in pool if row["label"] == label] for label in self.task(domain).labels}
        return [row for rows in of_label.values() for row in chance.sample(rows, shots)]


def lora(place: Place, domain: str, shots: int, draws: Sequence[int], head_start: str | None = None) -> list[float]:
    task, recipe = place.task(domain), place.recipe
    told = {} if head_start is None else {"head_start": head_start}
    encoded = {str(draw): dict(enumerate(task.encode(place.drawn(domain, shots, draw)))) for draw in draws}
    data = {name: Splits(Split(mine, len(mine))) for name, mine in encoded.items()}
    engine = AdapterEngine(place.base, slots=len(draws), max_rank=recipe.lora.r, train=True)
    with tempfile.TemporaryDirectory() as folder:
        pack = Pack(engine, data, output=Path(folder), max_rows=128)
        for draw in draws:
            training = recipe.training.model_copy(update={"seed": draw, **told})
            pack.join(Job(str(draw), str(draw), task.spec, recipe.lora, training, recipe.augmentation))
        while pack.members:
            pack.step()
        adapters = [Adapter.load(Path(folder) / str(draw) / "adapter") for draw in draws]
    engine.close()
    engine = AdapterEngine(place.base, slots=len(draws), max_rank=recipe.lora.r)
    slots, test = [engine.load(adapter) for adapter in adapters], place.test(domain)
    answers = predict(engine, dict.fromkeys(slots, task), [row for row in test for _ in slots], slots * len(test))
    engine.close()
    return [task.score(answers[at :: len(slots)], test)["accuracy"] for at in range(len(slots))]


def lora_fitted(place: Place, domain: str, shots: int, draws: Sequence[int]) -> list[float]:
    return lora(place, domain, shots, draws, "fitted")


def head_only(place: Place, domain: str, shots: int, draws: Sequence[int]) -> list[float]:
    task, test = place.task(domain), place.test(domain)
    engine = AdapterEngine(place.base, slots=1, max_rank=1)
    read, found = features_of(engine, task, test), []
    for draw in draws:
        mine = task.encode(place.drawn(domain, shots, draw))
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        model.fit(features_of(engine, task, mine), task.targets(mine))
        found.append(float(model.score(read, task.targets(test))))
    engine.close()
    return found


def full(place: Place, domain: str, shots: int, draws: Sequence[int]) -> list[float]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for draw in draws:
            path, spec = Path(folder) / f"{draw}.parquet", place.task(domain).spec
            pq.write_table(pa.Table.from_pylist(list(place.drawn(domain, shots, draw))), path)
            told = {"data.train": str(path), "task": spec.model_dump(mode="json"), "base.dtype": "float32"}
            data = Data(place.recipe.override(told), f"data/{domain}/test.parquet", most=TEST)
            model, test = train_full(data, FULL_RATE, draw), data.rows("test")
            found.append(float(data.task.score(answers_of(model, data.task, test), test)["accuracy"]))
    return found


SIDES: Mapping[str, Callable[[Place, str, int, Sequence[int]], list[float]]] = {
    "head_only": head_only,
    "lora": lora,
    "lora_fitted": lora_fitted,
    "full": full,
}


if __name__ == "__main__":
    main()
