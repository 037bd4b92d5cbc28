"""People's adapters of any task: each learns as if alone, whoever shares its passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.recipe import LoraSpec, TrainingSpec
from ray_lora.training.job import Job
from ray_lora.training.people import Outcome, Share, train_people
from tests.conformance.case import Case
from tests.unit.packs import assert_same

SHARES = [
    Share("first", rows=(0, 1, 2), later=(3, 4), begin="group"),
    Share("second", rows=(4, 3, 1), later=(0, 2), begin="group"),
    Share("third", rows=(2, 4), later=(1,), begin="group"),
]


def check_people(case: Case, tmp_path: Path) -> None:
    """Three people who begin as one adapter, two at a time and each alone: the same losses, scores and adapters."""
    training = TrainingSpec(num_train_epochs=2, learning_rate=1e-2, per_device_train_batch_size=2)
    job = Job("people", "people", case.spec, LoraSpec(r=2, target_modules=tuple(case.targets), **case.lora), training)
    group = untrained(case, job)
    together = {outcome.name: outcome for outcome in learnt(case, job, group, SHARES, slots=2)}
    assert together.keys() == {share.name for share in SHARES}
    for share in SHARES:
        mine = together[share.name]
        (alone,) = learnt(case, job, group, [share], slots=1)
        assert mine.error is None
        assert mine.loss_before is not None
        assert math.isfinite(mine.loss_before)
        assert mine.loss_after <= mine.loss_before
        assert (mine.adapter is None) == (mine.epoch == 0)
        close = max(case.close, 1e-6)
        assert mine.epoch == alone.epoch
        assert (mine.loss_before, mine.loss_after) == pytest.approx((alone.loss_before, alone.loss_after), abs=close)
        for one, other in ((mine.before, alone.before), (mine.after, alone.after)):
            assert one == pytest.approx(other, abs=close, rel=close)
        assert set(mine.before) >= {case.task.metric}
        if mine.adapter is not None and alone.adapter is not None:
            assert_same(dict(mine.adapter.tensors), dict(alone.adapter.tensors), close)


def untrained(case: Case, job: Job) -> Adapter:
    engine = case.engine(1)
    slot = engine.init(job.lora, case.task.head, seed=0, peft_type=case.task.peft_type)
    adapter = engine.export(slot)
    engine.close()
    return adapter


def learnt(case: Case, job: Job, group: Adapter, shares: Sequence[Share], slots: int) -> list[Outcome]:
    engine = case.engine(slots)
    engine.reserve_head(case.task.head)
    found = list(train_people(engine, {"group": group}, job, dict(enumerate(case.features)), shares, max_rows=4))
    engine.close()
    return found
