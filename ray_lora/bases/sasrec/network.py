"""SASRec's network: causal self-attention over the items of a history, and the item embeddings again as outputs.

    states = SasRec(config)(input_ids).last_hidden_state               # [rows, items, hidden]
    SasRecForNextItem(config, sasrec)(input_ids)["logits"]             # [rows, items, vocabulary]: what comes after
    SasRecForNextItemUntied(config, sasrec)                            # the same with an output layer of its own

Blocks normalise before attention and before the feed-forward layer, as later transformers do; the paper's own are
wired otherwise. It knows tensors: no files, ids or users.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ray_lora.bases.sasrec.config import SasRecConfig

_EPS = 1e-6


@dataclass(frozen=True)
class States:
    """What the shared part gives: `last_hidden_state`, [rows, items, hidden]."""

    last_hidden_state: Tensor


class SasRec(nn.Module):
    """Embeddings and blocks: all but the output layer, whose weights are its item embeddings."""

    main_input_name = "input_ids"

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(config.num_labels + 1, config.hidden_size, padding_idx=0)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))
        self.last_norm = nn.LayerNorm(config.hidden_size, eps=_EPS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> States:
        """input_ids: items' numbers from 1, 0 where there is none, [rows, items]; attention_mask: 1 where there is
        one, whatever side is padded."""
        held = input_ids != 0 if attention_mask is None else attention_mask.bool()
        places = (held.cumsum(1) - 1).clamp(min=0)
        x = self.drop(self.items(input_ids) * math.sqrt(self.config.hidden_size) + self.places(places))
        length = input_ids.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=input_ids.device)  # so that padding sees something
        seen = (before & held[:, None, :]) | itself
        for block in self.blocks:
            x = block(x, seen[:, None])
        return States(self.last_norm(x))


class SasRecForNextItem(nn.Module):
    """The plain class. Its output layer is tied to the item embeddings, so no adapter has a copy of it."""

    def __init__(self, config: SasRecConfig, sasrec: SasRec) -> None:
        super().__init__()
        self.sasrec = sasrec
        with torch.device("meta"):
            self.scores = nn.Linear(config.hidden_size, config.num_labels + 1, bias=False)
        self.scores.weight = sasrec.items.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` [rows, items, vocabulary]: of each place, what comes after it."""
        states = self.sasrec(input_ids, attention_mask).last_hidden_state
        return {"logits": self.scores(states)[..., 1:]}  # the first is padding's


class SasRecForNextItemUntied(nn.Module):
    """The plain class with an output layer of its own, which begins as the item embeddings.

    Args:
        outputs: how many items it scores; None: all of the vocabulary, which alone can begin as the embeddings.
    """

    def __init__(self, config: SasRecConfig, sasrec: SasRec, outputs: int | None = None) -> None:
        super().__init__()
        self.sasrec = sasrec
        self.scores = nn.Linear(config.hidden_size, outputs or config.num_labels, bias=False)
        if self.scores.weight.device == sasrec.items.weight.device and len(self.scores.weight) == config.num_labels:
            self.begin(sasrec.items.weight)

    def begin(self, embeddings: Tensor) -> None:
        """Score as the tied class does; `embeddings` [vocabulary + 1, hidden], the first of which is padding's."""
        with torch.no_grad():
            self.scores.weight.copy_(embeddings[1:])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` [rows, items, vocabulary], as the tied class."""
        return {"logits": self.scores(self.sasrec(input_ids, attention_mask).last_hidden_state)}


class _Block(nn.Module):
    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=_EPS)
        self.attention = _Attention(config)
        self.forward_norm = nn.LayerNorm(config.hidden_size, eps=_EPS)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.attention_norm(x), seen))
        y: Tensor = self.drop(self.down(self.drop(nn.functional.gelu(self.up(self.forward_norm(x))))))
        return x + y


class _Attention(nn.Module):
    def __init__(self, config: SasRecConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.merge = nn.Linear(size, size)
        self.heads = config.num_attention_heads

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """seen: which places each place sees, [rows, 1, items, items]."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        weights = weights.masked_fill(~seen, torch.finfo(weights.dtype).min).softmax(-1)
        merged: Tensor = self.merge((weights @ v).transpose(1, 2).flatten(-2))
        return merged
