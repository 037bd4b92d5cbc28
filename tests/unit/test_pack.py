"""Packed = alone: whatever the neighbours do, a job's losses and its adapter are those it would have by itself."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from ray_lora.adapter import Adapter
from ray_lora.engine import AdapterEngine
from ray_lora.errors import CapacityError, RecipeError
from ray_lora.job import Job, Report
from ray_lora.pack import Pack, Split, Splits
from ray_lora.recipe import LoraSpec, TaskSpec, TrainingSpec
from ray_lora.tasks import Features, build_task
from tests.unit.bases import VOCABULARY, open_base, reopen, save_base

TWO, THREE = TaskSpec(labels=("a", "b")), TaskSpec(labels=("a", "b", "c"))


class Letters:
    """A tokenizer: one token a letter."""

    pad_token_id = 0

    def pad(self) -> None: ...

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1 + ord(letter) % (VOCABULARY - 1) for letter in text] for text in texts]}


def rows(spec: TaskSpec, count: int, seed: int) -> list[Features]:
    draw = random.Random(seed)
    assert spec.labels is not None
    texts = []
    for _ in range(count):
        label = draw.choice(spec.labels)
        texts.append(
            {"text": label * draw.randint(1, 5) + "xyz"[: draw.randint(1, 3)] * draw.randint(1, 4), "label": label}
        )
    return build_task(spec, Letters()).encode(texts)


def splits(features: list[Features]) -> Splits:
    split = Split(dict(enumerate(features)), len(features))
    return Splits(split, split)


DATA = {"two": rows(TWO, 70, 0), "three": rows(THREE, 53, 1)}
JOBS = (
    Job("a", "two", TWO, LoraSpec(r=2), TrainingSpec(
        num_train_epochs=3, learning_rate=1e-2, per_device_train_batch_size=8, logging_steps=1)),
    Job("b", "three", THREE, LoraSpec(r=8, use_rslora=True, lora_dropout=0.2), TrainingSpec(
        num_train_epochs=2, learning_rate=3e-3, per_device_train_batch_size=5, weight_decay=0.1, warmup_steps=3, seed=4,
        logging_steps=1)),
    Job("c", "two", TWO, LoraSpec(r=16, rank_pattern={"query": 3}, target_modules=("query", "value")), TrainingSpec(
        num_train_epochs=2, learning_rate=1e-1, lr_scheduler_type="cosine", seed=1, logging_steps=1)),
    Job("nan", "two", TWO, LoraSpec(r=4), TrainingSpec(
        num_train_epochs=2, learning_rate=1e300, max_grad_norm=0, logging_steps=1)),
)  # fmt: skip


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


def make_pack(
    base_folder: Path, dtype: torch.dtype = torch.float64, slots: int = 3, output: Path | None = None
) -> Pack:
    engine = AdapterEngine(open_base(base_folder, dtype, Letters()), slots=slots, max_rank=16, train=True)
    engine.reserve_head(build_task(THREE, Letters()).head)
    return Pack(engine, {name: splits(features) for name, features in DATA.items()}, output=output, max_rows=24)


def run(pack: Pack, joins: Mapping[int, Job], leaves: Mapping[int, str] = {}) -> dict[str, list[Report]]:
    """Reports by job of a pack that jobs join and leave before the given steps."""
    told: dict[str, list[Report]] = {}
    for step in range(10_000):
        if step in leaves:
            pack.leave(leaves[step])
        if step in joins:
            pack.join(joins[step])
        elif not pack.members:
            return told
        for report in pack.step():
            told.setdefault(report.job, []).append(report)
    raise AssertionError("the pack never ended")


def losses(reports: Sequence[Report]) -> list[float]:
    return [report.loss for report in reports if report.loss is not None]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_packed_equals_alone(base_folder: Path, tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    """Ranks, rates, batches, tasks and row counts differ; b joins late, c leaves early, one diverges and its slot is
    used again."""
    joins = {0: JOBS[0], 1: JOBS[3], 3: JOBS[1], 5: JOBS[2]}
    packed = run(make_pack(base_folder, dtype, 4, tmp_path / "packed"), joins, {9: "c"})
    assert packed["nan"][-1].error is not None
    assert "diverged" in packed["nan"][-1].error
    for job in JOBS[:3]:
        alone = run(make_pack(base_folder, dtype, 1, tmp_path / job.name), {0: job})[job.name]
        mine = losses(packed[job.name])
        assert mine == pytest.approx(losses(alone)[: len(mine)], abs=tolerance)
        if job.name != "c":
            one, other = (Adapter.load(tmp_path / at / job.name / "adapter") for at in ("packed", job.name))
            assert all((one.tensors[name] - value).abs().max() < tolerance for name, value in other.tensors.items())
            assert packed[job.name][-1].metrics == alone[-1].metrics
    assert len(losses(packed["c"])) == 4
    assert len(losses(packed["a"])) == 27


def test_a_job_equals_plain_peft_with_the_same_rows(base_folder: Path, tmp_path: Path) -> None:
    """The same start and rows in PEFT, torch's AdamW, transformers' schedule: losses within 1e-4 over 50 steps."""
    job = Job("a", "three", THREE, LoraSpec(r=8), TrainingSpec(
        max_steps=50, learning_rate=1e-2, per_device_train_batch_size=8, weight_decay=0.01, warmup_steps=5,
        lr_scheduler_type="cosine", logging_steps=1, eval_steps=1000))  # fmt: skip
    pack = make_pack(base_folder, torch.float32, 2, tmp_path / "out")
    pack.join(job)
    pack.join(Job("b", "two", TWO, LoraSpec(r=16), JOBS[2].training))
    pack.export("a").save(tmp_path / "start")
    model = reopen(base_folder, tmp_path / "start", 3, is_trainable=True)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [p for n, p in model.named_parameters() if p.requires_grad and "bias" not in n],
                "weight_decay": 0.01,
            },
            {
                "params": [p for n, p in model.named_parameters() if p.requires_grad and "bias" in n],
                "weight_decay": 0.0,
            },
        ],
        lr=1e-2,
    )
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=5, num_training_steps=50)
    task, features = pack.task(THREE), DATA["three"]
    for _ in range(50):
        chosen = [features[row] for row in pack.members["a"].next_rows()]
        labels = torch.tensor([row["labels"] for row in chosen])
        loss = model(**task.collate(chosen), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report = next(report for report in pack.step() if report.job == "a")
        assert report.loss == pytest.approx(loss.item(), abs=1e-4)
    trained = Adapter.load(tmp_path / "out/a/adapter").tensors
    theirs = {name.replace(".default", "").replace("modules_to_save.", ""): p for name, p in model.named_parameters()}
    assert all((theirs[name] - value).abs().max() < 1e-3 for name, value in trained.items())


def test_the_base_and_unused_numbers_never_move(base_folder: Path) -> None:
    pack = make_pack(base_folder, torch.float32)
    before = {name: value.clone() for name, value in pack.engine.base.backbone.state_dict().items()}
    slot = pack.join(JOBS[0])
    for _ in range(5):
        pack.step()
    after = pack.engine.base.backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for layer in pack.engine.layers.values():
        kept = layer.ranks[slot]
        assert layer.A.data[slot, kept:].abs().max() == 0
        assert layer.B.data[slot, :, kept:].abs().max() == 0
    others = [row for row in range(len(pack.engine.flat)) if row != slot]
    assert pack.engine.flat[others].abs().max() == 0


def test_a_checkpoint_goes_on_in_another_pack_as_if_nothing_had_happened(base_folder: Path, tmp_path: Path) -> None:
    calm = losses(run(make_pack(base_folder), {0: JOBS[1]})["b"])
    first = make_pack(base_folder, output=tmp_path)
    first.join(JOBS[1])
    told = [report for _ in range(7) for report in first.step()]
    first.save("b")
    second = make_pack(base_folder, slots=5, output=tmp_path)
    second.join(JOBS[0])
    second.join(JOBS[1], tmp_path / "b/state")
    while "b" in second.members:
        told += [report for report in second.step() if report.job == "b"]
    assert losses(told) == pytest.approx(calm, abs=1e-12)
    other = Job("b", "three", THREE, LoraSpec(r=3), JOBS[1].training)
    with pytest.raises(ValueError, match="of another adapter"):
        make_pack(base_folder, output=tmp_path).join(other, tmp_path / "b/state")


def test_what_cannot_join_is_refused_and_harms_nobody(base_folder: Path) -> None:
    pack = make_pack(base_folder, slots=1)
    with pytest.raises(RecipeError, match="exceeds the width"):
        pack.join(Job("wide", "two", TWO, LoraSpec(r=33), TrainingSpec()))
    pack.join(JOBS[0])
    with pytest.raises(CapacityError, match="already in the pack"):
        pack.join(JOBS[0])
    with pytest.raises(CapacityError, match="all 1 slots are taken"):
        pack.join(JOBS[1])
    assert losses(pack.step()) == losses(run(make_pack(base_folder), {0: JOBS[0]})["a"])[:1]
