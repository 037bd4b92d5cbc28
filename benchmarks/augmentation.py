"""What augmentation brings an adapter: with and without, paired by seed, with few rows and with all of them.

    python -m benchmarks.augmentation [--seeds 3] [--only texts] [--smoke]

Texts are tweets on MiniLM (float32, rank 8 on all linear layers, rate 1e-3, batch 16), pictures are rotated digits on
the small ResNet that learnt upright ones (rank 8 on its convolutions, rate 3e-3, batch 32). All arms and seeds of one
size train in one pack, on the same rows, those of a seed in the same order, for as many steps; scores are accuracy on
test rows after the last step. `gain` is an arm's score minus that without augmentation of the same seed. A killed run
goes on with the sizes that are missing; `--smoke` trains a few steps and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, write
from benchmarks.quality import spread
from pipelines import digits_base, rated_texts
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.data.check import learn
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import LoraSpec, Recipe, TrainingSpec, TransformSpec
from ray_lora.tasks import build_task, task_of
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack, Split, Splits

PLAIN = "without"
MOVED: dict[str, Any] = {"name": "affine", "degrees": 10, "translate": 0.08, "scale": [0.85, 1.15], "shear": 8}
ARMS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "texts": {
        PLAIN: [],
        "masking": [{"name": "token_masking", "share": 0.15}],
        "dropout": [{"name": "token_dropout", "share": 0.15}],
    },
    "pictures": {PLAIN: [], "moved": [MOVED], "moved, erased": [MOVED, {"name": "erasing"}]},
}
RECIPES = {"texts": "examples/tweets.yaml", "pictures": "examples/digits.yaml"}
FOLDERS = {"texts": ("data/tweets", "train-1024"), "pictures": ("data/digits-rotated", "train")}


@dataclass(frozen=True)
class Size:
    """rows: of the training split, None for all; epochs: so many of them."""

    rows: int | None
    epochs: int


SIZES: dict[str, dict[str, Size]] = {
    "texts": {"few": Size(64, 24), "all": Size(None, 4)},
    "pictures": {"few": Size(64, 60), "all": Size(None, 12)},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--only", choices=sorted(ARMS))
    options.add_argument("--smoke", action="store_true")
    asked = options.parse_args()
    torch.set_num_threads(1)
    settings = {"what": __doc__, "seeds": asked.seeds, "arms": ARMS}
    path = RESULTS / "augmentation.json"
    known = json.loads(path.read_text()) if path.exists() and not asked.smoke else {}
    results = known["results"] if all(known.get(key) == value for key, value in settings.items()) else {}
    for kind in [asked.only] if asked.only else sorted(ARMS):
        for name, size in SIZES[kind].items():
            place = f"{kind}, {name}"
            if place in results:
                continue
            results[place] = measure(kind, Size(48, 2) if asked.smoke else size, asked.seeds)
            if not asked.smoke:
                write("augmentation", {**settings, "results": results})
            print(place, *table(results[place]), sep="\n", flush=True)


def measure(kind: str, size: Size, seeds: int) -> dict[str, Any]:
    """Scores of every arm and seed."""
    (rated_texts if kind == "texts" else digits_base).prepare(Path("data"))
    folder, train = FOLDERS[kind]
    recipe = Recipe.load(RECIPES[kind], ["base.dtype=float32"])
    base = load_base(recipe.base)
    rows = read(f"{folder}/{train}.parquet")
    spec = learn(task_of(recipe.task), recipe.task, [rows])
    task = build_task(spec, base.processor)
    features = task.encode(rows.to_pylist()[: size.rows])
    names = [f"{arm}/{seed}" for arm in ARMS[kind] for seed in range(seeds)]
    lora = LoraSpec(r=8, lora_alpha=16, target_modules=recipe.lora.target_modules)
    engine = AdapterEngine(base, slots=len(names), max_rank=lora.r, train=True)
    with tempfile.TemporaryDirectory() as output:
        split = Split(dict(enumerate(features)), len(features))
        pack = Pack(engine, {"rows": Splits(split)}, output=Path(output))
        for name in names:
            arm, _, seed = name.partition("/")
            transforms = tuple(TransformSpec.model_validate(told) for told in ARMS[kind][arm])
            training = training_of(recipe.training, size, int(seed))
            pack.join(Job(name, "rows", spec, lora, training, transforms))
        while pack.members:
            pack.step()
        adapters = [Adapter.load(Path(output) / name / "adapter") for name in names]
    test = task.encode(read(f"{folder}/test.parquet").to_pylist())
    scores: dict[str, list[float]] = {arm: [] for arm in ARMS[kind]}
    for name, adapter in zip(names, adapters, strict=True):
        slot = engine.load(adapter)
        answers = predict(engine, {slot: task}, test, [slot] * len(test))
        scores[name.partition("/")[0]].append(task.score(answers, test)["accuracy"])
        engine.evict(slot)
    engine.close()
    return {
        "rows": len(features),
        "epochs": size.epochs,
        "test_rows": len(test),
        "arms": {arm: spread(found) | {"gain": gains(scores, arm)} for arm, found in scores.items()},
        "seconds": {name: round(seconds, 1) for name, seconds in pack.seconds.items()},
    }


def training_of(told: TrainingSpec, size: Size, seed: int) -> TrainingSpec:
    """The recipe's rate and batch, a head that begins random, and no score before the end."""
    return told.model_copy(
        update={
            "num_train_epochs": size.epochs,
            "warmup_steps": 0.1,
            "seed": seed,
            "eval_steps": 10**6,
            "save_steps": 10**6,
            "head_start": "random",
            "calibrate": False,
        }
    )


def gains(scores: Mapping[str, Sequence[float]], arm: str) -> list[float]:
    """Of each seed, the score minus that without augmentation."""
    return [one - other for one, other in zip(scores[arm], scores[PLAIN], strict=True)]


def table(found: Mapping[str, Any]) -> list[str]:
    """A line an arm."""
    return [
        f"  {arm:<14} {one['mean']:.3f} ± {one['spread']:.3f}   gain "
        + " ".join(f"{100 * gain:+.1f}" for gain in one["gain"])
        for arm, one in found["arms"].items()
    ]


if __name__ == "__main__":
    main()
