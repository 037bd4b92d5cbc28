"""LoRA beside full fine-tuning and the best head alone, on every domain, three seeds: score, time, parameters, bytes.

    python -m benchmarks.quality [--seeds 3] [--rows 1024] [--domains tweets movies ...]

Both sides: MiniLM, the same rows in the same order, two epochs, batch 16, linear schedule with 10% warm-up, AdamW,
float32, one thread. LoRA has rank 8 on all linear layers. Each side trains at the better of two rates, LoRA's ten times
full fine-tuning's, chosen on each domain's validation rows with seed 0. All seeds of one domain's LoRA train in one
pack; `seconds_alone` is one adapter by itself. Seconds are processor seconds of the one thread. Scores are accuracy on
test rows. A killed run goes on with the domains that are missing; two processes may measure a part of them each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, write
from pipelines.baselines import Data, answers_of, train_full
from pipelines.rated_texts import prepare
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import Base, load_base
from ray_lora.data.check import learn
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.inference.baseline import head_only
from ray_lora.inference.predict import predict
from ray_lora.recipe import BaseSpec, DataSpec, LoraSpec, Recipe, TaskSpec, TrainingSpec
from ray_lora.tasks import Features, Task, build_task
from ray_lora.tasks.text_classification import TextClassification, TextClassificationSpec
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack, Split, Splits

DOMAINS = ("tweets", "movies", "products", "newspapers", "domains")
FILES = {"train": "train-1024", "validation": "validation-512", "test": "test"}
FULL_RATES = (1e-4, 3e-4)
LORA = LoraSpec(r=8, lora_alpha=16)
LORA_RATES = (1e-3, 3e-3)
EPOCHS = 2


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--rows", type=int, default=1024)
    options.add_argument("--domains", nargs="*", default=DOMAINS, choices=DOMAINS)
    asked = options.parse_args()
    torch.set_num_threads(1)
    prepare(Path("data"))
    base = load_base(BaseSpec(model="minilm", dtype="float32"))
    settings = {"what": __doc__, "seeds": asked.seeds, "rows": asked.rows}
    path = RESULTS / "quality.json"
    for domain in asked.domains:
        results = known(path, settings)
        if domain not in results:
            found = measure(base, domain, asked.seeds, asked.rows)
            results = known(path, settings) | {domain: found}  # another process may have written meanwhile
            write("quality", {**settings, "domains": {name: results[name] for name in DOMAINS if name in results}})
        print(domain, results[domain]["summary"], flush=True)


def known(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What is in the result file already, of these settings."""
    told = json.loads(path.read_text()) if path.exists() else {}
    held: dict[str, Any] = told["domains"] if all(told.get(key) == value for key, value in settings.items()) else {}
    return held


def measure(base: Base, domain: str, seeds: int, rows: int) -> dict[str, Any]:
    """One domain: head alone, LoRA and full fine-tuning, each at its better rate."""
    spec = labels(domain)
    task = build_task(spec, base.processor)
    data = rows_of(domain, task, rows)
    probe = AdapterEngine(base, slots=1, max_rank=1)
    started = time.process_time()
    guess = head_only(probe, task, data["train"], data["validation"])  # type: ignore[arg-type]
    head_seconds = time.process_time() - started
    head = task.score(guess(data["test"]), data["test"])["accuracy"]
    probe.close()
    tried, _, _ = train_lora(base, spec, task, data, [(0, rate) for rate in LORA_RATES], "validation")
    lora_rate = max(zip(tried, LORA_RATES, strict=True))[1]
    lora, lora_seconds, adapters = train_lora(base, spec, task, data, [(seed, lora_rate) for seed in range(seeds)])
    _, alone_seconds, _ = train_lora(base, spec, task, data, [(0, lora_rate)])
    settings = told(domain, spec, rows)
    best = max(FULL_RATES, key=lambda rate: full(settings, rate, 0, "validation")[0])
    whole = [full(settings, best, seed, "test") for seed in range(seeds)]
    numbers = sum(p.numel() for p in base.backbone.parameters())

    answer: dict[str, Any] = {
        "test_rows": len(data["test"]),
        "head_only": {"accuracy": head, "seconds": head_seconds},
        "lora": spread(lora) | {
            "learning_rate": lora_rate, "seconds_for_all_seeds": lora_seconds, "seconds_alone": alone_seconds,
            "parameters": adapters[0].num_parameters, "bytes": 4 * adapters[0].num_parameters,
        },
        "full": spread([score for score, _ in whole]) | {
            "learning_rate": best, "seconds_alone": statistics.mean(seconds for _, seconds in whole),
            "parameters": numbers, "bytes": 4 * numbers,
        },
    }  # fmt: skip
    if domain == "movies":
        tweets = rows_of("tweets", task, rows)["test"]
        answer["adapter_on_tweets"] = score_of(base, task, adapters[0], tweets)
    answer["summary"] = (
        f"head {head:.3f}, LoRA {answer['lora']['mean']:.3f}±{answer['lora']['spread']:.3f} in {alone_seconds:.0f} s, "
        f"full {answer['full']['mean']:.3f}±{answer['full']['spread']:.3f} in {answer['full']['seconds_alone']:.0f} s"
    )
    return answer


