"""A plain class that writes, as graphs: one step of its decoder, and behind an encoder what that has heard.

A step takes a row's new tokens, however many, beside the keys and values of those before them, and gives the logits of
what follows with the keys and values of all. It knows modules and tensors: no files and no adapters.

    steps = steps_of(graph)                  # with adapters as inputs, or one that is merged
    logits, kept = steps.step(tokens, steps.empty(1), steps.hear(input_features))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from ray_lora.export.graph import Graph
from ray_lora.export.layers import Given

Stacks = Mapping[str, Tensor]
Pairs = list[tuple[Tensor, Tensor]]  # of each layer keys and values, each [rows, heads, tokens, width]


@dataclass(frozen=True)
class Steps:
    """A class that writes.

    Attributes:
        step: (tokens [rows, new], kept, heard) -> logits of the last [rows, vocabulary], kept.
        hear: what the encoder is given -> keys and values of the decoder's attention to it; None without an encoder.
            Both take `slots` and `stacks` behind, as the graph does.
        layers, heads, width: of what is kept of a token.
    """

    step: nn.Module
    hear: nn.Module | None
    layers: int
    heads: int
    width: int

    def empty(self, rows: int, tokens: int = 0) -> Pairs:
        """What is kept of no tokens; or of some, zeros."""
        return [
            (torch.zeros(rows, self.heads, tokens, self.width), torch.zeros(rows, self.heads, tokens, self.width))
            for _ in range(self.layers)
        ]


def steps_of(graph: Graph) -> Steps:
    """Of Whisper, or of a causal language model."""
    model: Any = graph.model
    config, given = model.config, graph.given
    if config.model_type == "whisper":
        heads = config.decoder_attention_heads
        return Steps(_Spoken(model, given), _Heard(model, given), config.decoder_layers, heads, config.d_model // heads)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return Steps(_Text(model, given), None, config.num_hidden_layers, kept, width)


class _Fed(nn.Module):
    def __init__(self, model: Any, given: Given) -> None:
        super().__init__()
        self.model, self.given = model, given


class _Text(_Fed):
    def forward(
        self, tokens: Tensor, kept: Pairs, slots: Tensor | None = None, stacks: Stacks | None = None
    ) -> tuple[Tensor, Pairs]:
        self.given.take(slots, stacks)
        cache = DynamicCache(ddp_cache_data=kept)
        given = {"input_ids": tokens, "past_key_values": cache, "position_ids": _places(tokens, kept)}
        logits = self.model(**given, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1], _pairs(cache)


class _Heard(_Fed):
    def forward(self, input_features: Tensor, slots: Tensor | None = None, stacks: Stacks | None = None) -> Pairs:
        self.given.take(slots, stacks)
        states = self.model.model.encoder(input_features).last_hidden_state
        found = []
        for layer in self.model.model.decoder.layers:
            attention = layer.encoder_attn
            keys, values = (
                part(states).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
                for part in (attention.k_proj, attention.v_proj)
            )
            found.append((keys, values))
        return found


class _Spoken(_Fed):
    def forward(
        self, tokens: Tensor, kept: Pairs, heard: Pairs, slots: Tensor | None = None, stacks: Stacks | None = None
    ) -> tuple[Tensor, Pairs]:
        self.given.take(slots, stacks)
        mine = DynamicCache(ddp_cache_data=kept)
        cache = EncoderDecoderCache(mine, DynamicCache(ddp_cache_data=heard))
        cache.is_updated = dict.fromkeys(range(len(heard)), True)  # so that the encoder's states are not read again
        outputs = self.model.model.decoder(
            input_ids=tokens,
            encoder_hidden_states=heard[0][0].transpose(1, 2).flatten(2),  # of the right shape alone
            past_key_values=cache,
            use_cache=True,
            position_ids=_places(tokens, kept),
        )
        return self.model.proj_out(outputs.last_hidden_state[:, -1]), _pairs(mine)


def _places(tokens: Tensor, kept: Pairs) -> Tensor:
    return (kept[0][0].shape[2] + torch.arange(tokens.shape[1])).expand(tokens.shape)


def _pairs(cache: Any) -> Pairs:
    return [(layer.keys, layer.values) for layer in cache.layers]


def names_of(pairs: Sequence[object], what: str) -> list[str]:
    """Names of what is kept or heard, layer by layer: "kept.0.keys", "kept.0.values", ..."""
    return [f"{what}.{layer}.{part}" for layer in range(len(pairs)) for part in ("keys", "values")]
