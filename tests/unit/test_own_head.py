"""Heads that are the base's own: language models answer in the engine as plain transformers and PEFT do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine, LoneHead
from ray_lora.errors import AdapterError
from ray_lora.recipe import LoraSpec
from tests.unit.bases import VOCABULARY, open_base, quiet_peft, save_base, token_batch

LM = "AutoModelForCausalLM"
HEAD = HeadSpec(LM, VOCABULARY)


@pytest.fixture(params=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A GPT-2 whose output layer is its embedding, or a Llama's with one of its own in its file."""
    if request.param == "tied":
        return save_base("gpt2", tmp_path / "gpt2")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, pad_token_id=0, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=40, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def filled(engine: AdapterEngine, rank: int) -> int:
    """A slot whose adapter moves what the base says."""
    slot = engine.init(LoraSpec(r=rank), HEAD, seed=rank)
    draw = torch.Generator().manual_seed(rank)
    engine.write(
        slot, {key: torch.randn(value.shape, generator=draw) * 0.2 for key, value in engine.read(slot).items()}
    )
    engine.refresh([slot])
    return slot


def test_rows_of_several_adapters_share_the_bases_output_layer(folder: Path, tmp_path: Path) -> None:
    """Mixed = plain PEFT, whose folders hold low-rank pairs and nothing else, go out and come back."""
    engine = AdapterEngine(open_base(folder, torch.float64), slots=2, max_rank=4, train=True)
    slots = [filled(engine, 2), filled(engine, 4)]
    inputs, owners = token_batch(6), [slots[row % 2] for row in range(6)]
    ((rows, outputs),) = engine.forward(inputs, torch.tensor(owners))
    assert outputs.logits.shape == (6, 9, VOCABULARY)
    outputs.logits.square().sum().backward()
    assert all(engine.grad[slot].any() for slot in slots)
    assert all(flat.shape[1] == 0 for flat in engine.head_flat.values())
    assert not any(parameter.requires_grad for parameter in engine.base.backbone.parameters())
    for slot in slots:
        adapter = engine.export(slot)
        assert not adapter.head
        assert adapter.head_modules == ()
        adapter.save(tmp_path / str(slot))
        engine.evict(slot)
        assert engine.load(Adapter.load(tmp_path / str(slot))) == slot
    with torch.no_grad():
        ((_, again),) = engine.forward(inputs, torch.tensor(owners))
    assert torch.equal(again.logits[rows], outputs.logits[rows].detach())
    engine.close()
    for slot in slots:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        with quiet_peft(), torch.no_grad():
            plain = PeftModel.from_pretrained(model, str(tmp_path / str(slot))).double().eval()
            mine = [row for row, owner in enumerate(owners) if owner == slot]
            for row in mine:
                kept = inputs["attention_mask"][row].bool()
                theirs = plain(input_ids=inputs["input_ids"][row][kept][None]).logits[0]
                torch.testing.assert_close(outputs.logits.detach()[row][kept], theirs, atol=1e-9, rtol=0)


def test_what_does_not_fit_the_bases_own_head_is_refused(folder: Path) -> None:
    engine = AdapterEngine(open_base(folder), slots=1, max_rank=4)
    with pytest.raises(AdapterError, match=f"the base's own, of {VOCABULARY} outputs; 2 were asked for"):
        engine.reserve_head(HeadSpec(LM, 2))
    adapter = engine.export(filled(engine, 2))
    brought = Adapter(adapter.config, adapter.layers, {"lm_head.weight": torch.zeros(VOCABULARY, 32)}, adapter.card)
    with pytest.raises(AdapterError, match=r"brings 'lm_head\.weight'.*the base's own.*without modules_to_save"):
        engine.load(brought)
    with pytest.raises(AdapterError, match="there is none to fit"):
        LoneHead(engine.base, HEAD)


def test_a_base_that_was_saved_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = save_base("llama", tmp_path / "llama")  # untied by its class, and only a backbone in the file
    engine = AdapterEngine(open_base(folder), slots=1)
    with pytest.raises(AdapterError, match=r"has no lm_head\.weight; give a base that was saved with its head"):
        engine.reserve_head(HEAD)
