"""LoRA on segmenters beside every weight and the classifier alone trained: Dice, with few cases and with all.

    python -m benchmarks.segmentation [--seeds 3] [--only PART ...] [--smoke]

Parts: `textured` and `textured-few` (12 pictures), `lesions` (16), on the small U-Net that knows plain shapes
(`pipelines.segmentation_base`); `emoji` on ERFNet as others trained it for table lines; `emoji-craft` on CRAFT as
others trained it for letters, 60 steps, with the base's norms alone, since it is large. Both sides: the recipe's steps,
pictures in the same order, AdamW, 10 % warm-up and linear decay, cross entropy and Dice, float32, one thread, no
augmentation. Each arm stands at the best of its rates by the Dice of validation rows with seed 0; `test` is the Dice
of scenes that training never saw, of every seed. Full training has live batch norms; adapters' own keep the
statistics of their rows.

    full             every weight, in a plain torch loop on the plain class
    head             the classifier alone
    lora-8           rank 8 on every convolution, batch norms of its own, and the classifier; alpha is twice the rank
    frozen-8         the same with the base's batch norms
    lora-4, -16, -32, -64        other ranks; a layer that is narrower has its whole width

Adapters train in packs. A run that is known is not run again; a killed one goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import Run, best, name_of, of_rank, summary, work
from benchmarks.machine import RESULTS, write
from pipelines.baselines import Data, answers_of, head_names, train_full
from pipelines.segmentation import KINDS, line
from pipelines.segmentation_base import prepare
from pipelines.segmentation_scenes import prepare as draw
from pipelines.story import asked as told
from ray_lora.adapters.adapter import Adapter
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import LoraSpec
from ray_lora.tasks import scoring_of
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Split, Splits

PARTS = ("textured", "textured-few", "lesions", "emoji", "emoji-craft")
CURVES = ("textured", "textured-few", "lesions")  # with all ranks; ERFNet takes too long
RATES = {"full": (1e-3, 3e-3, 1e-2), "head": (3e-3, 1e-2, 3e-2), "lora": (2e-3, 5e-3, 1e-2, 2e-2)}
CRAFT = ("base.model=craft-text", "task.image_size=[96, 96]", "training.max_steps=60")
CRAFT_RATES = {"full": (3e-4, 1e-3, 3e-3), "head": (1e-2,), "lora": (1e-3, 3e-3, 1e-2)}
RANKS = (4, 16, 32, 64)
FEW = 12
NORMS = {"lora": "own", "frozen": "base"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    options.add_argument("--processes", type=int, choices=(1, 2), default=2)
    options.add_argument("--smoke", action="store_true", help="two steps, to see that everything runs; nothing is kept")
    options.add_argument("--runs", help="train these of one part in this process, as JSON, and print their scores")
    asked = options.parse_args()
    torch.set_num_threads(1)
    if asked.runs is not None:
        for run, found in trained(data_of(asked.only[0], asked.smoke), json.loads(asked.runs)):
            print(json.dumps([run, found]), flush=True)
        return
    prepare("data")
    for kind in KINDS:
        draw(kind)
    for part in asked.only:
        measure(part, asked)


def data_of(part: str, smoke: bool) -> Cases:
    """The recipe of the pipeline's line and its rows."""
    kind, _, way = part.partition("-")
    others = [*(CRAFT if way == "craft" else ()), *(["training.max_steps=2"] if smoke else ())]
    given = line(told(None, others), kind)
    return Cases(given.recipe, given.test, most=FEW if smoke else None, cases=FEW if way == "few" else None)


def measure(part: str, asked: argparse.Namespace) -> None:
    """Run what is missing, rates first; the file is written after each."""
    path = RESULTS / "segmentation.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() and not asked.smoke else {}
    known.pop("machine", None)
    mine: dict[str, Any] = known.setdefault(part, {"runs": {}})

    def keep(run: Run, found: Mapping[str, Any]) -> None:
        mine["runs"][name_of(run)] = found
        mine["summary"] = summary(mine["runs"])
        if not asked.smoke:
            write("segmentation", {"what": __doc__, **known, part: mine})
        print(part, *run, json.dumps(found), flush=True)

    more = ["--only", part, *(["--smoke"] if asked.smoke else [])]
    craft = part == "emoji-craft"
    tried = CRAFT_RATES if craft else RATES
    rates = {arm: values[:1] if asked.smoke else values for arm, values in tried.items()}
    first = [[(arm, rate, 0)] for arm in ("full", "head") for rate in rates[arm]]
    ranked = [f"lora-{rank}" for rank in (8, *(RANKS if part in CURVES else ()))]
    ranked, once = (["frozen-8"], []) if craft else (ranked, ["frozen-8"])
    packs: list[list[Run]] = [[(arm, rate, 0) for rate in rates["lora"]] for arm in (*ranked, *once)]
    packs += [*first, [("bare", 0.0, 0)]]
    work("benchmarks.segmentation", more, packs, mine["runs"], keep, asked.processes)
    packs = [[(arm, best(mine["runs"], arm), seed) for seed in range(asked.seeds)] for arm in ranked]
    packs += [[(arm, best(mine["runs"], arm), seed)] for arm in ("full", "head") for seed in range(asked.seeds)]
    work("benchmarks.segmentation", more, packs, mine["runs"], keep, asked.processes)
    print(json.dumps({part: mine["summary"]}, indent=1), flush=True)


