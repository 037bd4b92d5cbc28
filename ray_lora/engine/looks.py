"""Where heads of a decoder look in what its encoder made: the weights of their attention, whatever computes it.

    with looks:                                  # for one pass
        engine.next_tokens(inputs, slots, cache)
    looks.weights(cache)                         # [rows, heads, new tokens, positions]

Queries are caught behind the layers that adapters change, keys are in transformers' own cache; the weights are those
that the plain class gives with `output_attentions`. It knows Whisper's names of modules, no texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import EncoderDecoderCache


class Looks:
    """Some heads of a backbone.

    Args:
        heads: (layer, head) of each.
    """

    def __init__(self, backbone: Any, heads: Sequence[tuple[int, int]]) -> None:
        self._heads = list(heads)
        self._attention = {layer: backbone.decoder.layers[layer].encoder_attn for layer, _ in heads}
        self._queries: dict[int, Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> Looks:
        for layer, attention in self._attention.items():

            def catch(_: nn.Module, __: Any, output: Tensor, layer: int = layer) -> None:
                self._queries[layer] = output

            self._hooks.append(attention.q_proj.register_forward_hook(catch))
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def weights(self, cache: EncoderDecoderCache) -> Tensor:
        """Of the last pass: of each row and head the weights for each of its tokens, float32
        [rows, heads, tokens, positions].

        Args:
            cache: which that pass filled or read.
        """
        found = []
        for layer, head in self._heads:
            attention = self._attention[layer]
            part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            queries = self._queries[layer][..., part].float() * attention.scaling
            kept: Any = cache.cross_attention_cache.layers[layer]
            found.append((queries @ kept.keys[:, head].float().transpose(1, 2)).softmax(-1))
        return torch.stack(found, 1)
