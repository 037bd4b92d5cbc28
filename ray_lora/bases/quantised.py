"""Bases in few bits: linear layers in int8 or nf4, large tables of embeddings in int8, all else in floats.

    quantise(backbone, "int8", "minilm")        # in place; a fourth of float32's bytes
    float_weight(module)                        # what the layer multiplies with, as numbers
    output_layers(model, backbone, tied, "int8")        # the same for a language model's output layer, tied or not

int8: a weight is a whole number, -127 to 127, of a step for each output. nf4: QLoRA's 4-bit numbers (arXiv 2305.14314)
in blocks of 64. Weights are unfolded in each product and multiplied as floats. What a layer is given is never rounded
to 8 bits, as that would be faster and wrong: a number that lies between two steps falls to the other side when another
pass moves its last bit, and by the last layer a row's answer would depend on who shared its pass, by as much as the
rounding is worth. Gradients go through the same weights.

A quantised layer's `weight` has a shape, no memory, and is NaN throughout: a class that reads it without calling the
layer answers no numbers, and is refused for that.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_lora.errors import BaseModelError
from ray_lora.recipe import QuantisedDtype

SCHEMES: tuple[QuantisedDtype, ...] = get_args(QuantisedDtype)
_FORM = {"int8": "int8 1", "nf4": "nf4 1"}  # a part of fingerprints: the next one, where a weight is rounded otherwise
_STEPS = 127
_BLOCK = 64  # weights that share nf4's scale
_NF4 = torch.tensor(  # quantiles of a normal distribution, from the QLoRA paper's appendix E
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
_PAIRS = torch.stack([_NF4.repeat_interleave(16), _NF4.repeat(16)], 1)  # what each byte holds, [256, 2]
_ROWS = 4096  # a table of fewer is left as it is: positions, token types
_LEAST = 0.5  # of a base's numbers: a base of convolutions would stay as large as it was


class _Held(nn.Module):
    """A layer whose weight is held in other tensors than `weight`.

    Attributes:
        codes: the weight in few bits. scale: by what they are multiplied, float32.
    """

    codes: Tensor
    scale: Tensor

    def float_weight(self) -> Tensor:
        """The weight as numbers; here whole numbers of a step for each row."""
        return self.codes * self.scale[:, None]

    def __init__(self, like: nn.Module, shape: Sequence[int], codes: Tensor, scale: Tensor) -> None:
        nn.Module.__init__(self)
        for name, value in vars(like).items():
            if not name.startswith("_"):
                setattr(self, name, value)
        none = torch.full((1, 1), torch.nan, device="meta" if codes.is_meta else None).expand(*shape)
        self.register_parameter("weight", nn.Parameter(none, requires_grad=False))
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves what it holds; no dtype changes that, and `weight` has nothing to move."""
        weight, codes, scale = self._parameters.pop("weight"), self._buffers.pop("codes"), self._buffers.pop("scale")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0, device=cast(Tensor, codes).device)).device
        self._parameters["weight"] = weight
        self._buffers |= {"codes": cast(Tensor, codes).to(device), "scale": cast(Tensor, scale).to(device)}
        return self


class _HeldLinear(_Held, nn.Linear):
    """x W^T + b, without a float weight that is kept for the gradient of x."""

    def __init__(self, like: nn.Module, shape: Sequence[int], codes: Tensor, scale: Tensor) -> None:
        super().__init__(like, shape, codes, scale)
        self.out_features, self.in_features = shape
        self.bias = cast(Any, like).bias

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return _Product.apply(x, self)  # type: ignore[no-untyped-call, no-any-return]
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def product_t(self, g: Tensor) -> Tensor:
        """g W."""
        raise NotImplementedError


class Int8Linear(_HeldLinear):
    """x W^T + b; `codes` is [out, in], `scale` [out]."""

    def __init__(self, like: nn.Module, codes: Tensor, scale: Tensor) -> None:
        super().__init__(like, codes.shape, codes, scale)

    def product(self, x: Tensor) -> Tensor:
        """Whole numbers to 127 are exact in every float, so the steps are multiplied behind the sums."""
        sums, scale = F.linear(x, self.codes.to(x.dtype)), self.scale.to(x.dtype)
        return sums * scale if self.bias is None else torch.addcmul(self.bias, sums, scale)

    def product_t(self, g: Tensor) -> Tensor:
        """g W."""
        return (g * self.scale.to(g.dtype)) @ self.codes.to(g.dtype)