# -------------------------------------------------------------------- one process's runs


class Cases(Data):
    """Rows that are encoded once, and of the training rows the first `cases`."""

    def __init__(self, recipe: Any, test: str, most: int | None, cases: int | None) -> None:
        super().__init__(recipe, test, most)
        self.__dict__["cases"], self.__dict__["kept"] = cases, {}

    def rows(self, split: str) -> list[Any]:
        kept: dict[str, list[Any]] = self.__dict__["kept"]
        if split not in kept:
            kept[split] = super().rows(split)[: self.__dict__["cases"] if split == "train" else None]
        return kept[split]


def trained(data: Cases, runs: Sequence[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Adapters in one pack, or a plain run."""
    arm, rate, seed = runs[0]
    if arm.startswith(("lora-", "frozen-")):
        yield from trained_pack(data, runs)
    elif arm == "bare":
        engine = AdapterEngine(data.base, slots=1, max_rank=1)
        slot = engine.init(LoraSpec(r=1, target_modules=data.recipe.lora.target_modules), data.task.head, seed=0)
        yield runs[0], said(scores_of(data, engine, slot), 0, 0.0)
    else:
        began = time.process_time()
        model = train_full(data, rate, seed, only="" if arm == "full" else head_names(data.base))
        seconds = time.process_time() - began
        count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        rows = {split: data.rows(split) for split in ("validation", "test")}
        scores = {split: data.task.score(answers_of(model, data.task, rows[split]), rows[split]) for split in rows}
        yield runs[0], said(scores, count, seconds)


def trained_pack(data: Cases, runs: Sequence[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
    ranks = [int(arm.partition("-")[2]) for arm, _, _ in runs]
    engine, rows = AdapterEngine(data.base, slots=len(runs), max_rank=max(ranks), train=True), data.rows("train")
    with tempfile.TemporaryDirectory() as folder:
        pack = Pack(engine, {"data": Splits(Split(dict(enumerate(rows)), len(rows)))}, output=Path(folder))
        for number, ((arm, rate, seed), rank) in enumerate(zip(runs, ranks, strict=True)):
            training = data.recipe.training.model_copy(update={"learning_rate": rate, "seed": seed})
            lora = of_rank(data.recipe.lora, rank, engine).model_copy(
                update={"batch_norms": NORMS[arm.partition("-")[0]]}
            )
            pack.join(Job(str(number), "data", data.task.spec, lora, training))
        began = time.process_time()
        while pack.members:
            pack.step()
        seconds = (time.process_time() - began) / len(runs)
        adapters = [Adapter.load(Path(folder) / str(number) / "adapter") for number in range(len(runs))]
    engine.close()
    engine = AdapterEngine(data.base, slots=len(runs), max_rank=max(ranks))
    for run, adapter in zip(runs, adapters, strict=True):
        yield run, said(scores_of(data, engine, engine.load(adapter)), adapter.num_parameters, seconds)


def scores_of(data: Cases, engine: AdapterEngine, slot: int) -> dict[str, dict[str, float]]:
    found = {}
    for split in ("validation", "test"):
        rows = data.rows(split)
        answers = predict(engine, {slot: data.task}, rows, [slot] * len(rows), [scoring_of(data.task)] * len(rows))
        found[split] = data.task.score(answers, rows)
    return found


def said(scores: Mapping[str, Mapping[str, float]], parameters: int, seconds: float) -> dict[str, Any]:
    found = {"validation": scores["validation"]["dice"], "test": scores["test"]["dice"]}
    return found | {"test_iou": scores["test"]["iou"], "parameters": parameters, "seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
