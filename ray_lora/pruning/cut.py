"""A base's tensors, and an adapter's, cut to a plan. Nothing is computed: every number that stays is the base's own.

    cut_state(model.state_dict(), "bert.", kind, plan, sizes)        # the tensors of the smaller model
    cut_adapter(adapter, "bert.", kind, plan, sizes)                 # the pairs of an adapter of the whole base
    cut_config(config, plan.shape, sizes)

Of a plan that keeps all, the same tensors come back.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ray_lora.adapters.adapter import Adapter, pattern_value
from ray_lora.adapters.peft_folder import LowRank
from ray_lora.pruning.kinds import Kind
from ray_lora.pruning.plan import Plan
from ray_lora.pruning.shapes import Shape, Sizes


def cut_config(config: Any, shape: Shape, sizes: Sizes) -> Any:
    """A copy that says the shape."""
    if shape.channels:
        return config.model_copy(update={"expanded": tuple(count for count in shape.channels if count)})
    small = copy.deepcopy(config)
    small.intermediate_size, small.num_hidden_layers = shape.rows, shape.layers
    if shape.groups is not None:
        small.num_key_value_heads = shape.groups
        small.num_attention_heads = shape.groups * sizes.heads_in_group
        small.head_dim = sizes.head_dim
    return small


def cut_state(state: Mapping[str, Tensor], prefix: str, kind: Kind, plan: Plan, sizes: Sizes) -> dict[str, Tensor]:
    """The tensors of a smaller model; those outside the layers stay as they are.

    Args:
        state: of the plain class. prefix: what its backbone's names begin with; empty where it is the backbone.
    """
    found = {}
    for name, tensor in state.items():
        where = place(name.rpartition(".")[0], prefix, kind, plan)
        if where is None:
            found[name] = tensor
            continue
        layer, inner = where
        if layer is not None:
            outputs, inputs = kept(inner, layer, kind, plan, sizes)
            if outputs is not None and tensor.dim():  # a norm counts its batches in one number
                tensor = tensor[outputs]
            if inputs is not None and tensor.dim() > 1:
                tensor = tensor[:, inputs]
            found[f"{prefix}{kind.blocks}.{layer}.{inner}.{name.rpartition('.')[2]}"] = tensor.contiguous()
    return found


def cut_adapter(adapter: Adapter, prefix: str, kind: Kind, plan: Plan, sizes: Sizes) -> Adapter:
    """The adapter without what it changes in units that are gone. Its card is that of the whole base."""
    pairs, ranks, alphas = {}, {}, {}
    for name, pair in adapter.layers.items():
        where, new = place(name, prefix, kind, plan), name
        if where is not None:
            layer, inner = where
            if layer is None:
                continue
            outputs, inputs = kept(inner, layer, kind, plan, sizes)
            a = pair.A if inputs is None else pair.A[:, inputs].contiguous()
            b = pair.B if outputs is None else pair.B[outputs].contiguous()
            new = f"{prefix}{kind.blocks}.{layer}.{inner}"
            pair = LowRank(a, b, pair.embedding)
        pairs[new], ranks[new] = pair, pair.rank
        alphas[new] = float(pattern_value(adapter.config.alpha_pattern, name, adapter.config.lora_alpha))
    # patterns name layers by numbers, which are others now
    told = adapter.config.model_copy(update={"rank_pattern": ranks, "alpha_pattern": alphas})
    head = cut_state(adapter.head, prefix, kind, plan, sizes)  # norms of its own are among it
    return replace(adapter, config=told, layers=pairs, head=head)


def place(module: str, prefix: str, kind: Kind, plan: Plan) -> tuple[int | None, str] | None:
    """(the layer's number in the plan, the module's name in it) of a module of the whole model; the number is None
    where the layer goes, and all is None of a module outside the layers."""
    told = re.fullmatch(rf"{re.escape(prefix + kind.blocks)}\.(\d+)\.(.+)", module)
    if told is None:
        return None
    number = int(told[1])
    return plan.layers.index(number) if number in plan.layers else None, told[2]


def kept(inner: str, layer: int, kind: Kind, plan: Plan, sizes: Sizes) -> tuple[Tensor | None, Tensor | None]:
    """Outputs and inputs of a layer's module that stay; None for all.

    Args:
        layer: its number in the plan.
    """
    if not sizes.units[plan.layers[layer]]:
        return None, None
    if inner in kind.rows or inner in kind.beside:
        return plan.rows[layer], None
    if inner == kind.columns:
        return None, plan.rows[layer]
    heads = kind.attention
    if heads is None or not plan.groups:
        return None, None
    groups = plan.groups[layer]
    if inner in heads.keys_values:
        return _spread(groups, sizes.head_dim), None
    queries = _spread(groups, sizes.head_dim * sizes.heads_in_group)
    if inner == heads.queries:
        return queries, None
    return (None, queries) if inner == heads.output else (None, None)


def _spread(groups: Tensor, size: int) -> Tensor:
    """The numbers of all features of groups of `size` features."""
    return (groups[:, None] * size + torch.arange(size)).flatten()
