"""Rows laid end to end: nothing is lost, and every class that takes them answers as it does for each row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ray_lora.bases.load import load_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine
from ray_lora.engine.joined import NARROW, Costs, Joined
from ray_lora.recipe import BaseSpec, LoraSpec

CPU = torch.device("cpu")
SMALL = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "pad_token_id": 0}
ENCODER = {**SMALL, "intermediate_size": 36, "max_position_embeddings": 64}
KINDS: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "roberta": ENCODER | {"type_vocab_size": 1},
    "xlm-roberta": ENCODER | {"type_vocab_size": 1},
    "electra": ENCODER | {"embedding_size": 16},
    "albert": ENCODER | {"embedding_size": 16},
    "distilbert": {"vocab_size": 50, "dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 36, "pad_token_id": 0},
    "modernbert": SMALL | {"intermediate_size": 36, "local_attention": 6, "global_attn_every_n_layers": 2},
    "llama": ENCODER | {"num_key_value_heads": 2},
    "mistral": ENCODER | {"num_key_value_heads": 2, "sliding_window": 4, "head_dim": 6},
    "qwen2": ENCODER
    | {"num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "gemma2": ENCODER | {"num_key_value_heads": 2, "head_dim": 6, "sliding_window": 4, "attn_logit_softcapping": 2.0},
    "gpt2": {"vocab_size": 50, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1},
    "opt": SMALL | {"ffn_dim": 36, "max_position_embeddings": 64, "word_embed_proj_dim": 24},
}
LENGTHS = {
    "uneven": [3, 9, 1, 16, 5, 17],
    "even": [7, 7, 7, 7],
    "full": [16, 16, 16],
    "one row": [5],
    "one token": [1, 1],
}


# -------------------------------------------------------------------- where tokens lie


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 4)), min_size=1, max_size=12), st.booleans(), st.booleans()
)
def test_joining_and_spreading_lose_nothing(rows: list[tuple[int, int]], left: bool, blocks: bool) -> None:
    lengths, slots = [length for length, _ in rows], [slot for _, slot in rows]
    mask, numbers = padded(lengths, left)
    joined = Joined.of(mask, slots, CPU, NARROW if blocks else Costs(block=1e9, stretch=1))
    assert bool(joined.block) == blocks
    tokens = joined.take(numbers)
    assert tokens.shape == (1, joined.count, 1)
    assert sum(lengths) <= joined.count
    assert torch.equal(joined.spread(tokens)[mask.bool()], numbers[mask.bool()])
    owners = np.concatenate([np.repeat(slot, end - begin) for slot, begin, end in joined.segments])
    if blocks:
        assert joined.count % joined.block == 0
        assert np.repeat(joined.owners, joined.block)[: len(owners)].tolist() == owners.tolist()
    else:
        assert joined.count - sum(lengths) < 16  # up to 512 tokens
    idle = set(joined.idle.tolist())
    assert len(idle) == joined.count - sum(lengths)
    for row, (length, slot) in enumerate(rows):
        begin = joined.starts[row]
        here = range(begin, begin + length)
        assert tokens[0, begin : begin + length, 0].tolist() == numbers[row, mask[row].bool(), 0].tolist()
        assert joined.positions[begin : begin + length].tolist() == list(range(length))
        assert set(owners[list(here)]) == {slot}
        assert not idle & set(here)
    held = sorted(token for bucket in joined.buckets for token in bucket.tokens[bucket_mask(bucket)].tolist())
    assert held == sorted(set(range(joined.count)) - idle)


def bucket_mask(bucket: Any) -> Tensor:
    return torch.arange(bucket.width) < bucket.ends[:, None]


def padded(lengths: list[int], left: bool = False) -> tuple[Tensor, Tensor]:
    """A mask [rows, longest], and another number for each token, [rows, longest, 1]."""
    longest = max(lengths)
    column = torch.arange(longest)
    ends = torch.tensor(lengths)[:, None]
    mask = (column >= longest - ends if left else column < ends).long()
    return mask, (torch.arange(mask.numel()).view(*mask.shape, 1) + 1) * mask.unsqueeze(-1)


# -------------------------------------------------------------------- what the classes compute


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            config = transformers.AutoConfig.for_model(kind, **KINDS[kind])
            with torch.random.fork_rng():
                torch.manual_seed(1)
                model = transformers.AutoModel.from_config(config)
                for parameter in model.parameters():
                    parameter.data.normal_(0, 0.3)
            made[kind] = tmp_path_factory.mktemp(kind)
            model.save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_joined_rows_equal_each_row_alone(kind: str, left: bool, folders: Any) -> None:
    """The bare base and two adapters in one pass, in float64, and their gradients."""
    base = load_base(BaseSpec(model=str(folders(kind)), dtype="float32"))
    base.backbone.double()
    object.__setattr__(base, "dtype", torch.float64)
    engine = AdapterEngine(base, slots=2, max_rank=3, train=True)
    assert engine.sharing.lengths == "joined"
    slots = [0, *(some_adapter(engine, rank) for rank in (2, 3))]
    for lengths in LENGTHS.values():
        rows = [(slots[number % 3], length) for number, length in enumerate(lengths)]
        inputs = token_batch(lengths, left)
        whole = engine.hidden(inputs, torch.tensor([slot for slot, _ in rows]))
        if any(slot for slot, _ in rows):
            weigh(whole, inputs).backward()
        together = engine.grad.clone()
        engine.grad.zero_()
        for row, (slot, length) in enumerate(rows):
            kept = inputs["attention_mask"][row].bool()
            single = {name: value[row, kept][None] for name, value in inputs.items()}
            alone = engine.hidden(single, torch.tensor([slot]))
            torch.testing.assert_close(
                whole.last_hidden_state[row, kept], alone.last_hidden_state[0], atol=1e-9, rtol=0
            )
            if "pooler_output" in alone:
                torch.testing.assert_close(whole.pooler_output[row], alone.pooler_output[0], atol=1e-9, rtol=0)
            assert alone.last_hidden_state.shape[1] == length
            if slot:
                weigh(alone, single).backward()
        torch.testing.assert_close(together, engine.grad, atol=1e-9, rtol=1e-9)
        engine.grad.zero_()
    bare = engine.hidden(token_batch([9, 4], left), torch.tensor([0, 0])).last_hidden_state
    engine.close()
    for row, length in enumerate([9, 4]):
        ids = token_batch([9, 4])["input_ids"][row : row + 1, :length]
        plain = base.backbone(input_ids=ids).last_hidden_state[0]
        mine = bare[row, -length:] if left else bare[row, :length]
        torch.testing.assert_close(mine, plain, atol=1e-6, rtol=0)  # some classes take their softmax in float32


def token_batch(lengths: list[int], left: bool = False) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    mask, _ = padded(lengths, left)
    ids = torch.zeros_like(mask)
    for row, length in enumerate(lengths):
        ids[row, mask[row].bool()] = torch.randint(2, 50, (length,), generator=draw)
    return {"input_ids": ids, "attention_mask": mask}


def some_adapter(engine: AdapterEngine, rank: int) -> int:
    slot = engine.init(LoraSpec(r=rank), None, seed=rank)
    draw = torch.Generator().manual_seed(rank)
    tensors = engine.read(slot)
    engine.write(
        slot, {key: torch.randn(value.shape, generator=draw).to(value) * 0.2 for key, value in tensors.items()}
    )
    engine.refresh([slot])
    return slot


def weigh(outputs: Any, inputs: dict[str, Tensor]) -> Tensor:
    """A number that depends on every state of every token."""
    states = outputs.last_hidden_state * inputs["attention_mask"].unsqueeze(-1)
    weights = torch.linspace(-1, 1, states.shape[-1], dtype=states.dtype)
    pooled = outputs["pooler_output"].sin().sum() if "pooler_output" in outputs else 0.0
    total: Tensor = (states.sin() * weights).sum() + pooled
    return total


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_classifier_reads_the_first_token_of_each_row(kind: str, folders: Any) -> None:
    """After the last layer's attention a joined pass goes on with each row's own first token."""
    base = load_base(BaseSpec(model=str(folders(kind)), dtype="float32"))
    engine = AdapterEngine(base, slots=1, max_rank=4)
    slot = engine.init(LoraSpec(r=4), HeadSpec("AutoModelForSequenceClassification", 3), seed=0)
    draw = torch.Generator().manual_seed(5)
    tensors = {key: torch.randn(value.shape, generator=draw) * 0.3 for key, value in engine.read(slot).items()}
    engine.write(slot, tensors)
    engine.refresh([slot])
    inputs = token_batch([3, 9, 5])
    with torch.no_grad():
        ((_, outputs),) = engine.forward(inputs, torch.tensor([slot] * 3))
        full = engine.hidden(inputs, torch.tensor([slot] * 3)).last_hidden_state
        joined = engine._backbone.join(inputs, [slot] * 3)
        narrow = engine._backbone.run(inputs, engine._routes([slot] * 3, joined), joined, True)
    assert narrow.last_hidden_state.shape[1] == 1
    torch.testing.assert_close(narrow.last_hidden_state[:, 0], full[:, 0], atol=2e-6, rtol=1e-5)
    assert outputs.logits.shape == (3, 3)
    engine.close()
