"""One optimizer over all slots steps each adapter as torch's AdamW, clipping and schedules would step it alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from ray_lora.engine import AdapterEngine, HeadSpec, SlotOptimizer
from ray_lora.engine.optim import rate_at
from ray_lora.recipe import LoraSpec, TrainingSpec
from tests.unit.bases import TEXT, engine_on, save_base

SPECS = [
    TrainingSpec(learning_rate=1e-2, lr_scheduler_type="constant", max_grad_norm=0),
    TrainingSpec(learning_rate=3e-1, weight_decay=0.1, warmup_steps=3, adam_beta1=0.8, adam_epsilon=1e-4),
    TrainingSpec(
        learning_rate=1e-4, weight_decay=0.5, lr_scheduler_type="cosine", warmup_steps=0.25, max_grad_norm=0.1
    ),
    TrainingSpec(learning_rate=1e-3, adam_beta2=0.9, max_grad_norm=5),
]
TOTALS = [12, 12, 20, 9]
COUNTS = [16.0, 3.0, 1.0, 40.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture
def engine(folder: Path) -> Iterator[AdapterEngine]:
    """Four adapters of ranks 1, 2, 8 and 3, the last without a head; slot 5 stays free."""
    with engine_on(folder, torch.float64, slots=5, max_rank=8, train=True) as engine:
        engine.reserve_head(HeadSpec(TEXT, 3))
        for seed, rank in enumerate((1, 2, 8)):
            engine.init(LoraSpec(r=rank), HeadSpec(TEXT, 2 + seed // 2), seed)
        engine.init(LoraSpec(r=3, target_modules=("query",)), None, seed=3)
        yield engine


def gradients(engine: AdapterEngine, slot: int, step: int) -> dict[str, Tensor]:
    """Random gradient sums of one slot in one step."""
    draw = torch.Generator().manual_seed(100 * slot + step)
    return {
        key: torch.randn(value.shape, dtype=torch.float64, generator=draw) for key, value in engine.read(slot).items()
    }


def give(engine: AdapterEngine, slot: int, step: int) -> None:
    engine.write(slot, gradients(engine, slot, step), [engine.grad, *engine.head_grad.values()])


class Alone:
    """The oracle: one adapter's tensors with torch's own optimizer, clipping and schedule."""

    def __init__(self, engine: AdapterEngine, slot: int, spec: TrainingSpec, total: int) -> None:
        self.engine, self.slot, self.spec = engine, slot, spec
        self.parameters = {key: nn.Parameter(value) for key, value in engine.read(slot).items()}
        biases = [parameter for key, parameter in self.parameters.items() if key.endswith("bias")]
        weights = [parameter for key, parameter in self.parameters.items() if not key.endswith("bias")]
        groups: list[dict[str, Any]] = [
            {"params": weights, "weight_decay": spec.weight_decay},
            {"params": biases, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=spec.learning_rate, betas=(spec.adam_beta1, spec.adam_beta2), eps=spec.adam_epsilon
        )
        self.schedule = scheduler(spec, self.optimizer, total)

    def step(self, step: int, count: float) -> float:
        for key, grad in gradients(self.engine, self.slot, step).items():
            self.parameters[key].grad = grad / count
        limit = self.spec.max_grad_norm or math.inf
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), limit)
        self.optimizer.step()
        self.schedule.step()
        return float(norm)


def scheduler(spec: TrainingSpec, optimizer: torch.optim.Optimizer, total: int) -> Any:
    arguments = transformers.TrainingArguments(warmup_steps=spec.warmup_steps, use_cpu=True)
    warm = arguments.get_warmup_steps(total)
    name = "constant_with_warmup" if spec.lr_scheduler_type == "constant" else spec.lr_scheduler_type
    return transformers.get_scheduler(name, optimizer, num_warmup_steps=warm, num_training_steps=total)


@pytest.mark.parametrize("warmup", [0, 1, 4, 0.1, 0.35])
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_rates_are_those_of_transformers(kind: Any, warmup: float) -> None:
    for total in (1, 7, 40):
        spec = TrainingSpec(learning_rate=0.7, lr_scheduler_type=kind, warmup_steps=warmup)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.7)
        schedule = scheduler(spec, optimizer, total)
        for step in range(total):
            assert rate_at(spec, step, total) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12), (total, step)
            optimizer.step()
            schedule.step()


def test_each_slot_steps_as_it_would_alone(engine: AdapterEngine) -> None:
    """Slot 3 joins after four steps, slot 1 rests for two, slot 2 leaves early."""
    optimizer = SlotOptimizer(engine)
    alone = {}
    own = dict.fromkeys(range(1, 5), 0)  # steps each slot has taken
    for step in range(9):
        for slot in (1, 2, 3, 4):
            if (slot != 3 and step == 0) or (slot == 3 and step == 4):
                optimizer.join(slot, SPECS[slot - 1], TOTALS[slot - 1])
                alone[slot] = Alone(engine, slot, SPECS[slot - 1], TOTALS[slot - 1])
        if step == 6:
            optimizer.leave(2)
        active = [s for s in alone if not (s == 2 and step >= 6) and not (s == 1 and step in (3, 5))]
        for slot in active:
            give(engine, slot, own[slot])
            assert optimizer.rate(slot) == pytest.approx(alone[slot].schedule.get_last_lr()[0], abs=1e-15)
        norms = optimizer.step({slot: COUNTS[slot - 1] for slot in active})
        assert set(norms) == set(active)
        for slot in active:
            assert norms[slot] == pytest.approx(alone[slot].step(own[slot], COUNTS[slot - 1]), rel=1e-12)
            own[slot] += 1
        for slot, oracle in alone.items():
            for key, value in engine.read(slot).items():
                torch.testing.assert_close(value, oracle.parameters[key].data, atol=1e-12, rtol=1e-12)
        assert not engine.grad.any()
        assert not engine.head_grad[TEXT].any()
    assert own == {1: 7, 2: 6, 3: 5, 4: 9}


def test_unused_slots_and_numbers_beyond_a_rank_never_move(engine: AdapterEngine) -> None:
    optimizer = SlotOptimizer(engine)
    for slot in (1, 2, 3):
        optimizer.join(slot, SPECS[slot - 1], 100)
    before = engine.flat.clone()
    for step in range(5):
        for slot in (1, 2, 3):
            give(engine, slot, step)
        optimizer.step({1: 1.0, 2: 1.0, 3: 1.0})
    assert torch.equal(engine.flat[[0, 4, 5]], before[[0, 4, 5]])
    moved = (engine.flat != before)[1:4].sum(1).tolist()
    assert moved == [sum(v.numel() for k, v in engine.read(slot).items() if "lora" in k) for slot in (1, 2, 3)]
    for layer in engine.layers.values():
        for slot, rank in enumerate((1, 2, 8), start=1):
            assert not layer.A[slot, rank:].any()
            assert not layer.B[slot, :, rank:].any()
    stacks = engine.heads[TEXT].stacks
    assert not stacks["classifier.weight"][1, 2:].any()  # a head of two labels in a buffer of three
    assert not stacks["classifier.bias"][1, 2:].any()
    assert stacks["classifier.weight"][3, 2].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_slot_with_a_bad_gradient_stays_and_its_neighbours_step(engine: AdapterEngine, bad: float) -> None:
    twin = copy.deepcopy(engine.flat)
    optimizer = SlotOptimizer(engine)
    for slot in (1, 2):
        optimizer.join(slot, SPECS[slot - 1], 10)
    oracle = Alone(engine, 2, SPECS[1], 10)
    for step in range(3):
        give(engine, 1, step)
        engine.grad[1, 7] = bad
        give(engine, 2, step)
        norms = optimizer.step({1: 2.0, 2: 2.0})
        assert not math.isfinite(norms[1])
        oracle.step(step, 2.0)
    assert torch.equal(engine.flat[1], twin[1])
    assert not engine.grad.any()
    for key, value in engine.read(2).items():
        torch.testing.assert_close(value, oracle.parameters[key].data, atol=1e-12, rtol=1e-12)


def test_a_slot_that_is_used_again_starts_afresh(engine: AdapterEngine) -> None:
    optimizer = SlotOptimizer(engine)
    optimizer.join(2, SPECS[1], 10)
    for step in range(4):
        give(engine, 2, step)
        optimizer.step({2: 1.0})
    assert optimizer.state(2)[0] == 4
    optimizer.leave(2)
    engine.evict(2)
    assert engine.init(LoraSpec(r=4), HeadSpec(TEXT, 3), seed=9) == 2
    optimizer.join(2, SPECS[3], 9)
    assert optimizer.state(2) == (0, {})
    oracle = Alone(engine, 2, SPECS[3], 9)
    for step in range(3):
        give(engine, 2, step)
        optimizer.step({2: 5.0})
        oracle.step(step, 5.0)
    for key, value in engine.read(2).items():
        torch.testing.assert_close(value, oracle.parameters[key].data, atol=1e-12, rtol=1e-12)


def test_a_state_goes_on_in_an_engine_of_another_size(engine: AdapterEngine, folder: Path) -> None:
    optimizer = SlotOptimizer(engine)
    for slot in (1, 3, 4):
        optimizer.join(slot, SPECS[slot - 1], 20)
    oracle = Alone(engine, 3, SPECS[2], 20)
    for step in range(5):
        for slot in (1, 3, 4):
            give(engine, slot, step)
        optimizer.step({1: 1.0, 3: 1.0, 4: 1.0})
        oracle.step(step, 1.0)
    done, moments = optimizer.state(3)
    assert done == 5
    values = engine.read(3)
    assert {key.split("/", 1)[1] for key in moments} == set(values)
    for key, parameter in oracle.parameters.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(moments[f"{moment}/{key}"], oracle.optimizer.state[parameter][moment])
    with engine_on(folder, torch.float64, slots=1, max_rank=32, train=True) as other:
        other.reserve_head(HeadSpec(TEXT, 5))
        slot = other.init(LoraSpec(r=8), HeadSpec(TEXT, 3), seed=77)
        second = SlotOptimizer(other)
        second.join(slot, SPECS[2], 20)
        other.write(slot, values)
        second.restore(slot, done, moments)
        for step in range(5, 9):
            other.write(slot, gradients(engine, 3, step), [other.grad, *other.head_grad.values()])
            second.step({slot: 1.0})
            oracle.step(step, 1.0)
        for key, value in other.read(slot).items():
            torch.testing.assert_close(value, oracle.parameters[key].data, atol=1e-12, rtol=1e-12)
