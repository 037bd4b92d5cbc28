"""Passes whose rows are all of one slot: what is kept of a slot between them is always of its numbers as they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_lora.engine import AdapterEngine, lone_slot
from ray_lora.recipe import LoraSpec
from tests.unit.test_convolutions import base_of, pixels

KINDS = ("strided", "strided point", "depthwise", "up")
SPEC = LoraSpec(r=2, target_modules=("body",))


def answer(engine: AdapterEngine, slots: list[int]) -> Tensor:
    x = pixels(engine.base.backbone.body, len(slots)).contiguous(memory_format=torch.channels_last)
    found: Tensor = engine.hidden({"pixel_values": x}, torch.tensor(slots)).last_hidden_state
    return found


def renew(engine: AdapterEngine, slot: int, seed: int) -> None:
    """Other numbers in a slot, as a person's new version brings them."""
    draw = torch.Generator().manual_seed(seed)
    engine.write(slot, {key: torch.randn(x.shape, generator=draw) for key, x in engine.read(slot).items()})
    engine.refresh([slot])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(acts=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["ask", "renew", "leave"])), max_size=24))
def test_a_slot_alone_answers_as_beside_others_whatever_came_before(kind: str, acts: list[tuple[int, str]]) -> None:
    engine = AdapterEngine(base_of(kind), slots=6, max_rank=4)
    held = [engine.init(SPEC, None, seed=seed) for seed in range(6)]
    for seed, (which, act) in enumerate(acts):
        slot = held[which]
        if act == "renew":
            renew(engine, slot, seed)
        elif act == "leave":  # the next one may have another rank and scale
            engine.evict(slot)
            held[which] = engine.init(SPEC.model_copy(update={"r": 1 + seed % 4, "lora_alpha": seed}), None, seed=seed)
            renew(engine, held[which], seed)
        else:
            with torch.inference_mode(seed % 2 == 0), torch.no_grad():
                beside = answer(engine, [slot, 0])[0]  # slot 0 makes it a pass of several
                torch.testing.assert_close(answer(engine, [slot])[0], beside, atol=1e-5, rtol=1e-5)
    assert len(engine._router._lone._kept) <= lone_slot._MOST
    engine.close()


def test_gradients_are_computed_of_a_slot_that_was_asked_alone() -> None:
    engine = AdapterEngine(base_of("strided"), slots=1, max_rank=4, train=True)
    slot = engine.init(SPEC, None, seed=0)
    renew(engine, slot, 0)
    with torch.inference_mode():
        answer(engine, [slot, slot])
    answer(engine, [slot, slot]).square().sum().backward()
    assert float(engine.grad[slot].abs().max()) > 0
