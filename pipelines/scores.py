"""Held-out scores: of adapters on one engine, and of what they are compared with, which is trained once and kept.

Baselines train in Ray tasks, one CPU each, so that as many run at once as the cluster has CPUs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from pipelines.baselines import Data, score_bare, score_full, score_head
from pipelines.kept_rows import digest
from ray_lora.adapters.adapter import Adapter
from ray_lora.atomic import write_atomic
from ray_lora.data.files import find_files
from ray_lora.data.pieces import digest as content
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import Json, LoraSpec, TaskSpec
from ray_lora.running.allocator import WORKER_ENV
from ray_lora.tasks import Features, Task, build_task, scoring_of


def score_adapters(
    data: Data, adapters: Sequence[Adapter], source: Adapter | None, metric: str, mode: str
) -> tuple[float, list[float], int]:
    """The source's held-out score (the bare base's where there is no source), each adapter's, and which of them is
    best on validation rows."""
    loaded = [*adapters, *([source] if source is not None else [])]
    engine = AdapterEngine(data.base, slots=len(loaded), max_rank=max(adapter.config.r for adapter in loaded))
    test, validation = data.rows("test"), data.rows("validation")
    scores: list[float] = []
    chosen: list[float] = []
    for adapter in loaded:
        assert adapter.card.task is not None
        slot, own = engine.load(adapter), build_task(adapter.card.task, data.base.processor)
        # rows of the target's task, answers of the adapter's own: a source may know other labels
        for rows, found in ((test, scores), (validation, chosen)):
            if rows is test or adapter is not source:
                answers = predict(engine, {slot: own}, rows, [slot] * len(rows), [scoring_of(own)] * len(rows))
                found.append(data.task.score(answers, rows)[metric])
    engine.close()
    best = (max if mode == "max" else min)(range(len(chosen)), key=chosen.__getitem__)
    before = scores.pop() if source is not None else score_bare(data)[metric]
    return before, scores, best


def first_seconds(output: Path, results: Sequence[Any]) -> float:
    """What one training call took the first time: a second one finds everything trained, and is over at once.

    Args:
        output: the call's folder, which keeps it. results: Ray Train's, of every adapter.
    """
    record = output / "seconds.json"
    if not record.exists():
        record.write_text(json.dumps(results[0].metrics["seconds"]))
    return float(json.loads(record.read_text()))


Scores = dict[str, dict[str, float]]  # by what was scored, each metric


@dataclass(frozen=True)
class Kept:
    """Rows of what a base knew before, of which its adapters may forget.

    Attributes:
        rows: their file. task: in which they are scored, by its own metric. words: what they are.
    """

    rows: str
    task: TaskSpec
    words: str


def score_kept(data: Data, adapters: Sequence[Adapter], kept: Kept) -> dict[str, Json]:
    """What the bare base scores on rows of before, and each adapter."""
    task = build_task(kept.task, data.base.processor)
    rows = task.encode(read(kept.rows).to_pylist()[: data.most])
    engine = AdapterEngine(data.base, slots=len(adapters), max_rank=max(adapter.config.r for adapter in adapters))
    bare = engine.init(LoraSpec(r=1, target_modules=data.recipe.lora.target_modules), task.head, seed=0)
    before = _scored(engine, task, rows, bare)
    engine.evict(bare)
    after = [_scored(engine, task, rows, engine.load(adapter)) for adapter in adapters]
    engine.close()
    return {"words": kept.words, "metric": task.metric, "rows": len(rows), "before": before, "after": after}


def _scored(engine: AdapterEngine, task: Task, rows: Sequence[Features], slot: int) -> float:
    answers = predict(engine, {slot: task}, rows, [slot] * len(rows), [scoring_of(task)] * len(rows))
    return task.score(answers, rows)[task.metric]


@dataclass(frozen=True)
class Rivals:
    """Baselines of a line, each score kept in `file` as soon as it is known.

    Attributes:
        here: score in this process; for a few rows a start of another costs more.
    """

    data: Data
    file: Path
    here: bool = False

    def scores(
        self, metric: str, mode: str, rates: Sequence[float], seeds: Sequence[int], head: bool = True
    ) -> tuple[list[float], list[float]]:
        """The head alone's held-out score (none where not `head`), and every seed's of training all weights at the best
        of `rates`."""
        known = self._known()
        tried = {rate: f"full {rate:g} 0 validation" for rate in rates if len(rates) > 1}
        alone = ["head"] if head else []
        self._find([*alone, *tried.values()], known)
        better = max if mode == "max" else min
        rate = better(tried, key=lambda rate: known[tried[rate]][metric]) if tried else rates[0]
        full = [f"full {rate:g} {seed} test" for seed in seeds]
        self._find(full, known)
        return [known[what][metric] for what in alone], [known[what][metric] for what in full]

    def _known(self) -> dict[str, dict[str, float]]:
        """What was found before for the same recipe and rows."""
        kept = json.loads(self.file.read_text()) if self.file.exists() else {}
        return dict(kept["scores"]) if kept.get("of") == self._mark() else {}

    def _mark(self) -> str:
        recipe = self.data.recipe
        held = {"base", "task", "data", "training"}
        given = {"train": recipe.data.train, "validation": recipe.data.validation, "test": self.data.test}
        contents = [content(find_files(paths or "", split)) for split, paths in given.items()]
        return digest(recipe.model_dump_json(include=held) + "".join(contents) + str(self.data.most))

    def _find(self, wanted: Sequence[str], known: dict[str, dict[str, float]]) -> None:
        """Score what is not known yet, as many at once as there are CPUs."""
        missing = [what for what in wanted if what not in known]
        for found in self._here(missing) if self.here else self._tasks(missing):
            known |= found
            write_atomic(self.file, json.dumps({"of": self._mark(), "scores": known}, indent=1))

    def _here(self, wanted: Sequence[str]) -> Iterator[Scores]:
        return (score(self.data, what) for what in wanted)

    def _tasks(self, wanted: Sequence[str]) -> Iterator[Scores]:
        data = Data(self.data.recipe, self.data.test, self.data.most)  # without what it has read
        left = [_task.remote(data, what, str(Path.cwd())) for what in wanted]
        while left:
            (done, *_), left = ray.wait(left)
            yield ray.get(done)


@ray.remote(num_cpus=1, max_retries=1, runtime_env={"env_vars": {**WORKER_ENV, "OMP_NUM_THREADS": "1"}})
def _task(data: Data, what: str, folder: str) -> Scores:
    import torch

    os.chdir(folder)  # paths of a recipe may be relative
    torch.set_num_threads(1)
    return score(data, what)


def score(data: Data, what: str) -> Scores:
    """Scores of "head", or of "full RATE SEED SPLIT", with those of the same weights on the other split."""
    kind, *told = what.split()
    if kind == "head":
        return {what: score_head(data)}
    rate, seed, _ = told
    found = score_full(data, float(rate), int(seed), ("validation", "test"))
    return {f"full {rate} {seed} {split}": scores for split, scores in found.items()}
