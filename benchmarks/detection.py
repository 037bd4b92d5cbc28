"""LoRA on a convolutional detector beside every weight, the decoupled head and the prediction layers trained: mAP.

    python -m benchmarks.detection [--steps 150] [--labels one|four] [--seeds 3] [--only ARM ...] [--processes 2]
                                   [--full-rates 3e-5 1e-4 3e-4 1e-3]

YOLOX-Tiny (captchas' glyphs; its batch norms were folded into its convolutions before it was published, so neither side
has live ones) at 256 x 256 on emoji on photographs, 8 pictures a step, AdamW, 10 % warm-up and cosine, gradients cut at
norm 1, float32, one thread, no augmentation; the same pictures in the same order on both sides. `--labels one`: all
emoji are one class; `four`: animals, food, travel, smileys. Each arm stands at the best of its rates by the mAP of
validation rows with seed 0; `test` is mAP50-95 on drawings and parts of photographs that training never saw, of every
seed.

    full             every weight, in a plain torch loop on the plain class
    predictions      the prediction layers alone
    head             these and the decoupled head's convolutions
    lora-8           rank 8 on every convolution but the prediction layers, which are trained; alpha is twice the rank
    lora-4, -16, -32, -64        other ranks, at lora-8's rate; a layer that is narrower has its whole width

Adapters train in packs, the others in a process each. A run that is known is not run again; a killed one goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from benchmarks.arms import Run, best, name_of, of_rank, summary, work
from benchmarks.machine import RESULTS, write
from pipelines.baselines import Data, answers_of, head_names, train_full
from pipelines.emoji_scenes import prepare
from pipelines.kept_rows import write as write_rows
from ray_lora.adapters.adapter import Adapter
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import Recipe
from ray_lora.tasks import scoring_of
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack, Split, Splits

FULL_RATES, LORA_RATES = (3e-5, 1e-4, 3e-4, 1e-3), (1e-3, 2e-3, 5e-3)
PLAIN = {"full": FULL_RATES, "head": (3e-4, 1e-3, 3e-3), "predictions": (1e-3, 3e-3, 1e-2)}
RANKS = (8, 4, 16, 32, 64)  # the first one's rate is the others'
ARMS = (*(f"lora-{rank}" for rank in RANKS), *PLAIN)
ROWS = 16  # of a pack in one pass
_EVERY = 50  # steps


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=150)
    options.add_argument("--labels", choices=("one", "four"), default="one")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--only", nargs="*", choices=ARMS, default=ARMS, help="arms; lora-8 comes before other ranks")
    options.add_argument("--full-rates", nargs="+", type=float, default=FULL_RATES)
    options.add_argument("--processes", type=int, choices=(1, 2), default=2)
    options.add_argument("--runs", help="train these in this process, as JSON, and print their scores")
    asked = options.parse_args()
    torch.set_num_threads(1)
    data = told(prepare("data"), asked.labels, asked.steps)
    if asked.runs is not None:
        for run, found in trained(data, [(arm, rate, seed) for arm, rate, seed in json.loads(asked.runs)]):
            print(json.dumps([run, found]), flush=True)
        return
    measure(data, asked)


def measure(data: Data, asked: argparse.Namespace) -> None:
    """Run what is missing, rates first; the file is written after each."""
    path, part = RESULTS / "detection.json", f"{asked.labels} at {asked.steps}"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    known.pop("machine", None)
    mine: dict[str, Any] = known.setdefault(part, {"runs": {}})

    def keep(run: Run, found: Mapping[str, Any]) -> None:
        mine["runs"][name_of(run)] = found
        mine["summary"] = summary(mine["runs"])
        write("detection", {"what": __doc__, **known, part: mine})
        print(*run, json.dumps(found), flush=True)

    if "bare 0 0" not in mine["runs"]:
        keep(("bare", 0, 0), scores_bare(data))
    ranks = [arm for arm in asked.only if arm.startswith("lora-") and arm != "lora-8"]
    rates = PLAIN | {"full": tuple(asked.full_rates)}
    first = [(arm, rate, 0) for arm in asked.only if arm in PLAIN for rate in rates[arm]]
    told = ["--steps", str(asked.steps), "--labels", asked.labels]
    packs: list[list[Run]] = [[("lora-8", rate, 0) for rate in LORA_RATES], *([run] for run in first)]
    work("benchmarks.detection", told, packs, mine["runs"], keep, asked.processes)
    again = [(arm, best(mine["runs"], arm), seed) for arm in asked.only if arm in PLAIN for seed in range(asked.seeds)]
    rate = best(mine["runs"], "lora-8")
    packs = [[(arm, rate, seed) for seed in range(asked.seeds)] for arm in ("lora-8", *ranks)]
    work("benchmarks.detection", told, [*packs, *([run] for run in again)], mine["runs"], keep, asked.processes)
    print(json.dumps(mine["summary"], indent=1))


def trained(data: Data, runs: Sequence[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Adapters in one pack, or plain runs one by one."""
    if runs[0][0].startswith("lora-"):
        yield from trained_pack(data, runs)
        return
    parts = {"full": "", "predictions": head_names(data.base), "head": rf"{head_names(data.base)}|yolox\.head\."}
    for run in runs:
        arm, rate, seed = run
        data.rows("train")
        began = time.process_time()
        model = train_full(data, rate, seed, only=parts[arm])
        seconds = time.process_time() - began
        count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        found = {split: data.rows(split) for split in ("validation", "test")}
        scores = {split: data.task.score(answers_of(model, data.task, rows), rows) for split, rows in found.items()}
        yield run, told_of(scores, count, seconds)


