"""A tiny pack: letters for tokens, jobs of different tasks, and what a job's training leaves behind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ray_lora.engine import AdapterEngine
from ray_lora.recipe import LoraSpec, TrainingSpec
from ray_lora.tasks import Features, build_task
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.training.job import Job, Report
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Group, Split, Splits
from tests.unit.bases import VOCABULARY, open_base

LABELS = {2: TextClassificationSpec(labels=("a", "b")), 3: TextClassificationSpec(labels=("a", "b", "c"))}


class Letters:
    """A tokenizer: one token a letter."""

    pad_token_id = 0

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1 + ord(letter) % (VOCABULARY - 1) for letter in text] for text in texts]}


def letter_rows(labels: int, count: int, seed: int) -> list[Features]:
    """Learnable rows of lengths 2 to 17."""
    draw, spec = random.Random(seed), LABELS[labels]
    assert spec.labels is not None
    rows = []
    for _ in range(count):
        label = draw.choice(spec.labels)
        noise = "xyz"[: draw.randint(1, 3)] * draw.randint(1, 4)
        rows.append({"text": label * draw.randint(1, 5) + noise, "label": label})
    return build_task(spec, Letters()).encode(rows)


ROWS = {2: letter_rows(2, 70, 0), 3: letter_rows(3, 53, 1)}


def shards(labels: int, rank: int = 0, world: int = 1) -> Splits:
    """One worker's rows of both splits: every `world`-th."""
    features = ROWS[labels]
    mine = Split({row: features[row] for row in range(rank, len(features), world)}, len(features))
    return Splits(mine, mine)


class WatchedPack(Pack):
    """A pack that keeps what a job had trained when it left."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.left: dict[str, dict[str, Tensor]] = {}

    def leave(self, name: str) -> None:
        self.left[name] = tensors_of(self, name)
        super().leave(name)


def make_pack(
    folder: Path,
    dtype: torch.dtype = torch.float64,
    *,
    slots: int = 4,
    output: Path | None = None,
    max_rows: int = 24,
    group: Group | None = None,
) -> WatchedPack:
    """A pack on a freshly loaded base, with room for heads of three labels."""
    group = group or Group()
    engine = AdapterEngine(open_base(folder, dtype, Letters()), slots=slots, max_rank=16, train=True)
    engine.reserve_head(build_task(LABELS[3], Letters()).head)
    data = {str(labels): shards(labels, group.rank, group.world) for labels in LABELS}
    return WatchedPack(engine, data, group=group, output=output, max_rows=max_rows)


def make_job(name: str, labels: int = 2, lora: LoraSpec | None = None, **training: Any) -> Job:
    """A job that reports every step, never evaluates before its end, begins random and is written as it was trained,
    unless told otherwise."""
    options = {
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "eval_steps": 10_000,
        "head_start": "random",
        "calibrate": False,
    } | training
    return Job(name, str(labels), LABELS[labels], lora or LoraSpec(), TrainingSpec(**options))


def tensors_of(pack: Pack, name: str) -> dict[str, Tensor]:
    """Everything the job trains, at full precision."""
    return pack.engine.read(pack.members[name].slot)


def losses(reports: Sequence[Report], name: str) -> list[float]:
    """One job's reported losses in order."""
    return [report.loss for report in reports if report.job == name and report.loss is not None]


def train_alone(
    folder: Path, job: Job, dtype: torch.dtype = torch.float64
) -> tuple[list[float], list[dict[str, Tensor]]]:
    """A job by itself: its loss at each step, and its tensors at the start and after each step."""
    pack = make_pack(folder, dtype, slots=1)
    pack.join(job)
    reports, tensors = [], [tensors_of(pack, job.name)]
    while pack.members:
        reports += pack.step()
        tensors.append(tensors_of(pack, job.name) if pack.members else pack.left[job.name])
    return losses(reports, job.name), tensors


def assert_packed_is_alone(folder: Path, pack: Pack, jobs: Sequence[Job], tolerance: float) -> None:
    """Train these jobs beside what the pack holds already, and each in a pack of its own."""
    for job in jobs:
        pack.join(job)
    while pack.members:
        pack.step()
    for job in jobs:
        _, tensors = train_alone(folder, job)
        assert_same(pack.left[job.name], tensors[-1], tolerance)


def assert_same(mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert set(mine) == set(theirs)
    for key, tensor in mine.items():
        torch.testing.assert_close(
            tensor, theirs[key], atol=tolerance, rtol=0, msg=lambda text, key=key: f"{key}: {text}"
        )
