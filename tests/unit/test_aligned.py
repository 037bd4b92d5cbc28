"""Attention with keys filled up to a multiple of 16 is the plain one's: answers, gradients and weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import eager_attention_forward

from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.engine.aligned import aligned_attention
from ray_lora.recipe import BaseSpec


def projections(rows: int, tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key and value as a layer hands them on: views of [rows, tokens, hidden]."""
    draw = torch.Generator().manual_seed(tokens)
    states = [torch.randn(rows, tokens, 24, generator=draw).to(dtype).requires_grad_() for _ in range(3)]
    return [state.view(rows, tokens, 3, 8).transpose(1, 2) for state in states]


def padding(lengths: list[int], tokens: int, dtype: torch.dtype) -> Tensor:
    """An additive mask as transformers makes it, [rows, 1, 1, tokens]."""
    beyond = torch.arange(tokens)[None, :] >= torch.tensor(lengths)[:, None]
    return torch.zeros(beyond.shape, dtype=dtype).masked_fill(beyond, torch.finfo(dtype).min)[:, None, None]


@pytest.mark.parametrize("tokens", [1, 7, 16, 23, 33])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "whole"])
def test_answers_and_gradients_are_the_plain_ones(tokens: int, dtype: torch.dtype, masked: bool) -> None:
    parts = projections(4, tokens, dtype)
    mask = padding([tokens, 1, max(1, tokens - 2), max(1, tokens // 2)], tokens, dtype) if masked else None
    module = nn.Module().eval()
    expected, scores = eager_attention_forward(module, *parts, mask, scaling=0.3)
    found, mine = aligned_attention(module, *parts, mask, scaling=0.3)
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found, expected, **close)
    torch.testing.assert_close(mine, scores, **close)
    wanted = torch.autograd.grad(expected.square().sum(), parts)
    for got, want in zip(torch.autograd.grad(found.square().sum(), parts), wanted, strict=True):
        torch.testing.assert_close(got, want, **close)


def test_an_engine_in_bfloat16_uses_it_and_gives_the_base_its_own_back(tiny_bert_folder: Path) -> None:
    base = load_base(BaseSpec(model=str(tiny_bert_folder), dtype="bfloat16"))
    inputs = {"input_ids": torch.randint(5, 30, (3, 11)), "attention_mask": torch.ones(3, 11, dtype=torch.long)}
    inputs["attention_mask"][1, 4:] = 0
    with torch.inference_mode():
        before = base.backbone(**inputs).last_hidden_state
        engine = AdapterEngine(base, slots=1)
        assert base.config._attn_implementation == "ray_lora_aligned"
        within = engine.hidden(inputs, torch.zeros(3, dtype=torch.long)).last_hidden_state
        engine.close()
        after = base.backbone(**inputs).last_hidden_state
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(within[kept], before[kept], rtol=2e-2, atol=2e-2)
    assert torch.equal(after, before)


@pytest.mark.parametrize("given", [{"dtype": "float32"}, {"dtype": "bfloat16", "attn_implementation": "sdpa"}], ids=str)
def test_what_is_not_slow_stays_as_it_is(tiny_bert_folder: Path, given: dict[str, str]) -> None:
    base = load_base(BaseSpec.model_validate({"model": str(tiny_bert_folder), **given}))
    own = base.config._attn_implementation
    AdapterEngine(base, slots=1)
    assert base.config._attn_implementation == own != "ray_lora_aligned"