def trained_pack(data: Data, runs: Sequence[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
    ranks = [int(arm.removeprefix("lora-")) for arm, _, _ in runs]
    engine = AdapterEngine(data.base, slots=len(runs), max_rank=max(ranks), train=True)
    rows = data.rows("train")
    with tempfile.TemporaryDirectory() as folder:
        splits = {"data": Splits(Split(dict(enumerate(rows)), len(rows)))}
        pack = Pack(engine, splits, output=Path(folder), max_rows=ROWS)
        for number, ((_, rate, seed), rank) in enumerate(zip(runs, ranks, strict=True)):
            lora = of_rank(data.recipe.lora, rank, engine)
            training = data.recipe.training.model_copy(update={"learning_rate": rate, "seed": seed})
            pack.join(Job(str(number), "data", data.task.spec, lora, training))
        began = time.process_time()
        while pack.members:
            for report in pack.step():
                if report.step % _EVERY == 0 or report.error:
                    print(report, file=sys.stderr, flush=True)
        seconds = time.process_time() - began
        adapters = [Adapter.load(Path(folder) / str(number) / "adapter") for number in range(len(runs))]
    engine.close()
    for run, adapter in zip(runs, adapters, strict=True):
        yield run, told_of(scores_of(data, adapter), adapter.num_parameters, seconds / len(runs))


def scores_of(data: Data, adapter: Adapter) -> dict[str, dict[str, float]]:
    engine = AdapterEngine(data.base, slots=1, max_rank=adapter.config.r)
    slot, scores = engine.load(adapter), {}
    for split in ("validation", "test"):
        rows = data.rows(split)
        answers = predict(engine, {slot: data.task}, rows, [slot] * len(rows), [scoring_of(data.task)] * len(rows))
        scores[split] = data.task.score(answers, rows)
    engine.close()
    return scores


def scores_bare(data: Data) -> dict[str, Any]:
    """The base with its own prediction layers, where it has the class; else fresh ones."""
    engine = AdapterEngine(data.base, slots=1, max_rank=1)
    adapter = engine.export(engine.init(data.recipe.lora.model_copy(update={"r": 1}), data.task.head, seed=0))
    engine.close()
    return told_of(scores_of(data, adapter), 0, 0.0)


def told_of(scores: Mapping[str, Mapping[str, float]], parameters: int, seconds: float) -> dict[str, Any]:
    found = {"validation": scores["validation"]["map"], "test": scores["test"]["map"]}
    return found | {"test_50": scores["test"]["map_50"], "parameters": parameters, "seconds": round(seconds, 1)}


def told(base: Path, labels: str, steps: int) -> Data:
    """The rows and settings of both sides."""
    folder = Path("data/detection") if labels == "four" else one_class(Path("data/detection"))
    recipe = Recipe.load(
        Path(__file__).parents[1] / "examples/detection.yaml",
        [
            f"base.model={base}",
            *(f"data.{split}={folder / split}.parquet" for split in ("train", "validation")),
            f"training.max_steps={steps}",
            f"training.eval_steps={steps}",
            "training.lr_scheduler_type=cosine",
            "training.warmup_steps=0.1",
            "training.per_device_train_batch_size=8",
        ],
    )
    return Kept(recipe, str(folder / "test.parquet"))


def one_class(folder: Path) -> Path:
    """The same pictures, all of whose objects are of the class "emoji"."""
    out = folder.with_name("detection-one")
    for path in folder.glob("*.parquet"):
        if not (out / path.name).exists() or (out / path.name).stat().st_mtime < path.stat().st_mtime:
            rows = read(str(path)).to_pylist()
            for row in rows:
                row["objects"]["category"] = ["emoji"] * len(row["objects"]["bbox"])
            write_rows(out / path.name, pa.Table.from_pylist(rows))
    return out


class Kept(Data):
    """Rows that are encoded once."""

    def rows(self, split: str) -> list[Any]:
        kept: dict[str, list[Any]] = self.__dict__.setdefault("_rows", {})
        if split not in kept:
            kept[split] = super().rows(split)
        return kept[split]


if __name__ == "__main__":
    main()
