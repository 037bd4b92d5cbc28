"""Which bases can be cut, and what their units are: whole layers, rows of the feed-forward part, groups of heads; of
convolutions channels inside a block.

    kind = kind_of(base)
    kind.rows, kind.columns        # ("intermediate.dense",), "output.dense"

A unit is what goes as a whole: a row of the feed-forward part with its bias and its column in the product behind it;
of attention with `head_dim` in its config a head of keys and values with all heads of queries that read it; a channel
with its norms and its own convolution, and what reads it. Kinds are named because a smaller base is only as good as the
comparison of its kind with the plain class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn

from ray_lora.bases.base import Base
from ray_lora.bases.transformers_base import is_gguf
from ray_lora.errors import BaseModelError

WIDTH, DEPTH, HEADS, KEYS = "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"


@dataclass(frozen=True)
class Attention:
    """Linear layers of one block's attention, by their names in the block: what gives queries, what gives keys and
    values, and what reads the heads."""

    queries: str
    keys_values: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Kind:
    """A type of base.

    Attributes:
        blocks: the list of layers in the backbone.
        rows: layers of a block whose outputs are the feed-forward rows, or the channels. columns: the one that reads
            them.
        attention: where the config can say fewer heads of the same size; None where it cannot.
        beside: modules that have something of each channel, between those two.
        norm: the batch norm behind `columns`, which takes over a bias that `columns` has not.
        channels: whether the config says a number for each block, of which all stay.
    """

    blocks: str
    rows: tuple[str, ...]
    columns: str
    attention: Attention | None = None
    beside: tuple[str, ...] = ()
    norm: str | None = None
    channels: bool = False

    @property
    def products(self) -> tuple[str, ...]:
        """The layers of a block whose importance is asked for."""
        heads = self.attention
        of_heads = () if heads is None else (heads.queries, *heads.keys_values, heads.output)
        return (*of_heads, *self.rows, self.columns)


_BERT = Kind("encoder.layer", ("intermediate.dense",), "output.dense")
KINDS: Mapping[str, Kind] = {
    "bert": _BERT,
    "roberta": _BERT,
    "vit": Kind("layers", ("mlp.fc1",), "mlp.fc2"),
    "llama": Kind(
        "layers",
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
        Attention("self_attn.q_proj", ("self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"),
    ),
    "efficientnet-lite": Kind(
        "_blocks",
        ("_expand_conv",),
        "_project_conv",
        beside=("_bn0", "_depthwise_conv", "_bn1"),
        norm="_bn2",
        channels=True,
    ),
}


def kind_of(base: Base) -> Kind:
    """How the base can be cut.

    Raises:
        BaseModelError: its kind, or what its config asks for, was not compared with the plain class.
    """
    known = getattr(base.config, "model_type", None) or base.prefix
    kind = KINDS.get(known)
    if kind is None or kind.channels != (base.built is not None):
        raise BaseModelError(
            f"pruning of a base of type {known!r} was not compared with its plain class and is not supported; "
            f"supported: {', '.join(KINDS)}"
        )
    if is_gguf(base.folder):
        raise BaseModelError(f"base {base.id!r} is a GGUF file; give a folder that save_pretrained wrote")
    odd = [name for name, usual in _USUAL.items() if getattr(base.config, name, usual) not in (usual, None)]
    if odd:
        raise BaseModelError(f"pruning of a base whose config has {odd[0]!r} was not compared and is not supported")
    if not kind.channels:
        class_of(base)
    return kind


_USUAL: Mapping[str, Any] = {
    "is_decoder": False,
    "add_cross_attention": False,
    "quantization_config": None,
    "pretraining_tp": 1,
    "pruned_heads": {},
}


def class_of(base: Base) -> Any:
    """The plain class that the base's folder holds, the backbone with the head it was saved with.

    Raises:
        BaseModelError: the folder names none of transformers' for this type.
    """
    told = list(getattr(base.config, "architectures", None) or ())
    found = getattr(transformers, told[0], None) if len(told) == 1 else None
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise BaseModelError(
            f"the config of base {base.id!r} names no one class of transformers' ({told}); save it anew"
        )
    if found.config_class is not type(base.config):
        raise BaseModelError(f"base {base.id!r} names {told[0]}, which is not a class of {base.config.model_type!r}")
    return found


def blocks_of(backbone: nn.Module, kind: Kind) -> list[nn.Module]:
    """The backbone's layers, in their order."""
    blocks = backbone.get_submodule(kind.blocks)
    assert isinstance(blocks, nn.ModuleList)
    return list(blocks)


def weight(module: nn.Module, name: str) -> nn.Parameter:
    """Of a layer in a module, by its name there: [out, in], or [out, in, 1, 1]."""
    return module.get_submodule(name).get_parameter("weight")
