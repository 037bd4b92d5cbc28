"""What pipelines begin with that do something with a finished adapter: tweets' adapters trained, scored and stored.

    one = adapted(given)
    one["line"], one["entry"].ref, one["found"]["after"]

Pipelines of the same recipe, seeds and folder find each other's adapters trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.baselines import Data
from pipelines.rated_texts import prepare
from pipelines.scores import score_adapters
from pipelines.story import Asked, Line, finish, train
from ray_lora.adapters.adapter import Adapter
from ray_lora.inference.stored import predict_ref
from ray_lora.recipe import Json
from ray_lora.running.local_ray import start_ray
from ray_lora.store import open_store, put_once

RECIPE = Path(__file__).parents[1] / "examples/tweets.yaml"
TEST = "data/tweets/test.parquet"
TEXT = "so happy with my new phone, best day ever :)"
METRIC = "f1_macro"


def _tweets(given: Asked) -> Line:
    """The line that such pipelines share; in float32, as what they make of its adapters."""
    recipe = given.recipe(RECIPE, ["training.eval_steps=null", "base.dtype=float32"])
    return Line("tweets-adapter", recipe, TEST, TEXT, "untrained head", metric=METRIC)


def adapted(given: Asked) -> dict[str, Any]:
    """Adapters of every seed of `line`, of which the best on validation rows goes into the store: `entry`, and what
    every pipeline's object says beside its answers, `found`."""
    prepare("data")
    start_ray()
    line = _tweets(given)
    seeds = max(1, given.seeds)
    folders, seconds = train("one-adapter", [line], seeds)
    data = Data(line.recipe, line.test, given.most)
    adapters = [Adapter.load(folders[f"{line.name}-{seed}"]) for seed in range(seeds)]
    before, scores, best = score_adapters(data, adapters, None, line.metric_name, line.mode)
    store = open_store(line.recipe.store, line.recipe.tracking.uri)
    entry = put_once(store, adapters[best], line.name, aliases=("champion",))
    numbers = sum(parameter.numel() for parameter in data.base.backbone.parameters())
    found = {
        "before": before, "after": scores, "head_only": [], "full": [], "test_rows": len(data.rows("test")),
        "trainable": adapters[0].num_parameters, "total": numbers + adapters[0].num_parameters,
        "adapter_bytes": entry.bytes, "refs": [entry.ref], "seconds": seconds,
    }  # fmt: skip
    return {
        "line": line,
        "entry": entry,
        "found": found,
        "adapter": adapters[best],
        "rows": data.rows("test"),
        "task": data.task,
    }


def told(name: str, line: Line, found: dict[str, Any], answer: Json) -> dict[str, Json]:
    """The pipeline's object, under its own name."""
    return finish(line, found, dict.fromkeys(found["refs"], answer)) | {"name": name}


def answer_of(line: Line, ref: str) -> Json:
    """The answer to the line's input, in PyTorch."""
    told = predict_ref(ref, [line.ask], line.recipe.store, tracking_uri=line.recipe.tracking.uri)
    answer: Json = told["predictions"][0]
    return answer