class Nf4Linear(_HeldLinear):
    """x W^T + b; `codes` is [out * in / 2], two weights in a byte, `scale` that of each block, [out * in / 64]."""

    def __init__(self, like: nn.Module, weight: Tensor) -> None:
        super().__init__(like, weight.shape, *_nf4(weight))

    def float_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in]."""
        pairs = _PAIRS.to(self.codes.device)[self.codes.int()]  # [bytes, 2]
        blocks = pairs.view(len(self.scale), -1) * self.scale[:, None]
        return blocks.flatten()[: self.weight.numel()].view(self.weight.shape).to(dtype)

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.float_weight(x.dtype), self.bias)

    def product_t(self, g: Tensor) -> Tensor:
        """g W."""
        return g @ self.float_weight(g.dtype)


class Int8Embedding(_Held, nn.Embedding):
    """A table whose rows are whole numbers of a step each; `codes` is [rows, width], `scale` [rows]."""

    as_told: Tensor

    def __init__(self, like: nn.Module, codes: Tensor, scale: Tensor) -> None:
        _Held.__init__(self, like, codes.shape, codes, scale)
        self.register_buffer("as_told", torch.empty(0), persistent=False)  # moved to a dtype, it tells which

    def forward(self, ids: Tensor) -> Tensor:
        return (self.codes[ids] * self.scale[ids][..., None]).to(self.as_told.dtype)


QUANTISED = (Int8Linear, Nf4Linear, Int8Embedding)


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
            f"base.dtype: {scheme} holds linear layers and large tables, which are {sum(held.values()) / numbers:.0%} "
            f"of base {called!r}; leave base.dtype at auto"
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
    return cast(Tensor, module.float_weight() if isinstance(module, QUANTISED) else module.weight)


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
    without = {id(module.weight) for module in backbone.modules() if isinstance(module, QUANTISED)}
    held = [*backbone.buffers(), *(tensor for tensor in backbone.parameters() if id(tensor) not in without)]
    return sum({id(tensor): tensor.nbytes for tensor in held}.values())


# -------------------------------------------------------------------- which layers, and how


def _layers(backbone: nn.Module) -> Iterator[tuple[str, Any]]:
    """Linear layers and large tables by name, but those whose parents read their weights; a subclass may compute more
    than its name says."""
    for name, module in backbone.named_modules(remove_duplicate=False):
        parent = backbone.get_submodule(name.rpartition(".")[0])
        linear = type(module) is nn.Linear or type(module).__name__ == "Conv1D"
        table = type(module) is nn.Embedding and module.num_embeddings >= _ROWS
        if (linear or table) and not isinstance(parent, nn.MultiheadAttention):
            yield name, module


def _quantised(module: Any, scheme: QuantisedDtype, tied: dict[int, tuple[Tensor, Tensor]]) -> nn.Module:
    weight = module.weight.detach()
    if isinstance(module, nn.Embedding):
        key = id(module.weight)
        tied.setdefault(key, _rounded(weight))
        return Int8Embedding(module, *tied[key])
    weight = weight if isinstance(module, nn.Linear) else weight.t()  # a Conv1D's is [in, out]
    return Nf4Linear(module, weight) if scheme == "nf4" else Int8Linear(module, *_rounded(weight))


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers, int8 [out, in], and their steps, [out]."""
    if weight.is_meta:
        return torch.empty_like(weight, dtype=torch.int8), weight.new_empty(len(weight))
    weight = weight.float()
    scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _STEPS
    return (weight / scale[:, None]).round().to(torch.int8), scale


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes of two weights each, and the largest size in each block."""
    blocks = -(-weight.numel() // _BLOCK)
    if weight.is_meta:
        return torch.empty(blocks * _BLOCK // 2, dtype=torch.uint8, device="meta"), weight.new_empty(blocks)
    flat = F.pad(weight.float().flatten(), (0, blocks * _BLOCK - weight.numel())).view(blocks, _BLOCK)
    scale = flat.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    between = (_NF4[1:] + _NF4[:-1]) / 2
    nearest = torch.bucketize(flat / scale[:, None], between.to(flat)).to(torch.uint8).view(-1, 2)
    return nearest[:, 0] << 4 | nearest[:, 1], scale


def _give_back() -> None:
    """Have the C library return the memory of the floats, which it would keep for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


# -------------------------------------------------------------------- products with gradients


class _Product(torch.autograd.Function):
    """A product whose weight is unfolded again for the gradient of x, so that no float weight is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return cast(Tensor, layer.product(x))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return cast(Tensor, ctx.layer.product_t(g)), None
