"""From a ResNet that knows upright digits to adapters for rotated and inverted ones, served on it. No text anywhere.

    python -m pipelines.digits             about two minutes on two cores
    python -m pipelines.digits --smoke     a minute: few steps

LoRA sits on the ResNet's convolutions. The base is pretrained by `pipelines.digits_base` on upright digits alone, so
each adapter's score beside the bare base's shows what adaptation does.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageClassification
from transformers.utils import logging

from pipelines.digits_base import prepare
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import BaseSpec, Recipe
from ray_lora.running.trainer import LoraTrainer
from ray_lora.serving.cluster.app import AppArgs, run
from ray_lora.store import open_store, put_once
from ray_lora.tasks import build_task

VARIANTS = ("rotated", "inverted")
console = Console()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--smoke", action="store_true", help="few steps, to see that everything runs")
    options.add_argument("--port", type=int, default=0, help="0 takes a free one")
    options.add_argument("overrides", nargs="*", help="recipe overrides such as output_dir=/tmp/runs")
    asked = options.parse_args()

    logging.disable_progress_bar()
    base = prepare("data")
    shared = Recipe.parse(
        {
            "base": {"model": str(base), "dtype": "float32"},
            "task": {"type": "image-classification", "labels": [str(digit) for digit in range(10)]},
            "lora": {"r": 8, "lora_alpha": 16, "target_modules": ["convolution"]},
            "training": {
                "num_train_epochs": 12,
                "max_steps": 4 if asked.smoke else -1,
                "learning_rate": 3e-3,
                "per_device_train_batch_size": 32,
                "warmup_steps": 0.1,
            },
            "tracking": {"experiment": "digits"},
            "store": "./store-digits",
        }
    )
    for override in asked.overrides:
        key, _, value = override.partition("=")
        shared = shared.override({key: value})
    recipes = [shared.override({"name": f"digits-{variant}", **files(variant)}) for variant in VARIANTS]
    results = LoraTrainer(recipes).fit()
    assert isinstance(results, list)
    store = open_store(shared.store)
    folders = {}
    for recipe, result in zip(recipes, results, strict=True):
        if result.error is not None or result.checkpoint is None:
            sys.exit(f"{recipe.name}: {result.error}")
        folders[recipe.name] = Path(result.checkpoint.path)
        put_once(store, Adapter.load(folders[recipe.name]), recipe.name, aliases=("champion",))
    console.print(compare(base, folders))

    url = run(AppArgs(store=shared.store, base=str(base), dtype="float32", port=asked.port), block=False)
    for variant in VARIANTS:
        row = read(f"data/digits-{variant}/test.parquet").to_pylist()[0]
        reply = ask(url, f"digits-{variant}", row["image"])
        said, ref = reply["predictions"][0], f"{reply['model']}@{reply['version']}"
        console.print(f"a {variant} {row['label']}: {ref} says {said['label']} ({said['score']:.3f})")


def files(variant: str) -> dict[str, str]:
    """The recipe's data section for a variant."""
    return {f"data.{split}": f"data/digits-{variant}/{split}.parquet" for split in ("train", "validation")}


def compare(base: Path, folders: dict[str, Path]) -> Table:
    """The bare base's own head beside each adapter, on digits that neither saw."""
    plain = AutoModelForImageClassification.from_pretrained(base).eval()
    engine = AdapterEngine(load_base(BaseSpec(model=str(base), dtype="float32")), slots=len(folders), max_rank=8)
    table = Table(
        "adapter", "bare base", "adapter", "parameters", title="accuracy on test digits", title_justify="left"
    )
    for name, folder in folders.items():
        adapter = Adapter.load(folder)
        assert adapter.card.task is not None
        task, slot = build_task(adapter.card.task, engine.base.processor), engine.load(adapter)
        test = task.encode(read(f"data/{name}/test.parquet").to_pylist())
        bare = task.score(task.decode(plain(**task.collate(test)), test, {}), test)["accuracy"]
        score = task.score(predict(engine, {slot: task}, test, [slot] * len(test)), test)["accuracy"]
        table.add_row(name, f"{bare:.3f}", f"{score:.3f}", f"{adapter.num_parameters:,}")
    return table


def ask(url: str, model: str, image: bytes) -> dict[str, Any]:
    body = json.dumps({"model": model, "inputs": base64.b64encode(image).decode()}).encode()
    with urlopen(Request(f"{url}/v1/predict", body, {"content-type": "application/json"})) as reply:
        return json.load(reply)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
