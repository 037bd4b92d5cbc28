"""What holds on a processor holds on a GPU: packed as alone, mixed as alone, and a checkpoint that goes on.

The same tests run on both; those marked `gpu` are skipped where there is none, and say so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import BaseSpec, LoraSpec
from ray_lora.tasks import build_task, scoring_of
from ray_lora.training.pack import Pack
from tests.unit.bases import save_base
from tests.unit.packs import LABELS, ROWS, Letters, assert_same, make_job, shards

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
TOLERANCE = 1e-4  # of float32, over some dozens of steps
JOBS = [
    make_job("narrow", 2, LoraSpec(r=1, lora_alpha=2), num_train_epochs=2, per_device_train_batch_size=8, seed=2),
    make_job("wide", 3, LoraSpec(r=8, use_rslora=True), num_train_epochs=1, learning_rate=3e-3, seed=4),
    make_job("few layers", 2, LoraSpec(r=4, target_modules=("query", "value")), num_train_epochs=1, seed=1),
]


@pytest.fixture(scope="module", params=("bert", "llama"))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(request.param, tmp_path_factory.mktemp("bases") / request.param)


def open_engine(folder: Path, device: str) -> AdapterEngine:
    base = load_base(BaseSpec(model=str(folder), dtype="float32"), device)
    engine = AdapterEngine(replace(base, processor=Letters()), slots=len(JOBS), max_rank=8, train=True)
    engine.reserve_head(build_task(LABELS[3], Letters()).head)
    return engine


def open_pack(folder: Path, device: str, output: Path | None = None) -> Pack:
    return Pack(
        open_engine(folder, device), {str(labels): shards(labels) for labels in LABELS}, output=output, max_rows=24
    )


def jobs_of(folder: Path) -> list[Any]:
    """Those whose layers the base has."""
    return [job for job in JOBS if folder.name == "bert" or job.lora.target_modules == "all-linear"]


@pytest.mark.parametrize("device", DEVICES)
def test_packed_is_alone(folder: Path, device: str, tmp_path: Path) -> None:
    jobs, found = jobs_of(folder), {}
    for output, together in (("together", [jobs]), ("alone", [[job] for job in jobs])):
        for members in together:
            pack = open_pack(folder, device, tmp_path / output)
            for job in members:
                pack.join(job)
            while pack.members:
                pack.step()
            pack.engine.close()
        found[output] = {job.name: Adapter.load(tmp_path / output / job.name / "adapter").tensors for job in jobs}
    for job in jobs:
        assert_same(found["together"][job.name], found["alone"][job.name], TOLERANCE)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_a_mixed_pass_are_answered_as_alone(folder: Path, device: str) -> None:
    pack = open_pack(folder, device)
    for seed in range(3):
        pack.join(make_job(f"job {seed}", 2, LoraSpec(r=8), num_train_epochs=9, seed=seed))
    for _ in range(5):
        pack.step()
    engine, task = pack.engine, pack.task(LABELS[2])
    slots = [member.slot for member in pack.members.values()]
    rows = ROWS[2][:24]
    owners = [slots[row % 3] for row in range(len(rows))]
    told = [scoring_of(task)] * len(rows)
    mixed = predict(engine, dict.fromkeys(slots, task), rows, owners, told)
    for slot in slots:
        mine = [row for row, owner in enumerate(owners) if owner == slot]
        alone = predict(engine, {slot: task}, [rows[row] for row in mine], [slot] * len(mine), told[: len(mine)])
        for row, answer in zip(mine, alone, strict=True):
            assert mixed[row]["label"] == answer["label"]
            assert mixed[row]["score"] == pytest.approx(answer["score"], abs=1e-5)
    engine.close()


@pytest.mark.parametrize("device", DEVICES)
def test_a_checkpoint_goes_on(folder: Path, device: str, tmp_path: Path) -> None:
    job = make_job("job", 2, LoraSpec(r=4), num_train_epochs=2, save_steps=3, seed=3)
    whole = open_pack(folder, device, tmp_path / "whole")
    whole.join(job)
    while whole.members:
        whole.step()
    killed = open_pack(folder, device, tmp_path / "killed")
    killed.join(job)
    for _ in range(4):
        killed.step()
    again = open_pack(folder, device, tmp_path / "killed")
    again.join(job, tmp_path / "killed" / "job" / "state")
    assert again.members["job"].step == 3
    while again.members:
        again.step()
    ends = [Adapter.load(tmp_path / run / "job" / "adapter").tensors for run in ("whole", "killed")]
    assert_same(*ends, TOLERANCE)
    for pack in (whole, killed, again):
        pack.engine.close()


@pytest.mark.gpu
def test_a_gpu_answers_as_the_processor(folder: Path) -> None:
    """Products without TF32, as torch has it unless told otherwise."""
    answers = []
    for device in ("cpu", "cuda"):
        engine, task = open_engine(folder, device), build_task(LABELS[2], Letters())
        slot = engine.init(LoraSpec(r=8), task.head, seed=0)
        answers.append([one["score"] for one in predict(engine, {slot: task}, ROWS[2], [slot] * len(ROWS[2]))])
        engine.close()
    assert answers[0] == pytest.approx(answers[1], abs=1e-4)
