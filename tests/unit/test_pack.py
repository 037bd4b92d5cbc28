"""Packed = alone: whatever the neighbours do, a job's losses and its adapter are those it would have by itself."""

from __future__ import annotations

import dataclasses
import pickle
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.errors import CapacityError, DataError, RecipeError
from ray_lora.recipe import BaseSpec, LoraSpec, TrainingSpec
from ray_lora.training.job import Job, Report
from ray_lora.training.shards import Group, Split, Splits
from tests.unit.bases import reopen, save_base
from tests.unit.packs import LABELS, ROWS, WatchedPack, assert_same, losses, make_job, make_pack, shards, train_alone

JOBS = {
    job.name: job
    for job in (
        make_job("small", 2, LoraSpec(r=1, lora_alpha=2), num_train_epochs=3, per_device_train_batch_size=8, seed=2),
        make_job(
            "rslora",
            3,
            LoraSpec(r=8, use_rslora=True, lora_dropout=0.2),
            num_train_epochs=2,
            learning_rate=3e-3,
            per_device_train_batch_size=5,
            weight_decay=0.1,
            warmup_steps=3,
            seed=4,
        ),
        make_job(
            "patterns",
            2,
            LoraSpec(r=16, rank_pattern={"query": 3}, target_modules=("query", "value")),
            num_train_epochs=2,
            learning_rate=1e-1,
            lr_scheduler_type="cosine",
            seed=1,
        ),
    )
}
DIVERGING = make_job("diverging", 2, LoraSpec(r=4), max_steps=9, learning_rate=1e200, max_grad_norm=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


def run(pack: WatchedPack, joins: Mapping[int, Sequence[Job]], leaves: Mapping[int, str] | None = None) -> list[Report]:
    """Reports of a pack that jobs join and leave before the given steps."""
    reports: list[Report] = []
    step = 0
    while pack.members or step <= max(joins):
        if leaves and step in leaves:
            pack.leave(leaves[step])
        for job in joins.get(step, ()):
            pack.join(job)
        reports += pack.step()
        step += 1
    return reports


@pytest.mark.parametrize(
    ("dtype", "tolerance", "max_rows"),
    [(torch.float64, 1e-9, 7), (torch.float64, 1e-9, 1000), (torch.float32, 1e-4, 24)],
)
def test_packed_equals_alone(folder: Path, dtype: torch.dtype, tolerance: float, max_rows: int) -> None:
    """Ranks, rates, batches, tasks and row counts differ; one joins late, one leaves early, one diverges and its slot
    is used again."""
    pack = make_pack(folder, dtype, slots=3, max_rows=max_rows)
    joins = {0: [JOBS["small"], DIVERGING], 2: [JOBS["rslora"]], 5: [JOBS["patterns"]]}
    reports = run(pack, joins, {9: "patterns"})
    failed = [report for report in reports if report.error is not None]
    assert [report.job for report in failed] == ["diverging"]
    assert "diverged at step" in str(failed[0].error)
    assert "lower training.learning_rate" in str(failed[0].error)
    steps = {"small": 27, "rslora": 22, "patterns": 4}
    for name, job in JOBS.items():
        alone_losses, alone_tensors = train_alone(folder, job, dtype)
        assert losses(reports, name) == pytest.approx(alone_losses[: steps[name]], abs=tolerance)
        assert_same(pack.left[name], alone_tensors[steps[name]], tolerance)
        assert pack.left[name].keys() == alone_tensors[0].keys()
        assert (
            max((alone_tensors[steps[name]][key] - alone_tensors[0][key]).abs().max() for key in alone_tensors[0])
            > 1e-3
        )


def test_twins_in_one_pack_stay_twins(folder: Path) -> None:
    """Two jobs alike but for their name, interleaved with a third: equal losses at every step."""
    pack = make_pack(folder)
    for name in ("first", "second"):
        pack.join(make_job(name, 3, LoraSpec(r=4), max_steps=8, seed=5))
    pack.join(JOBS["small"])
    reports = [report for _ in range(8) for report in pack.step()]
    assert losses(reports, "first") == pytest.approx(losses(reports, "second"), abs=1e-12)
    assert_same(pack.left["first"], pack.left["second"], 1e-12)


def test_every_seed_that_a_recipe_takes_trains(folder: Path) -> None:
    pack = make_pack(folder)
    pack.join(make_job("last", lora=LoraSpec(lora_dropout=0.1), seed=2**32 - 1, max_steps=20, weight_decay=0.1))
    reports = [report for _ in range(7) for report in pack.step()]  # into the second epoch
    assert [report.error for report in reports] == [None] * 7
    with pytest.raises(ValueError, match="seed"):
        TrainingSpec(seed=2**32)


@pytest.mark.parametrize(
    "thing", [*JOBS.values(), Report("a", 3, 10, 0.3, 0.5, metrics={"accuracy": 1.0}, done=True), shards(2)]
)
def test_what_travels_between_processes_pickles(thing: Any) -> None:
    assert pickle.loads(pickle.dumps(thing)) == thing


# -------------------------------------------------------------------- packed = plain PEFT


class PlainPeft:
    """The oracle: plain PEFT with torch's AdamW and clipping and transformers' schedule, on the same rows in the same
    order, from the same start."""

    def __init__(self, folder: Path, start: Path, job: Job) -> None:
        self.job, spec = job, job.training
        self.model = reopen(folder, start, int(job.data), is_trainable=True)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        groups: list[dict[str, Any]] = [
            {"params": [p for n, p in trained.items() if "bias" not in n], "weight_decay": spec.weight_decay},
            {"params": [p for n, p in trained.items() if "bias" in n], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate)
        self.schedule = get_scheduler(
            spec.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=int(spec.warmup_steps),
            num_training_steps=spec.max_steps,
        )

    def step(self, inputs: dict[str, Tensor], labels: Tensor) -> float:
        loss = self.model(**inputs, labels=labels).loss
        loss.backward()
        limit = self.job.training.max_grad_norm or float("inf")
        nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def tensors(self) -> dict[str, Tensor]:
        return {
            name.replace(".default", "").replace("modules_to_save.", ""): parameter.detach()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }


def test_four_packed_jobs_each_equal_plain_peft(folder: Path, tmp_path: Path) -> None:
    """Ranks 1 to 16, rates over three decades; float32, losses and final tensors within 1e-4 over 50 steps."""
    jobs = [
        make_job("one", 2, LoraSpec(r=1), max_steps=50, learning_rate=1e-2, per_device_train_batch_size=4),
        make_job("two", 3, LoraSpec(r=2, lora_alpha=3), max_steps=50, learning_rate=1e-5, weight_decay=0.1, seed=1),
        make_job(
            "eight",
            3,
            LoraSpec(r=8, use_rslora=True, target_modules=("query", "value")),
            max_steps=50,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            weight_decay=0.01,
            per_device_train_batch_size=8,
            seed=2,
        ),
        make_job(
            "sixteen",
            2,
            LoraSpec(r=16, alpha_pattern={"query": 4}, rank_pattern={"value": 5}),
            max_steps=50,
            learning_rate=1e-4,
            max_grad_norm=0.1,
            per_device_train_batch_size=2,
            seed=3,
        ),
    ]
    pack = make_pack(folder, torch.float32)
    oracles = {}
    for job in jobs:
        pack.join(job)
        pack.export(job.name).save(tmp_path / job.name)
        oracles[job.name] = PlainPeft(folder, tmp_path / job.name, job)
    for _ in range(50):
        expected = {}
        for name, oracle in oracles.items():
            member = pack.members[name]
            chosen = [ROWS[int(member.job.data)][row] for row in member.rows_of(member.step)]
            expected[name] = oracle.step(member.task.collate(chosen), torch.tensor([row["labels"] for row in chosen]))
        reports = pack.step()
        assert len(reports) == 4
        for report in reports:
            assert report.loss == pytest.approx(expected[report.job], abs=1e-4)
    for name, oracle in oracles.items():
        assert_same(pack.left[name], oracle.tensors(), 1e-4)


def test_rows_come_in_the_order_asked_for(folder: Path) -> None:
    pack, lengths = make_pack(folder), [len(row["input_ids"]) for row in ROWS[2]]
    spread, orders = {}, {}
    for strategy in ("random", "sequential", "group_by_length"):
        pack.join(make_job(strategy, 2, per_device_train_batch_size=8, train_sampling_strategy=strategy))
        member = pack.members[strategy]
        batches = []
        for step in range(2 * member.per_epoch):
            member.step = step
            batches.append(member.rows_of(member.step))
        epochs = [[row for batch in part for row in batch] for part in (batches[:9], batches[9:])]
        assert [sorted(epoch) for epoch in epochs] == [list(range(70))] * 2
        assert (epochs[0] == epochs[1]) == (strategy == "sequential")
        orders[strategy] = epochs[0]
        spread[strategy] = sum(max(sizes) - min(sizes) for sizes in ([lengths[r] for r in b] for b in batches))
    assert orders["sequential"] == list(range(70))
    assert spread["group_by_length"] < 0.8 * spread["random"]


# -------------------------------------------------------------------- what must not move


def test_the_base_and_what_nobody_holds_never_move(folder: Path) -> None:
    pack = make_pack(folder, torch.float32, slots=5)
    base = pack.engine.base.backbone
    before = load_base(BaseSpec(model=str(folder), dtype="float32")).backbone.state_dict()
    assert before
    slots = [pack.join(JOBS[name]) for name in ("small", "rslora")]
    for _ in range(6):
        pack.step()
    pack.engine.close()  # while it is open, weights lie packed
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert not base.training
    assert not any(module.training for module in base.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in base.parameters())
    for layer in pack.engine.layers.values():
        for slot in slots:
            rank = layer.ranks[slot]
            assert layer.A[slot, :rank].any()
            assert layer.B[slot, :, :rank].any()
            assert not layer.A[slot, rank:].any()
            assert not layer.B[slot, :, rank:].any()
    idle = [slot for slot in range(6) if slot not in slots]
    assert not any(buffer[idle].any() for buffer in pack.engine.buffers.all)


def test_what_cannot_join_is_refused_and_harms_nobody(folder: Path) -> None:
    pack = make_pack(folder, slots=1)
    with pytest.raises(RecipeError, match="rank 33 exceeds the width 32"):
        pack.join(make_job("wide", lora=LoraSpec(r=33)))
    with pytest.raises(RecipeError, match="match no layer"):
        pack.join(make_job("nowhere", lora=LoraSpec(target_modules=("nothing",))))
    pack.data = {**pack.data, "none": Splits(Split({}, 0))}  # type: ignore[dict-item]
    with pytest.raises(DataError, match="has no training rows"):
        pack.join(Job("empty", "none", LABELS[2], LoraSpec(), TrainingSpec()))
    pack.join(JOBS["small"])
    with pytest.raises(CapacityError, match="already in the pack"):
        pack.join(JOBS["small"])
    with pytest.raises(CapacityError, match="all 1 slots are taken"):
        pack.join(JOBS["rslora"])
    assert set(pack.members) == {"small"}
    assert losses(pack.step(), "small") == pytest.approx(train_alone(folder, JOBS["small"])[0][:1], abs=1e-12)


# -------------------------------------------------------------------- reports


def test_a_job_reports_evaluates_and_saves_at_its_own_steps(folder: Path, tmp_path: Path) -> None:
    pack = make_pack(folder, output=tmp_path)
    often = make_job("often", 2, max_steps=10, logging_steps=2, eval_steps=5, save_steps=3)
    seldom = make_job("seldom", 3, max_steps=7, logging_steps=100, eval_steps=100, save_steps=100)
    each, _ = train_alone(folder, make_job("often", 2, max_steps=10))
    reports = run(pack, {0: [often, seldom]})
    mine = [report for report in reports if report.job == "often"]
    assert [report.step for report in mine if report.loss is not None] == [2, 4, 5, 6, 8, 10]
    assert [report.step for report in mine if report.metrics is not None] == [5, 10]
    assert [report.step for report in mine if report.saved] == [3, 5, 6, 9, 10]
    assert [report.step for report in mine if report.done] == [10]
    means = [sum(each[:2]) / 2, sum(each[2:4]) / 2, each[4], each[5], sum(each[6:8]) / 2, sum(each[8:]) / 2]
    assert losses(mine, "often") == pytest.approx(means, abs=1e-12)
    assert [report.learning_rate for report in mine][:2] == pytest.approx([1e-2 * 0.9, 1e-2 * 0.8])
    assert mine[-1].epoch == pytest.approx(10 / 5)
    others = [report for report in reports if report.job == "seldom"]
    assert [(report.step, report.done, report.saved) for report in others] == [(7, True, True)]
    for job in (often, seldom):
        adapter = Adapter.load(tmp_path / job.name / "adapter")
        assert adapter.card.task == job.task
        assert set(adapter.card.metrics) == {"accuracy", "f1_macro"}
        assert_same(dict(adapter.tensors), {key: value.float() for key, value in pack.left[job.name].items()}, 0)


def test_a_job_taken_out_leaves_the_adapter_of_its_last_evaluation(folder: Path, tmp_path: Path) -> None:
    pack = make_pack(folder, output=tmp_path)
    pack.join(make_job("stopped", 2, max_steps=10, eval_steps=3))
    pack.join(make_job("early", 2, max_steps=10, eval_steps=9))
    reports = [report for _ in range(5) for report in pack.step()]
    [scores] = [report.metrics for report in reports if report.metrics is not None]
    pack.stop("stopped")
    pack.stop("early")
    assert not pack.members
    assert len(pack.engine.free_slots) == pack.engine.slots
    adapter = Adapter.load(tmp_path / "stopped" / "adapter")
    assert adapter.card.metrics == scores
    _, states = train_alone(folder, make_job("stopped", 2, max_steps=10))
    assert_same(dict(adapter.tensors), {key: value.float() for key, value in states[3].items()}, 1e-6)
    assert not (tmp_path / "early" / "adapter").exists()  # nothing of it was ever scored


def test_a_job_that_diverges_keeps_what_was_finite(folder: Path, tmp_path: Path) -> None:
    """Its last evaluation's adapter and a checkpoint that goes on; its neighbour trains as it would alone."""
    pack = make_pack(folder, output=tmp_path)
    pack.join(make_job("doomed", 2, max_steps=10, eval_steps=3, save_steps=2))
    pack.join(make_job("calm", 3, max_steps=8))
    reports = [report for _ in range(5) for report in pack.step()]
    [scores] = [report.metrics for report in reports if report.job == "doomed" and report.metrics is not None]
    slot = pack.members["doomed"].slot
    values = pack.engine.read(slot)
    key = next(iter(values))
    pack.engine.write(slot, values | {key: values[key] * float("inf")})
    pack.engine.refresh([slot])
    pack.save("doomed")
    reports += [report for _ in range(3) for report in pack.step()]
    [failed] = [report for report in reports if report.error is not None]
    assert (failed.job, failed.step) == ("doomed", 6)
    assert Adapter.load(tmp_path / "doomed" / "adapter").card.metrics == scores
    again = make_pack(folder)
    again.join(make_job("doomed", 2, max_steps=10), tmp_path / "doomed" / "state")
    assert again.members["doomed"].step == 4
    assert [report.error for report in run(again, {0: []})] == [None] * 6
    alone_losses, _ = train_alone(folder, make_job("calm", 3, max_steps=8))
    assert losses(reports, "calm") == pytest.approx(alone_losses, abs=1e-9)


@pytest.mark.parametrize("validated", [True, False])
def test_a_last_step_that_goes_too_far_is_not_published(folder: Path, tmp_path: Path, validated: bool) -> None:
    """Its loss was finite, its weights are, and its answers are not; the neighbour is scored as ever."""
    pack = make_pack(folder, torch.float32, output=tmp_path)
    splits = shards(2)
    pack.data = {**pack.data, "2": splits if validated else Splits(splits.train, None)}
    doomed = make_job("doomed", 2, max_steps=1, learning_rate=1e30, max_grad_norm=0.0)
    pack.join(dataclasses.replace(doomed, data="2"))
    pack.join(make_job("calm", 3, max_steps=1))
    reports = pack.step()
    [failed] = [report for report in reports if report.error is not None]
    assert (failed.job, failed.step) == ("doomed", 1)
    assert not (tmp_path / "doomed" / "adapter").exists()
    [done] = [report for report in reports if report.done]
    assert (done.job, set(done.metrics or {})) == ("calm", {"accuracy", "f1_macro"})
    assert not pack.members


def test_training_learns_and_scores_say_so(folder: Path) -> None:
    pack = make_pack(folder, torch.float32)
    reports = run(pack, {0: [make_job("learner", 2, max_steps=60, learning_rate=2e-2, eval_steps=20)]})
    scores = [report.metrics["accuracy"] for report in reports if report.metrics is not None]
    assert scores[-1] > 0.95
    assert losses(reports, "learner")[-1] < 0.3 * losses(reports, "learner")[0]


# -------------------------------------------------------------------- several workers


class Meeting:
    """Workers in threads that sum tensors and gather objects."""

    def __init__(self, world: int) -> None:
        self.world, self.barrier = world, threading.Barrier(world)
        self.parts: list[Any] = [None] * world

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.parts[rank] = value
        self.barrier.wait()
        parts = list(self.parts)
        self.barrier.wait()
        return parts

    def group(self, rank: int) -> Group:
        def all_reduce(tensor: Tensor) -> None:
            parts = self.gather(rank, tensor.clone())
            tensor.copy_(torch.stack(parts).sum(0))

        return Group(rank, self.world, all_reduce, lambda value: self.gather(rank, value))

    def run(self, work: Any) -> list[Any]:
        """`work(group)` on every worker at once; what each returned."""
        results: list[Any] = [None] * self.world

        def one(rank: int) -> None:
            try:
                results[rank] = work(self.group(rank))
            except BaseException as error:
                results[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


@pytest.mark.parametrize("world", [2, 3])
def test_workers_on_shards_train_as_one(folder: Path, tmp_path: Path, world: int) -> None:
    """Losses, scores and tensors of one worker with the same global batch; the first worker alone writes."""

    def jobs(workers: int) -> list[Job]:
        batch = 12 // workers
        return [
            make_job("plain", 2, LoraSpec(r=4), max_steps=9, per_device_train_batch_size=batch, eval_steps=4),
            make_job(
                "dropping", 3, LoraSpec(r=8, lora_dropout=0.3), max_steps=6, per_device_train_batch_size=batch, seed=3
            ),
            make_job("diverging", 2, learning_rate=1e200, max_grad_norm=0, per_device_train_batch_size=batch),
        ]

    def work(group: Group) -> tuple[list[Report], dict[str, dict[str, Tensor]]]:
        pack = make_pack(folder, slots=3, group=group, output=tmp_path / str(group.world) / str(group.rank))
        return run(pack, {0: jobs(group.world)[1:], 2: jobs(group.world)[:1]}), pack.left

    alone_reports, alone_tensors = work(Group())
    results = Meeting(world).run(work)
    for reports, tensors in results:
        assert [(r.job, r.step, r.done, r.saved, r.error is None) for r in reports] == [
            (r.job, r.step, r.done, r.saved, r.error is None) for r in alone_reports
        ]
        for name in ("plain", "dropping"):
            assert losses(reports, name) == pytest.approx(losses(alone_reports, name), abs=1e-9)
            assert_same(tensors[name], alone_tensors[name], 1e-9)
            assert_same(tensors[name], results[0][1][name], 0)  # workers never drift apart
        scores = [report.metrics for report in reports]
        assert scores == [report.metrics for report in alone_reports]
        assert any(scores)
    assert (tmp_path / f"{world}/0/plain/adapter").is_dir()
    assert not (tmp_path / f"{world}/1").exists()


def test_a_checkpoint_of_two_workers_goes_on_with_one_of_the_same_global_batch(folder: Path, tmp_path: Path) -> None:
    def job(workers: int) -> Job:
        return make_job("moving", 2, LoraSpec(r=4), max_steps=8, per_device_train_batch_size=8 // workers)

    def first_half(group: Group) -> None:
        pack = make_pack(folder, slots=1, group=group, output=tmp_path)
        pack.join(job(2))
        for _ in range(4):
            pack.step()
        pack.save("moving")

    Meeting(2).run(first_half)
    pack = make_pack(folder, slots=2)
    pack.join(job(1), tmp_path / "moving/state")
    reports = [report for _ in range(4) for report in pack.step()]
    alone_losses, alone_tensors = train_alone(folder, job(1))
    assert losses(reports, "moving") == pytest.approx(alone_losses[4:], abs=1e-9)
    assert_same(pack.left["moving"], alone_tensors[-1], 1e-9)