def score_of(base: Base, task: Task, adapter: Adapter, rows: Sequence[Features]) -> float:
    """Accuracy of an adapter on rows."""
    engine = AdapterEngine(base, slots=1, max_rank=LORA.r)
    slot = engine.load(adapter)
    score = task.score(predict(engine, {slot: task}, rows, [slot] * len(rows)), rows)["accuracy"]
    engine.close()
    return score


def labels(domain: str) -> TaskSpec:
    spec = TextClassificationSpec(max_length=64)
    return learn(TextClassification, spec, [read(f"data/{domain}/train-1024.parquet")])


def rows_of(domain: str, task: Task, rows: int) -> dict[str, list[Features]]:
    return {
        split: task.encode(read(f"data/{domain}/{name}.parquet").to_pylist()[:rows]) for split, name in FILES.items()
    }


def training(seed: int, rate: float = LORA_RATES[0]) -> TrainingSpec:
    return TrainingSpec(num_train_epochs=EPOCHS, learning_rate=rate, warmup_steps=0.1, seed=seed, eval_steps=10**6)


def train_lora(
    base: Base,
    spec: TaskSpec,
    task: Task,
    data: dict[str, list[Features]],
    asked: Sequence[tuple[int, float]],
    on: str = "test",
) -> tuple[list[float], float, list[Adapter]]:
    """Scores on split `on`, seconds for all (seed, rate) in one pack, the adapters."""
    engine = AdapterEngine(base, slots=len(asked), max_rank=LORA.r, train=True)
    train, validation = (Split(dict(enumerate(data[name])), len(data[name])) for name in ("train", "validation"))
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        pack = Pack(engine, {"data": Splits(train, validation)}, output=Path(folder))
        for number, (seed, rate) in enumerate(asked):
            pack.join(Job(f"job-{number}", "data", spec, LORA, training(seed, rate)))
        while pack.members:
            pack.step()
        seconds = time.process_time() - started
        adapters = [Adapter.load(Path(folder) / f"job-{number}" / "adapter") for number in range(len(asked))]
    held = data[on]
    slots = [engine.load(adapter) for adapter in adapters]
    scores = [task.score(predict(engine, {slot: task}, held, [slot] * len(held)), held)["accuracy"] for slot in slots]
    engine.close()
    return scores, seconds, adapters


def full(data: Data, rate: float, seed: int, on: str) -> tuple[float, float]:
    """Score on split `on` and seconds of training every weight, in the same row order as the adapters."""
    started = time.process_time()
    model = train_full(data, rate, seed)
    seconds = time.process_time() - started
    rows = data.rows(on)
    return data.task.score(answers_of(model, data.task, rows), rows)["accuracy"], seconds


def told(domain: str, spec: TaskSpec, rows: int) -> Data:
    """A domain's rows for training every weight, with the adapters' settings."""
    files = {split: f"data/{domain}/{name}.parquet" for split, name in FILES.items()}
    base = BaseSpec(model="minilm", dtype="float32")
    recipe = Recipe(
        base=base, task=spec, data=DataSpec(train=files["train"], validation=files["validation"]), training=training(0)
    )
    return Data(recipe, files["test"], rows)


def spread(scores: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation."""
    return {
        "accuracy": list(scores),
        "mean": statistics.mean(scores),
        "spread": statistics.stdev(scores) if len(scores) > 1 else 0.0,
    }


if __name__ == "__main__":
    main()
