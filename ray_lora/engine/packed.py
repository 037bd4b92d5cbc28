"""Packed weights: frozen linear layers laid out once as the processor's matrix products read them.

A plain product lays its weight out anew in every call, which costs as much as the product itself when the rows are few.
A frozen weight is the same for ever, so it is packed once (oneDNN, through the operators that torch.compile uses), and
its plain copy is given back: a packed base is no larger. It knows linear layers, not slots.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from ray_lora.engine.layers import is_linear
from ray_lora.engine.targets import bypassed


class PackedLinear:
    """What a frozen Linear or Conv1D computes, from packed weights; takes the place of the module's `forward`.

    Args:
        weight: [out, in].
        train: pack the transpose too, for gradients of the inputs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, train: bool) -> None:
        self.bias = bias
        self.packed = _pack(weight)
        self.transpose = _pack(weight.t()) if train else None

    def __call__(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return Product.apply(x, self)  # type: ignore[no-untyped-call, no-any-return]
        return _product(x, self.packed, self.bias)


class Product(torch.autograd.Function):
    """x W^T + b, whose gradient of x is g W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: PackedLinear) -> Tensor:
        ctx.linear = linear
        return _product(x, linear.packed, linear.bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _product(g, ctx.linear.transpose, None), None


class Packing:
    """The packed layers of one backbone; `undo` gives the plain weights back.

    Args:
        train: whether passes have gradients.
        uncalled: layers that stay as they are, because their parents read their weights.
    """

    def __init__(self, backbone: nn.Module, train: bool, uncalled: Collection[str] = ()) -> None:
        kept = {backbone.get_submodule(name) for name in uncalled}
        self._modules = [module for module in _layers(backbone) if module not in kept and can_pack(module.weight)]
        for module in self._modules:
            weight = module.weight.detach()
            module.forward = PackedLinear(_turned(module, weight), module.bias, train)
            module.weight = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)

    def undo(self) -> None:
        """Unpack every weight and give each module its own forward again."""
        for module in self._modules:
            weight = _turned(module, module.forward.packed.to_dense())
            module.weight = nn.Parameter(weight, requires_grad=False)
            del module.forward
        self._modules.clear()


def transposes(backbone: nn.Module) -> int:
    """Numbers in the transposes that an engine which trains keeps beside the weights, where they are packed."""
    return sum(module.weight.numel() for module in _layers(backbone))


def can_pack(weight: Tensor) -> bool:
    """Whether this machine's products of this dtype have a packed form."""
    if weight.device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64") or weight.requires_grad:
        return False
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _layers(backbone: nn.Module) -> list[Any]:
    """Linear and Conv1D layers whose weight nobody else reads; a subclass of Linear may compute more than a product."""
    owners = Counter(id(p) for module in backbone.modules() for p in module.parameters(recurse=False))
    return [
        module
        for name, module in backbone.named_modules()
        if is_linear(module)
        and (type(module) is nn.Linear or not isinstance(module, nn.Linear))
        and owners[id(module.weight)] == 1
        and not bypassed(backbone, name)
    ]


def _turned(module: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight as [out, in], and back: a Conv1D's is [in, out]."""
    return weight if isinstance(module, nn.Linear) else weight.t().contiguous()


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product
