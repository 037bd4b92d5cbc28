"""Pairs that lie side by side from one pass to the next: each token has the low-rank term of its slot as it is now."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from ray_lora.bases.load import load_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine
from ray_lora.engine.decoding import Decoding
from ray_lora.engine.joined import Joined
from ray_lora.engine.kernels import lora_reference
from ray_lora.engine.layers import TargetLayer
from ray_lora.engine.side_by_side import SideBySide
from ray_lora.recipe import BaseSpec, LoraSpec

CPU = torch.device("cpu")
LLAMA = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 36, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
SLOTS, HEAD = 6, HeadSpec("AutoModelForCausalLM", 50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model("llama", **LLAMA))
    place = tmp_path_factory.mktemp("llama")
    model.save_pretrained(place)
    return place


def engine_of(folder: Path, ranks: list[int], targets: str | list[str] = "all-linear") -> AdapterEngine:
    """Slots 1, 2, ... with drawn adapters of these ranks."""
    engine = AdapterEngine(load_base(BaseSpec(model=str(folder), dtype="float32")), slots=SLOTS, max_rank=8)
    for seed, rank in enumerate(ranks):
        slot = engine.init(LoraSpec(r=rank, lora_alpha=12, target_modules=targets), None, seed=seed)
        draw(engine, slot, seed)
    return engine


def draw(engine: AdapterEngine, slot: int, seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    engine.write(slot, {key: torch.randn(x.shape, generator=made) * 0.3 for key, x in engine.read(slot).items()})
    engine.refresh([slot])


def beside(engine: AdapterEngine, most: int = 2**30) -> tuple[SideBySide, list[TargetLayer]]:
    layers = list(engine.layers.values())
    return SideBySide(layers, engine.buffers.versions, most), layers


def check(pairs: SideBySide, layers: list[TargetLayer], owners: list[int], lengths: list[int]) -> int:
    """Terms of a pass with so many tokens of each row, against the formula; how many tokens had theirs side by side."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    joined = Joined.of(mask, owners, CPU, None)
    groups = pairs.groups(joined.segments[-joined.few :])
    if groups is None:
        return 0
    slots = torch.zeros(joined.count, dtype=torch.int64)
    for slot, begin, end in joined.segments:
        slots[begin:end] = slot
    for layer in layers:
        x, y = torch.randn(joined.count, layer.shape.a[0]), torch.randn(joined.count, layer.shape.b)
        out = y.clone()
        groups.add(layer.index, x, out)
        expected = lora_reference(x[:, None], y[:, None], layer.a, layer.b, layer.scaling, slots)[:, 0]
        here = torch.arange(joined.count) >= groups.begin
        here[joined.idle] = False
        torch.testing.assert_close(out[here], expected[here], atol=1e-5, rtol=1e-5)
        assert torch.equal(out[: groups.begin], y[: groups.begin])
    return int(here.sum())


def test_terms_are_each_slots_own_whoever_joins_leaves_and_changes(folder: Path) -> None:
    """Passes one after the other, of drawn rows; slots' numbers and ranks change between them."""
    engine, dice = engine_of(folder, [2, 4, 1, 8, 3]), random.Random(5)
    pairs, layers = beside(engine)
    found = 0
    for turn in range(60):
        owners = [dice.randrange(SLOTS) for _ in range(dice.randrange(1, 9))]
        lengths = [dice.choice((1, 1, 1, 2, 5, 20)) for _ in owners]
        if any(owner and length <= 16 for owner, length in zip(owners, lengths, strict=True)):
            found += check(pairs, layers, owners, lengths)
        if turn % 7 == 3:
            draw(engine, dice.randrange(1, SLOTS), turn)
        if turn % 20 == 11:
            slot = dice.randrange(1, SLOTS)
            engine.evict(slot)
            assert engine.init(LoraSpec(r=dice.choice((1, 5, 8)), lora_alpha=3), None, seed=turn) == slot
            draw(engine, slot, turn)
    assert found > 100


def test_where_there_is_no_room_the_last_slots_have_it(folder: Path) -> None:
    engine = engine_of(folder, [4, 4, 4, 4])
    _, layers = beside(engine)
    a_place = 4 * 4 * sum(layer.shape.a[0] + layer.shape.b for layer in layers)
    for places in range(4):
        pairs, _ = beside(engine, a_place * places)
        assert check(pairs, layers, [1, 2, 3, 4], [1, 1, 1, 1]) == places
    assert check(pairs, layers, [4, 2], [1, 2]) == 3  # for three there is room


def test_what_makes_no_number_reaches_nobody_else(folder: Path) -> None:
    engine = engine_of(folder, [4, 4, 4])
    pairs, layers = beside(engine)
    engine.write(2, {key: torch.full_like(x, torch.nan) for key, x in engine.read(2).items()})
    engine.refresh([2])
    groups = pairs.groups([(1, 0, 1), (2, 1, 2), (3, 2, 4)])
    assert groups is not None
    for layer in layers:
        y = torch.zeros(8, layer.shape.b)
        groups.add(layer.index, torch.ones(8, layer.shape.a[0]), y)
        assert y[[0, 2, 3]].isfinite().all()
        assert y[1].isnan().all()


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]], ids=["every layer", "two of seven"])
def test_rows_go_on_by_the_numbers_that_their_slot_has_now(folder: Path, targets: str | list[str]) -> None:
    """The same rows written on before and after a slot's numbers are written anew: as by an engine that never had the
    old ones."""
    logits = []
    for old in (True, False):
        engine = engine_of(folder, [2, 2], targets)
        if not old:
            draw(engine, 2, 77)
        decoding = Decoding(engine, HEAD)
        if old:
            first = [decoding.enter(slot, 9) for slot in (1, 2)]
            for _ in range(3):
                decoding.advance([(row, [7]) for row in first])
            draw(engine, 2, 77)
        rows = [decoding.enter(slot, 9) for slot in (2, 1)]
        decoding.advance([(row, [5, 6]) for row in rows])
        logits.append(torch.stack([decoding.advance([(row, [8]) for row in rows]) for _ in range(2)]))
        engine.close()
    torch.testing.assert_close(*logits)


def padded(lengths: list[int]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def test_slots_with_few_tokens_come_last_and_at_most_half_of_their_places_are_empty() -> None:
    dice = random.Random(2)
    for _ in range(200):
        owners = [dice.randrange(5) for _ in range(dice.randrange(1, 12))]
        lengths = [dice.choice((1, 1, 2, 3, 9, 30)) for _ in owners]
        joined = Joined.of(padded(lengths), owners, CPU, None)
        assert joined.block == 0
        sizes = [(slot, end - begin) for slot, begin, end in joined.segments]
        assert sorted(sizes) == sorted(
            (slot, sum(n for owner, n in zip(owners, lengths, strict=True) if owner == slot)) for slot in set(owners)
        )
        few = [size for _, size in sizes[len(sizes) - joined.few :]]
        assert all(slot for slot, _ in sizes[len(sizes) - joined.few :])
        assert len(few) * max(few, default=0) <= 2 * sum(few)
        if all(lengths[at] == 1 for at in range(len(owners))) and len(set(owners)) == len(owners):
            assert joined.few == len(set(owners) - {0})
