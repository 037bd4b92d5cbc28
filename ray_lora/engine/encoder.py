"""The pass of an encoder that answers: transformers' BERT layers on joined tokens, without padding between rows.

Texts that arrive together differ in length, and a third of a padded pass would be padding. Embeddings and pooler are
called as they are; the layers' own modules compute here, in the order in which BertLayer calls them, and the low-rank
terms are added where the hooks would. Passes that train, and all others that it does not take, go the model's own way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from ray_lora.engine.buffers import Buffers
from ray_lora.engine.kernels import lora_add, lora_term, select
from ray_lora.engine.layers import TargetLayer
from ray_lora.engine.narrow import is_encoder
from ray_lora.engine.ragged import Ragged
from ray_lora.engine.routing import Routing

_PARTS = ("query", "key", "value")
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


class EncoderPass:
    """One encoder's pass over rows of any slots, inference only."""

    def __init__(self, backbone: Any, layers: Mapping[str, TargetLayer], buffers: Buffers) -> None:
        self._backbone, self._dtype = backbone, next(backbone.parameters()).dtype
        self._heads = backbone.config.num_attention_heads
        self._layers = [
            _Layer(layer, f"encoder.layer.{number}", layers, buffers)
            for number, layer in enumerate(backbone.encoder.layer)
        ]

    @classmethod
    def find(
        cls, backbone: Any, layers: Mapping[str, TargetLayer], buffers: Buffers, device: torch.device
    ) -> EncoderPass | None:
        """The pass of this backbone, or None where it has none: it was measured on processors, not on GPUs."""
        suits = device.type == "cpu" and is_encoder(backbone) and backbone.config._attn_implementation == "eager"
        return cls(backbone, layers, buffers) if suits else None

    @staticmethod
    def lengths(inputs: Mapping[str, Tensor]) -> list[int] | None:
        """Each row's number of tokens; None when the pass cannot take these inputs."""
        if torch.is_grad_enabled() or not {"input_ids", "attention_mask"} <= inputs.keys() <= _INPUTS:
            return None
        mask = inputs["attention_mask"]
        if mask.is_floating_point() or not bool((mask[:, 0] == 1).all()) or bool((mask[:, 1:] > mask[:, :-1]).any()):
            return None  # its tokens do not begin at the left
        return [int(length) for length in mask.sum(1).tolist()]

    def __call__(
        self, inputs: Mapping[str, Tensor], lengths: Sequence[int], routing: Routing | None, first_token: bool
    ) -> Any:
        """The backbone's outputs; with `first_token` of each row's first token only.

        Args:
            inputs: input_ids, attention_mask and perhaps token_type_ids, [rows, longest].
            lengths: what `lengths` gave.
        """
        ids = inputs["input_ids"]
        rows = _Rows.of(Ragged.of(lengths, self._dtype, ids.device), routing, self._heads)
        x = rows.ragged.join(_widen(self._embed(inputs), rows.ragged.width))
        for layer in self._layers[:-1]:
            x = layer(x, rows)
        x = self._layers[-1](x, rows, first_token)
        states = x.unsqueeze(1) if first_token else _widen(rows.ragged.spread(x), ids.shape[1])
        pooler = getattr(self._backbone, "pooler", None)
        pooled = pooler(states) if pooler is not None else None
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=states, pooler_output=pooled)

    def _embed(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """[rows, longest, hidden]."""
        embedded: Tensor = self._backbone.embeddings(
            input_ids=inputs["input_ids"], token_type_ids=inputs.get("token_type_ids")
        )
        project = getattr(self._backbone, "embeddings_project", None)
        return embedded if project is None else project(embedded)


@dataclass(frozen=True)
class _Rows:
    """One pass's rows.

    Attributes:
        block: rows of a block, as in the routing.
        to_parts: where a query, key or value lies among 3 * tokens, [blocks * 3 * block * width].
        mask: what is added to the scores, [rows * heads, 1, width]; None where nothing is.
    """

    ragged: Ragged
    routing: Routing | None
    block: int
    to_parts: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, ragged: Ragged, routing: Routing | None, heads: int) -> _Rows:
        block = routing.block if routing is not None else 1
        part = torch.arange(3, device=ragged.firsts.device)[:, None, None]
        to_parts = 3 * ragged.to_padded.view(-1, 1, block, ragged.width) + part
        mask = None if ragged.mask is None else ragged.mask.repeat_interleave(heads, 0).unsqueeze(1)
        return cls(ragged, routing, block, to_parts.flatten(), mask)


