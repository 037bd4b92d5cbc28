"""Packed = alone, and a killed pack goes on, for jobs of any task; some are taught where it has soft targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ray_lora.distillation_spec import NO_TEACHER
from ray_lora.inference.teacher import soft_targets
from ray_lora.recipe import DistillationSpec, LoraSpec, TrainingSpec
from ray_lora.tasks import Features
from ray_lora.tasks.soft_targets import Distilled
from ray_lora.training.job import Job, Report
from ray_lora.training.shards import Split, Splits
from tests.conformance.case import Case
from tests.conformance.rules import fitting
from tests.unit.packs import WatchedPack, assert_same, losses


def check_packed(case: Case, tmp_path: Path) -> None:
    """Neighbours of other ranks, rates and batch sizes, one of which joins later, change no loss and no tensor."""
    jobs = jobs_of(case)
    pack = pack_of(case, slots=3, max_rows=4)
    reports = run(pack, {0: jobs[:2], 2: jobs[2:]})
    for job in jobs:
        alone = pack_of(case, slots=1, max_rows=1000)
        begin = began(alone, job)
        assert losses(reports, job.name) == pytest.approx(losses(run(alone, {}), job.name), abs=case.close)
        assert len(losses(reports, job.name)) == job.training.max_steps
        assert_same(pack.left[job.name], alone.left[job.name], case.close)
        assert max((alone.left[job.name][key] - value).abs().max() for key, value in begin.items()) > 1e-4


def check_resumed(case: Case, tmp_path: Path) -> None:
    """A pack that is gone after some steps ends, from its checkpoints, with the very numbers of one that was not."""
    jobs = jobs_of(case)[:2]
    whole = pack_of(case, slots=2, output=tmp_path / "whole")
    expected = run(whole, {0: jobs})
    first = pack_of(case, slots=2, output=tmp_path / "killed")
    for job in jobs:
        first.join(job)
    early = [report for _ in range(3) for report in first.step()]
    for job in jobs:
        first.save(job.name)
    first.engine.close()
    second = pack_of(case, slots=2, output=tmp_path / "killed")
    for job in jobs:
        second.join(job, tmp_path / "killed" / job.name / "state")
        assert second.members[job.name].step == 3
    reports = early + run(second, {})
    assert [(r.job, r.step, r.loss, r.metrics) for r in reports] == [
        (r.job, r.step, r.loss, r.metrics) for r in expected
    ]
    assert [report.metrics is not None for report in reports if report.done] == [True] * len(jobs)
    for job in jobs:
        assert second.left[job.name].keys() == whole.left[job.name].keys()
        for key, value in whole.left[job.name].items():
            assert torch.equal(second.left[job.name][key], value), key


# -------------------------------------------------------------------- how


def jobs_of(case: Case) -> list[Job]:
    """Three jobs on the case's rows that have nothing in common but the task; one trains on altered rows, the others
    learn from a teacher, each in its own way, where the task has soft targets."""
    ways = {
        "small": DistillationSpec(teacher="one", weight=0.7),
        "late": DistillationSpec(teacher="one", temperature=5),
    }

    def job(name: str, lora: dict[str, Any], **training: Any) -> Job:
        always = {"logging_steps": 1, "eval_steps": 10_000}
        more = case.lora if name != "small" else {}
        spec = LoraSpec(target_modules=tuple(case.targets), **lora, **more)
        augmentation = fitting(case.task) if name == "large" else ()
        taught = ways.get(name, NO_TEACHER) if isinstance(case.task, Distilled) else NO_TEACHER
        return Job(name, "rows", case.spec, spec, TrainingSpec(**always | training), augmentation, taught)

    return [
        job("small", {"r": 1}, max_steps=6, learning_rate=1e-2, per_device_train_batch_size=2, seed=1),
        job(
            "large",
            {"r": 8, "lora_dropout": 0.2, "use_rslora": True},
            max_steps=5,
            learning_rate=3e-3,
            per_device_train_batch_size=5,
            weight_decay=0.1,
            warmup_steps=2,
            seed=2,
        ),
        job("late", {"r": 3, "lora_alpha": 5}, max_steps=4, learning_rate=3e-2, per_device_train_batch_size=3, seed=3),
    ]


def pack_of(case: Case, slots: int, max_rows: int = 4, output: Path | None = None) -> WatchedPack:
    """A pack on a freshly loaded base; it is trained and scored on the same rows."""
    engine = case.engine(slots)
    engine.reserve_head(case.task.head)
    split = Split(dict(enumerate(case.features)), len(case.features))
    train = Split(dict(enumerate(taught_features(case))), len(case.features))
    return WatchedPack(engine, {"rows": Splits(train, split)}, output=output, max_rows=max_rows)


def taught_features(case: Case) -> list[Features]:
    """The rows with what an untrained head says of each; as they are where the task has no soft targets."""
    task = case.task
    if not isinstance(task, Distilled):
        return case.features
    engine = case.engine(1)
    slot = engine.init(LoraSpec(r=1, target_modules=tuple(case.targets)), task.head, seed=7)
    soft = soft_targets(engine, slot, task, case.features, max_rows=3)
    engine.close()
    return [task.with_soft_targets(row, told) for row, told in zip(case.features, soft, strict=True)]


def began(pack: WatchedPack, job: Job) -> dict[str, Tensor]:
    """What a job starts from; it has joined."""
    return pack.engine.read(pack.join(job))


def run(pack: WatchedPack, joins: Mapping[int, Sequence[Job]]) -> list[Report]:
    """Reports of a pack until its last job is done; jobs join before the given steps."""
    reports: list[Report] = []
    step = 0
    while pack.members or step <= max(joins, default=-1):
        for job in joins.get(step, ()):
            pack.join(job)
        reports += pack.step()
        step += 1
    pack.engine.close()
    return reports
