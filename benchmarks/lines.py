"""Tasks that benchmarks train an adapter for on their real bases, and what its answers to held-out rows score.

    line = LINES["prompts"]
    data = line.ready("float32")                                      # its rows are made where they are missing
    [adapter] = trained(data, Path("runs/lines/prompts/float32"), [0])

Adapters that were trained are kept, so that a killed call goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines import (
    drawings,
    emoji_scenes,
    prompts,
    rated_texts,
    recommender_base,
    segmentation_base,
    segmentation_scenes,
    written_texts,
)
from pipelines.baselines import Data
from ray_lora.adapters.adapter import Adapter
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import Recipe
from ray_lora.tasks import Features, scoring_of
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Split, Splits

EXAMPLES = Path(__file__).parents[1] / "examples"
KEPT = Path("runs/lines")


@dataclass(frozen=True)
class Line:
    """A task.

    Attributes:
        recipe: of `examples/`, with overrides. prepare: makes its rows, of the folder `rows`.
        metric: what held-out answers are scored by. train, validation: the files' names.
        at_once: rows of one pass that is timed.
    """

    recipe: str
    prepare: Callable[[], object]
    rows: str
    metric: str
    overrides: Sequence[str] = ()
    train: str = "train"
    validation: str = "validation"
    at_once: int = 8

    @property
    def test(self) -> str:
        return f"data/{self.rows}/test.parquet"

    def ready(self, dtype: str) -> Data:
        self.prepare()
        files = [f"data.train=data/{self.rows}/{self.train}.parquet"]
        files += [f"data.validation=data/{self.rows}/{self.validation}.parquet"]
        told = [*files, *self.overrides, f"base.dtype={dtype}", "tracking.uri=null"]
        return Data(Recipe.load(EXAMPLES / self.recipe, told), self.test)


def _scenes() -> None:
    segmentation_base.prepare()
    segmentation_scenes.prepare("textured")


LINES = {
    "tweets": Line(
        "tweets.yaml", rated_texts.prepare, "tweets", "accuracy",
        ("lora.r=8", "training.num_train_epochs=2", "training.learning_rate=1e-3", "training.warmup_steps=0",
         "training.train_sampling_strategy=random", "training.eval_steps=null"),
        "train-1024", "validation-512", at_once=32,
    ),
    "pictures": Line("pictures.yaml", drawings.prepare, "drawings-twemoji", "accuracy"),
    "boxes": Line("detection.yaml", emoji_scenes.prepare, "detection", "map"),
    "masks": Line("segmentation.yaml", _scenes, "scenes-textured", "dice"),
    "evening": Line("recommendation.yaml", recommender_base.prepare, "interactions/evening", "ndcg_10"),
    "prompts": Line("speech.yaml", prompts.prepare, "prompts-it", "wer"),
    "answers": Line(
        "generation.yaml", written_texts.prepare, "written-answers", "exact_match",
        ("task.rows=messages", "task.answer_tokens=20"),
    ),
    "entries": Line(
        "generation.yaml", written_texts.prepare, "written-entries", "perplexity",
        ("training.num_train_epochs=2", "task.answer_tokens=32"),
    ),
}  # fmt: skip


def trained(data: Data, folder: Path, seeds: Sequence[int]) -> list[Adapter]:
    """One pack of all seeds; those that are there already are read."""
    names = [f"seed-{seed}" for seed in seeds]
    if not all((folder / name / "adapter").exists() for name in names):
        recipe = data.recipe
        rank = recipe.lora.r
        engine = AdapterEngine(data.base, slots=len(names), max_rank=rank, train=True)
        encoded = {split: dict(enumerate(data.rows(split))) for split in ("train", "validation")}
        splits = Splits(*(Split(encoded[split], len(encoded[split])) for split in ("train", "validation")))
        with tempfile.TemporaryDirectory() as place:
            pack = Pack(engine, {"rows": splits}, output=Path(place), max_rows=64)
            for name, seed in zip(names, seeds, strict=True):
                training = recipe.training.model_copy(update={"seed": seed})
                pack.join(Job(name, "rows", data.task.spec, recipe.lora, training))
            while pack.members:
                pack.step()
            for name in names:
                Adapter.load(Path(place) / name / "adapter").save(folder / name / "adapter")
        engine.close()
    return [Adapter.load(folder / name / "adapter") for name in names]


def scores(data: Data, adapters: Sequence[Adapter], metric: str) -> list[float]:
    """Of each adapter on all held-out rows, in mixed passes."""
    engine = AdapterEngine(data.base, slots=len(adapters), max_rank=adapters[0].config.r)
    task, features = data.task, data.rows("test")
    slots = [engine.load(adapter) for adapter in adapters]
    mixed: list[Features] = [row for row in features for _ in slots]
    told = [scoring_of(task)] * len(mixed)
    with torch.inference_mode():
        answers = predict(engine, dict.fromkeys(slots, task), mixed, slots * len(features), told)
    engine.close()
    return [task.score(answers[at :: len(slots)], features)[metric] for at in range(len(slots))]
