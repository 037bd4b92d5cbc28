"""Bases in few bits: linear layers and convolutions in int8 or nf4, large tables of embeddings in int8, all else in
floats.

    quantise(backbone, "int8", "minilm")        # in place; a fourth of float32's bytes
    float_weight(module)                        # what the layer multiplies with, as numbers
    output_layers(model, backbone, tied, "int8")        # the same for a language model's output layer, tied or not
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, cast, get_args

from torch import Tensor, nn

from ray_lora.bases.few_bits import convolutions
from ray_lora.bases.few_bits.layers import Held, Int8Embedding, Int8Linear, Nf4Linear
from ray_lora.bases.few_bits.rounding import rounded
from ray_lora.bases.geometry import CONVOLUTIONS
from ray_lora.errors import BaseModelError
from ray_lora.recipe import QuantisedDtype

SCHEMES: tuple[QuantisedDtype, ...] = get_args(QuantisedDtype)
_FORM = {"int8": "int8 2", "nf4": "nf4 2"}  # a part of fingerprints: the next one, where a weight is rounded otherwise
_ROWS = 4096  # a table of fewer is left as it is: positions, token types
_LEAST = 0.5  # of a base's numbers: one whose layers are of other kinds would stay as large as it was


def quantised_mark(fingerprint: str, scheme: QuantisedDtype) -> str:
    """The fingerprint of a base of these float weights in this scheme."""
    return hashlib.sha256(f"{fingerprint}|{_FORM[scheme]}".encode()).hexdigest()


def use_own(mark: str, origin: str) -> str:
    """What to do with an adapter of the base with fingerprint `mark`, where one of these float weights is held."""
    scheme = next((scheme for scheme in SCHEMES if quantised_mark(origin, scheme) == mark), None)
    if scheme is None:
        return "serve it on its own base"
    return f"it was trained on these weights in {scheme}: use it with dtype {scheme}"


def quantise(backbone: nn.Module, scheme: QuantisedDtype, called: str) -> None:
    """Put quantised layers in the places of a float32 backbone's; each weight is given back at once.

    Args:
        called: the base's name, for messages.

    Raises:
        BaseModelError: most of its numbers are in other layers.
    """
    found = list(_layers(backbone))
    held = {id(module.weight): module.weight.numel() for _, module in found}
    numbers = sum(parameter.numel() for parameter in backbone.parameters())
    if sum(held.values()) < _LEAST * numbers:
        raise BaseModelError(
            f"base.dtype: {scheme} holds linear layers, convolutions and large tables, which are "
            f"{sum(held.values()) / numbers:.0%} of base {called!r}; leave base.dtype at auto"
        )
    tied: dict[int, tuple[Tensor, Tensor]] = {}
    made: dict[nn.Module, nn.Module] = {}  # a layer may have two names
    for name, module in found:
        if module not in made:
            made[module] = _quantised(module, scheme, tied)
            module.weight = None
        backbone.set_submodule(name, made[module])
    _give_back()


def float_weight(module: Any) -> Tensor:
    """A layer's weight as numbers, in its own layout, whether it is quantised or not."""
    return cast(Tensor, module.float_weight() if isinstance(module, Held) else module.weight)


def output_layers(
    model: nn.Module, backbone: nn.Module, tied: Mapping[str, str], scheme: QuantisedDtype
) -> dict[str, nn.Parameter]:
    """Quantise a language model's output layers, which lie beside the backbone, in place.

    Args:
        tied: the backbone's table that an output layer's weight is, by the layer's name.

    Returns:
        What stands for their weights, by name.
    """
    weights = {}
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            table = backbone.get_submodule(tied[name]) if name in tied else None
            if isinstance(table, Int8Embedding):
                fresh: nn.Module = Int8Linear(module, table.codes, table.scale)
            else:
                fresh = _quantised(module, scheme, {})
            model.set_submodule(name, fresh)
            weights[f"{name}.weight"] = cast(Any, fresh).weight
    return weights


def nbytes(backbone: nn.Module) -> int:
    """Bytes of the numbers of a quantised backbone."""
    without = {id(module.weight) for module in backbone.modules() if isinstance(module, Held)}
    held = [*backbone.buffers(), *(tensor for tensor in backbone.parameters() if id(tensor) not in without)]
    return sum({id(tensor): tensor.nbytes for tensor in held}.values())


def _layers(backbone: nn.Module) -> Iterator[tuple[str, Any]]:
    """Linear layers, convolutions and large tables by name, but those whose parents read their weights; a subclass may
    compute more than its name says."""
    for name, module in backbone.named_modules(remove_duplicate=False):
        parent = backbone.get_submodule(name.rpartition(".")[0])
        weighs = type(module) in (nn.Linear, *CONVOLUTIONS) or type(module).__name__ == "Conv1D"
        table = type(module) is nn.Embedding and module.num_embeddings >= _ROWS
        if (weighs or table) and not isinstance(parent, nn.MultiheadAttention):
            yield name, module


def _quantised(module: Any, scheme: QuantisedDtype, tied: dict[int, tuple[Tensor, Tensor]]) -> nn.Module:
    weight = module.weight.detach()
    if isinstance(module, nn.Embedding):
        key = id(module.weight)
        tied.setdefault(key, rounded(weight))
        return Int8Embedding(module, *tied[key])
    if isinstance(module, CONVOLUTIONS):
        return convolutions.of(module, scheme)
    weight = weight if isinstance(module, nn.Linear) else weight.t()  # a Conv1D's is [in, out]
    return Nf4Linear(module, weight) if scheme == "nf4" else Int8Linear(module, *rounded(weight))


def _give_back() -> None:
    """Have the C library return the memory of the floats, which it would keep for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
