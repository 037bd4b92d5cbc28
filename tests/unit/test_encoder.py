"""An encoder's answering pass computes no padding and answers as the model's own pass does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.engine.encoder import EncoderPass
from ray_lora.engine.ragged import Ragged
from ray_lora.recipe import BaseSpec, LoraSpec

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "max_position_embeddings": 64,
}
KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "camembert": {"type_vocab_size": 1},
    "electra": {"embedding_size": 16},
}
LENGTHS = {
    "uneven": [3, 9, 1, 16, 5, 17],
    "even": [7, 7, 7, 7],
    "even and full": [16, 16, 16],
    "one row": [5],
    "one token": [1, 1],
}


# -------------------------------------------------------------------- joined tokens


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9))
def test_joining_and_spreading_lose_nothing(lengths: list[int]) -> None:
    ragged = Ragged.of(lengths, torch.float32, CPU)
    tokens = sum(lengths)
    joined = torch.arange(1.0, len(ragged.to_joined) + 1)[:, None]
    assert tokens <= len(joined) < tokens + 16
    for padded in (ragged.spread(joined), ragged.widen(joined)):
        assert torch.equal(ragged.join(padded)[:tokens], joined[:tokens])
        for row, length in enumerate(lengths):
            begin = int(ragged.firsts[row])
            assert torch.equal(padded[row, :length], joined[begin : begin + length])
    assert ragged.width % 16 == 0
    mask = torch.zeros(len(lengths), ragged.width) if ragged.mask is None else ragged.mask
    assert torch.equal(mask == 0, torch.arange(ragged.width) < torch.tensor(lengths)[:, None])
    assert bool(((mask == 0) | (mask == float("-inf"))).all())


def test_single_tokens_lie_the_same_either_way() -> None:
    single, states = Ragged.single(3, CPU), torch.randn(3, 5)
    assert torch.equal(single.spread(states), states[:, None])
    assert torch.equal(single.join(states[:, None]), states)


# -------------------------------------------------------------------- the pass


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small base of each kind, every weight random."""
    made: Path = tmp_path_factory.mktemp(request.param)
    config = transformers.AutoConfig.for_model(request.param, **SMALL, **KINDS[request.param])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModel.from_config(config)
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(made)
    return made


def batch(lengths: list[int], longest: int | None = None) -> dict[str, Tensor]:
    draw, width = torch.Generator().manual_seed(sum(lengths)), longest or max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(5, 40, mask.shape, generator=draw) * mask + (1 - mask), "attention_mask": mask}


def filled(folder: Path, dtype: str = "float32", train: bool = False) -> AdapterEngine:
    """Slots 1 to 3: all layers, two of a layer's three projections, one layer only; no value is zero."""
    base = load_base(BaseSpec.model_validate({"model": str(folder), "dtype": dtype}))
    engine = AdapterEngine(base, slots=4, max_rank=6, train=train)
    head = HeadSpec("AutoModelForSequenceClassification", 3)
    for seed, (rank, targets) in enumerate([(6, "all-linear"), (2, ("query", "value")), (3, ("intermediate.dense",))]):
        slot = engine.init(LoraSpec(r=rank, lora_alpha=2 * rank + seed, target_modules=targets), head, seed)
        draw = torch.Generator().manual_seed(seed)
        values = {key: value.normal_(0, 0.3, generator=draw) for key, value in engine.read(slot).items()}
        engine.write(slot, values)
        engine.refresh([slot])
    return engine


def own_way(engine: AdapterEngine, inputs: dict[str, Tensor], slots: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and logits as the model's own forward gives them, with hooks."""
    backbone = engine._backbone
    taken, backbone._encoder = backbone._encoder, None
    assert taken is not None
    try:
        return answers(engine, inputs, slots)
    finally:
        backbone._encoder = taken


def answers(engine: AdapterEngine, inputs: dict[str, Tensor], slots: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        hidden: Tensor = engine.hidden(inputs, slots).last_hidden_state
        logits = torch.zeros(len(slots), 3, dtype=torch.float64)
        for rows, outputs in engine.forward(inputs, slots):
            if "logits" in outputs:
                logits[rows] = outputs.logits.double()
    return hidden, logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_answers_are_those_of_the_models_own_way(folder: Path, lengths: list[int], dtype: str) -> None:
    engine, inputs = filled(folder, dtype), batch(lengths)
    kept, rows = inputs["attention_mask"].bool(), len(lengths)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == "float32" else {"atol": 6e-2, "rtol": 6e-2}
    for slots in ([row % 4 for row in range(rows)], [1] * rows, sorted(row % 2 + 1 for row in range(rows)), [0] * rows):
        given = torch.tensor(slots)
        (hidden, logits), (wanted, expected) = answers(engine, inputs, given), own_way(engine, inputs, given)
        assert hidden.shape == wanted.shape
        torch.testing.assert_close(hidden[kept], wanted[kept], **close)
        torch.testing.assert_close(logits, expected, **close)
    engine.close()


def test_an_engine_that_trains_answers_the_same(folder: Path) -> None:
    lengths = LENGTHS["uneven"]
    inputs, slots = batch(lengths), torch.tensor([0, 1, 2, 3, 1, 1])
    kept = inputs["attention_mask"].bool()
    found = []
    for train in (True, False):
        engine = filled(folder, train=train)
        found.append(answers(engine, inputs, slots))
        engine.close()
    torch.testing.assert_close(found[0][0][kept], found[1][0][kept], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-6, rtol=1e-6)


def test_padding_that_nobody_needs_is_not_computed_but_given_back(folder: Path) -> None:
    engine, lengths = filled(folder), [3, 9, 5]
    slots = torch.tensor([1, 2, 0])
    near, wide = batch(lengths), batch(lengths, longest=40)
    for name in near:
        wide[name][:, :9] = near[name]
    (hidden, logits), (wider, same) = answers(engine, near, slots), answers(engine, wide, slots)
    assert wider.shape == (3, 40, 24)
    kept = near["attention_mask"].bool()
    torch.testing.assert_close(wider[:, :9][kept], hidden[kept], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(same, logits, atol=1e-6, rtol=1e-6)
    engine.close()


@pytest.mark.parametrize("odd", ["begins at the right", "has a hole", "weighs", "has positions"])
def test_what_it_does_not_take_goes_the_models_own_way(folder: Path, odd: str) -> None:
    engine, inputs, slots = filled(folder), batch([4, 8, 6]), torch.tensor([1, 0, 2])
    if odd == "begins at the right":
        inputs = {name: tensor.flip(1) for name, tensor in inputs.items()}
    elif odd == "has a hole":
        inputs["attention_mask"][1, 3] = 0
    elif odd == "weighs":
        inputs["attention_mask"] = inputs["attention_mask"].float()
    else:
        inputs["position_ids"] = torch.arange(8).flip(0).expand(3, -1) + 2
    with torch.inference_mode():
        assert not engine.pads
        assert EncoderPass.lengths(inputs) is None
        found = engine.hidden(inputs, slots).last_hidden_state
    assert torch.equal(found, own_way(engine, inputs, slots)[0])
    engine.close()
