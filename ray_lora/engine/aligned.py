"""Attention of encoders in bfloat16 on a CPU, with keys filled up to a multiple of 16.

A bfloat16 softmax over rows of any other width goes number by number: at 23 tokens forward and backward of attention
take 1.6 times as long. What is filled in is masked, so it weighs exactly nothing. It knows modules, not slots.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ray_lora.engine.narrow import is_encoder

_NAME, _WIDTH = "ray_lora_aligned", 16


def aligned_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T scaling + mask) V in transformers' shapes, as its `eager_attention_forward` in eval mode.

    Args:
        query, key, value: [rows, heads, tokens, width]. attention_mask: added to the scores, [rows or 1, 1, tokens or
            1, tokens]; None where every token counts.

    Returns:
        [rows, tokens, heads, width], and the weights of the given keys.
    """
    keys = key.shape[2]
    extra = -keys % _WIDTH
    if extra:
        if attention_mask is None:
            attention_mask = query.new_zeros(1, 1, 1, keys)
        attention_mask = F.pad(attention_mask, (0, extra), value=float("-inf"))
        key, value = F.pad(key, (0, 0, 0, extra)), F.pad(value, (0, 0, 0, extra))
    scores = torch.matmul(query, key.transpose(2, 3)).mul_(query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores.add_(attention_mask)
    weights = scores.softmax(-1)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights[..., :keys]


class Aligned:
    """The backbone's attention while an engine holds it, where this one is the faster; `undo` gives its own back."""

    def __init__(self, backbone: Any, dtype: torch.dtype, device: torch.device) -> None:
        slow = dtype == torch.bfloat16 and device.type == "cpu"
        suits = slow and is_encoder(backbone) and backbone.config._attn_implementation == "eager"
        self._backbone = backbone if suits else None
        if self._backbone is not None:
            ALL_ATTENTION_FUNCTIONS.register(_NAME, aligned_attention)
            ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, eager_mask)
            self._backbone.set_attn_implementation(_NAME)

    def undo(self) -> None:
        """Set the backbone's own attention again."""
        if self._backbone is not None:
            self._backbone.set_attn_implementation("eager")
            self._backbone = None