class _Layer:
    """One of the encoder's layers; BertLayer and its like."""

    def __init__(self, module: Any, name: str, layers: Mapping[str, TargetLayer], buffers: Buffers) -> None:
        attention = module.attention
        self.heads, self.scaling = attention.self.num_attention_heads, attention.self.scaling
        self.parts = [layers[f"{name}.attention.self.{part}"] for part in _PARTS]
        self.a, self.b = buffers.stacked(self.parts)
        self.gathered, self.after_attention = layers[f"{name}.attention.output.dense"], attention.output.LayerNorm
        self.wide, self.activation = layers[f"{name}.intermediate.dense"], module.intermediate.intermediate_act_fn
        self.back, self.after = layers[f"{name}.output.dense"], module.output.LayerNorm

    def __call__(self, x: Tensor, rows: _Rows, first_token: bool = False) -> Tensor:
        """[tokens, hidden] after the layer; with `first_token` [rows, hidden], as attention has gathered it all."""
        ragged, routing = rows.ragged, rows.routing
        query, key, value = self._projections(x, rows)
        context = self._attend(query, key, value, rows.mask, first_token)
        if first_token:
            x, ragged = x[ragged.firsts], Ragged.single(ragged.rows, x.device)
        x = self.after_attention(_linear(self.gathered, ragged.join(context), ragged, routing).add_(x))
        wide = self.activation(_linear(self.wide, x, ragged, routing))
        out: Tensor = self.after(_linear(self.back, wide, ragged, routing).add_(x))
        return out

    def _projections(self, x: Tensor, rows: _Rows) -> tuple[Tensor, ...]:
        """Query, key and value of every row and head, [rows * heads, width, hidden / heads]."""
        ragged, routing = rows.ragged, rows.routing
        outputs = [layer.module.forward(x) for layer in self.parts]
        product = torch.cat(outputs, -1).view(3 * len(x), -1)  # a token's query, key and value
        y = product.index_select(0, rows.to_parts).view(-1, rows.block * ragged.width, product.shape[-1])
        if routing is not None and any(layer.holds(routing) for layer in self.parts):
            a, b = (select(stack[:, :, : routing.rank], routing) for stack in (self.a, self.b))
            inputs = ragged.widen(x).view(len(a), -1, x.shape[-1])  # [blocks, block * width, hidden]
            h = torch.bmm(a.flatten(1, 2), inputs.transpose(1, 2)).view(*a.shape[:3], -1)
            first = self.parts[0].index
            h = h * routing.scales[first : first + 3].transpose(0, 1)  # [blocks, 3, rank, block * width]
            y.baddbmm_(h.flatten(0, 1).transpose(1, 2), b.flatten(0, 1))
        y = y.view(-1, 3, rows.block, ragged.width, self.heads, y.shape[-1] // self.heads)
        return y.permute(1, 0, 2, 4, 3, 5).reshape(3, -1, ragged.width, y.shape[-1]).unbind()

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, first_token: bool) -> Tensor:
        """softmax(Q K^T scaling + mask) V, [rows, width, hidden]; with `first_token` [rows, 1, hidden]."""
        if first_token:
            query = query[:, :1]
        keys = key.transpose(1, 2)
        if mask is None:
            scores = torch.bmm(query, keys).mul_(self.scaling)
        else:  # to add the mask afterwards takes as long as the product
            scores = torch.baddbmm(mask, query, keys, alpha=self.scaling)
        context = torch.bmm(scores.softmax(-1), value).unflatten(0, (-1, self.heads))
        joined: Tensor = context.transpose(1, 2).flatten(2)
        return joined


def _linear(layer: TargetLayer, x: Tensor, ragged: Ragged, routing: Routing | None) -> Tensor:
    """W x and the rows' low-rank terms, [tokens, out]."""
    y: Tensor = layer.module.forward(x)
    if routing is None or not layer.holds(routing):
        return y
    scale, padded = routing.scales[layer.index], ragged.spread(x)
    if ragged.length is not None:
        return lora_add(padded, y, layer.a, layer.b, scale, routing)[0]
    term = lora_term(padded, layer.a, layer.b, scale, routing)
    return y.add_(ragged.join(term.view(ragged.rows, ragged.width, -1)))


def _widen(padded: Tensor, width: int) -> Tensor:
    """[rows, other, hidden] with columns cut off or added at the right."""
    return padded if padded.shape[1] == width else F.pad(padded, (0, 0, 0, width - padded.shape[1]))
