"""Bases in GGUF files, which the gguf package itself writes here; transformers' own reading is the oracle."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from ray_lora import BaseSpec, load_base
from ray_lora.bases.load import describe_base
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import BaseModelError
from ray_lora.recipe import LoraSpec
from tests.unit.bases import TEXT, logits_by_row

TOKENS = ["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(61))]


def write(path: Path, tokenizer: bool) -> transformers.LlamaModel:
    """A Llama of one layer; returns the model whose weights are in the file (query and key in GGUF's own order)."""
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    torch.manual_seed(1)
    model = transformers.LlamaModel(config)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(len(TOKENS))
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    if tokenizer:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(TOKENS)
        writer.add_token_scores([0.0] * len(TOKENS))
        writer.add_token_types([2, 3, 3, *[1] * 61])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    names = {
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "layers.0.self_attn.q_proj": "blk.0.attn_q",
        "layers.0.self_attn.k_proj": "blk.0.attn_k",
        "layers.0.self_attn.v_proj": "blk.0.attn_v",
        "layers.0.self_attn.o_proj": "blk.0.attn_output",
        "layers.0.mlp.gate_proj": "blk.0.ffn_gate",
        "layers.0.mlp.up_proj": "blk.0.ffn_up",
        "layers.0.mlp.down_proj": "blk.0.ffn_down",
        "layers.0.input_layernorm": "blk.0.attn_norm",
        "layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    }
    for ours, theirs in names.items():
        writer.add_tensor(f"{theirs}.weight", model.get_parameter(f"{ours}.weight").detach().numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("tokenizer", [False, True])
def test_a_gguf_file_is_a_base(tokenizer: bool, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    written = write(path, tokenizer)
    spec = BaseSpec(model=str(path), dtype="float32")
    base, described = load_base(spec), describe_base(spec)
    assert base.folder == path
    assert described.fingerprint == base.fingerprint
    assert all(tensor.is_meta for tensor in described.backbone.parameters())
    assert {n: p.shape for n, p in described.backbone.named_parameters()} == {
        n: p.shape for n, p in base.backbone.named_parameters()
    }
    for name in ("embed_tokens.weight", "layers.0.mlp.down_proj.weight", "norm.weight"):
        assert torch.equal(base.backbone.get_parameter(name), written.get_parameter(name))
    assert (base.processor is not None) == tokenizer
    if tokenizer:
        assert base.processor("w1")["input_ids"]
    batch = base.batch(base.examples([4, 7]))
    theirs: Any = transformers.AutoModel.from_pretrained(tmp_path, gguf_file=path.name, attn_implementation="eager")
    expected = theirs.eval()(**batch).last_hidden_state
    torch.testing.assert_close(base.backbone(**batch).last_hidden_state, expected)
    engine = AdapterEngine(base, slots=1, max_rank=2)
    slot = engine.init(LoraSpec(r=2), HeadSpec(TEXT, 3), seed=0)
    assert logits_by_row(engine, batch, [slot, slot])[1].shape == (3,)


def test_another_file_has_another_fingerprint(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", False)
    (tmp_path / "b.gguf").write_bytes((tmp_path / "a.gguf").read_bytes() + b"\0")
    prints = {describe_base(BaseSpec(model=str(tmp_path / name))).fingerprint for name in ("a.gguf", "b.gguf")}
    assert len(prints) == 2


def test_a_torn_or_absent_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.gguf").write_bytes(b"GGUF no more")
    for load in (load_base, describe_base):
        with pytest.raises(BaseModelError, match=r"torn\.gguf"):
            load(BaseSpec(model=str(tmp_path / "torn.gguf")))
    with pytest.raises(BaseModelError, match="is not a folder or a GGUF file here"):
        load_base(BaseSpec(model="models/absent.gguf"))


def test_without_its_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some.gguf").write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match=r"not installed: pip install 'ray_lora\[gguf\]'"):
        load_base(BaseSpec(model=str(tmp_path / "some.gguf")))
