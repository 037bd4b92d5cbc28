"""Whatever joins, leaves, fails, moves or is used again beside it, a job trains as it would alone."""

from __future__ import annotations

import math
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

from ray_lora.recipe import LoraSpec
from tests.unit.bases import save_base
from tests.unit.packs import WatchedPack, assert_same, make_job, make_pack, tensors_of, train_alone

EXACT = 1e-9
JOBS = {
    job.name: job
    for job in (
        make_job("tiny", 2, LoraSpec(r=1, lora_alpha=1), max_steps=7, per_device_train_batch_size=1, seed=3),
        make_job("wide", 3, LoraSpec(r=16, use_rslora=True), max_steps=12, learning_rate=1e-3, weight_decay=0.1),
        make_job(
            "hot",
            2,
            LoraSpec(r=4, lora_dropout=0.3, target_modules=("query", "value")),
            max_steps=9,
            learning_rate=0.3,
            per_device_train_batch_size=5,
            lr_scheduler_type="cosine",
            warmup_steps=2,
        ),
        make_job(
            "long",
            3,
            LoraSpec(r=8, rank_pattern={"dense": 3}, alpha_pattern={"query": 40}),
            num_train_epochs=2,
            per_device_train_batch_size=7,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            max_grad_norm=0.01,
            train_sampling_strategy="group_by_length",
            seed=11,
        ),
    )
}
DIVERGING = make_job("diverging", 2, LoraSpec(r=2), max_steps=9, learning_rate=1e200, max_grad_norm=0)
BASE: list[Path] = []


@cache
def alone(name: str) -> tuple[list[float], list[dict[str, Tensor]]]:
    return train_alone(BASE[0], JOBS[name])


class Packs(RuleBasedStateMachine):
    """Two packs of unlike sizes, between which jobs move."""

    def __init__(self) -> None:
        super().__init__()
        self.output = Path(tempfile.mkdtemp())
        self.packs: list[WatchedPack] = []
        self.taken: dict[str, int] = {}  # job -> steps it has taken in this history
        self.failed = 0

    @initialize(sizes=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 5, 24, 200])), min_size=2, max_size=2))
    def begin(self, sizes: list[tuple[int, int]]) -> None:
        for slots, max_rows in sizes:
            self.packs.append(make_pack(BASE[0], slots=slots, max_rows=max_rows, output=self.output))

    def teardown(self) -> None:
        for pack in self.packs:
            pack.engine.close()
        shutil.rmtree(self.output)

    def home(self, name: str) -> WatchedPack | None:
        return next((pack for pack in self.packs if name in pack.members), None)

    def open_packs(self) -> list[WatchedPack]:
        return [pack for pack in self.packs if pack.engine.free_slots]

    # ---------------------------------------------------------------- what can happen

    @precondition(lambda self: self.open_packs())
    @rule(name=st.sampled_from(sorted(JOBS)), data=st.data())
    def join(self, name: str, data: Any) -> None:
        """A job comes, perhaps one that was dropped or done and starts again."""
        if self.home(name) is None:
            data.draw(st.sampled_from(self.open_packs())).join(JOBS[name])
            self.taken[name] = 0

    @rule(which=st.integers(0, 1), times=st.integers(1, 4))
    def step(self, which: int, times: int) -> None:
        pack = self.packs[which]
        for _ in range(times):
            resident = set(pack.members) - {DIVERGING.name}
            for report in pack.step() if pack.members else []:
                if report.job == DIVERGING.name:
                    self.failed += report.error is not None
                    continue
                assert report.error is None
                assert report.loss == pytest.approx(alone(report.job)[0][self.taken[report.job]], abs=EXACT)
                assert report.step == self.taken[report.job] + 1
                assert report.done == (report.step == len(alone(report.job)[0]))
                if report.done:
                    assert_same(pack.left[report.job], alone(report.job)[1][-1], EXACT)
            for name in resident:
                self.taken[name] += 1

    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        """A scheduler stops a job; its slot is free at once."""
        resident = sorted(name for name in JOBS if self.home(name))
        if resident:
            name = data.draw(st.sampled_from(resident))
            pack = self.home(name)
            assert pack is not None
            pack.leave(name)
            assert_same(pack.left[name], alone(name)[1][self.taken[name]], EXACT)

    @precondition(lambda self: self.open_packs())
    @rule(data=st.data())
    def fail(self, data: Any) -> None:
        """A job comes that will diverge."""
        if self.home(DIVERGING.name) is None:
            data.draw(st.sampled_from(self.open_packs())).join(DIVERGING)

    @rule(data=st.data())
    def move(self, data: Any) -> None:
        """A job is saved, its pack dies for it, and it goes on in the other pack or in the same."""
        resident = sorted(name for name in JOBS if self.home(name))
        if resident:
            name = data.draw(st.sampled_from(resident))
            pack = self.home(name)
            assert pack is not None
            pack.save(name)
            pack.leave(name)
            data.draw(st.sampled_from(self.open_packs())).join(JOBS[name], self.output / name / "state")

    # ---------------------------------------------------------------- what always holds

    @invariant()
    def every_job_is_where_it_would_be_alone(self) -> None:
        for pack in self.packs:
            for name in set(pack.members) & set(JOBS):
                assert_same(tensors_of(pack, name), alone(name)[1][self.taken[name]], EXACT)

    @invariant()
    def what_no_job_holds_is_zero(self) -> None:
        for pack in self.packs:
            for slot in [0, *pack.engine.free_slots]:
                assert not any(buffer[slot].any() for buffer in pack.engine.buffers.all)
            assert not pack.engine.grad.any()
            assert len(pack.engine.residents) == len(pack.members)


def test_every_history_leaves_each_job_as_if_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    BASE[:] = [save_base("bert", tmp_path_factory.mktemp("bases") / "bert")]
    run_state_machine_as_test(
        Packs,
        settings=settings(max_examples=25, stateful_step_count=14, deadline=None, derandomize=True, database=None),
    )


def test_the_diverging_job_does_fail_and_only_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The machine's failing neighbour is one."""
    BASE[:] = [save_base("bert", tmp_path_factory.mktemp("bases") / "bert")]
    machine = Packs()
    machine.begin([(4, 24), (1, 5)])
    machine.packs[0].join(DIVERGING)
    for name in JOBS:
        if machine.packs[0].engine.free_slots:
            machine.packs[0].join(JOBS[name])
            machine.taken[name] = 0
    machine.step(0, 4)
    machine.every_job_is_where_it_would_be_alone()
    machine.what_no_job_holds_is_zero()
    assert machine.failed == 1
    assert set(machine.packs[0].members) == {"tiny", "wide", "hot"}
    assert all(math.isfinite(value) for value in machine.packs[0].engine.flat.flatten().tolist())
    machine.teardown()
