"""Convolutions of any kind in few bits.

    held = of(nn.Conv2d(64, 64, 3), "nf4")      # an nn.Conv2d too, whose weight has no memory
    held.run(x, held.geometry, after, bias)     # with a norm behind it folded in

A channel of fewer weights than a block of nf4 has, such as one in groups of its own, is held in int8 under either
scheme: a block there would be many channels', of any sizes.
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from ray_lora.bases.few_bits.layers import Held
from ray_lora.bases.few_bits.rounding import BLOCK, nearest, rounded, unfolded
from ray_lora.bases.geometry import CONVOLUTIONS, Geometry, towards
from ray_lora.recipe import QuantisedDtype


class HeldConvolution(Held):
    """A convolution without a float weight that is kept for the gradient of its input.

    Attributes:
        geometry: how it walks.
    """

    geometry: Geometry
    bias: Tensor | None
    weight: Tensor

    def __init__(self, like: Any, codes: Tensor, scale: Tensor) -> None:
        super().__init__(like, like.weight.shape, codes, scale)
        self.bias, self.geometry = like.bias, Geometry.of(like)
        self._reversed_padding_repeated_twice = like._reversed_padding_repeated_twice

    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        return self.run(x, towards(self, self.geometry, x, output_size))

    def run(self, x: Tensor, geometry: Geometry, after: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """What the layer answers as it walks now.

        Args:
            after, bias: [out], of a norm that is folded in: by what each channel is multiplied, and what is added
                instead of the layer's own bias.
        """
        x, bias = geometry.padded(x), self.bias if after is None else bias
        if x.requires_grad and torch.is_grad_enabled():
            return _Walk.apply(x, self, geometry, after, bias)  # type: ignore[no-untyped-call, no-any-return]
        return geometry.run(x, self.unfolded(x.dtype, after), bias)

    def unfolded(self, dtype: torch.dtype, after: Tensor | None) -> Tensor:
        """The weight in its own layout, each channel's multiplied by `after`."""
        weight = self.float_weight()
        return (weight if after is None else self.geometry.times(weight, after.to(weight.dtype))).to(dtype)

    def lay(self, memory: torch.memory_format) -> None:
        """Have the weight lie so where it is unfolded, if that costs nothing."""


class Int8Convolution(HeldConvolution):
    """`codes` lie as the weight, `scale` is [out]."""

    def float_weight(self) -> Tensor:
        return self.geometry.times(self.codes, self.scale)

    def lay(self, memory: torch.memory_format) -> None:
        self.codes = self.codes.contiguous(memory_format=memory)


class Nf4Convolution(HeldConvolution):
    """`codes` is [numbers / 2], two weights in a byte, `scale` that of each block, [numbers / 64]."""

    def float_weight(self) -> Tensor:
        return unfolded(self.codes, self.scale, self.weight.shape)


def is_plain(module: nn.Module) -> bool:
    """Whether it computes what its convolution says, and no more; a subclass may do anything."""
    return type(module) in CONVOLUTIONS or isinstance(module, HeldConvolution)


def of(module: Any, scheme: QuantisedDtype) -> HeldConvolution:
    """A convolution of one of torch's kinds in few bits."""
    weight, geometry = module.weight.detach(), Geometry.of(module)
    kind: Any = type(module)
    by_output = geometry.laid(weight)
    if scheme == "nf4" and by_output[0].numel() >= BLOCK:
        return _kind(Nf4Convolution, kind)(module, *nearest(weight))
    codes, scale = rounded(by_output)
    return _kind(Int8Convolution, kind)(module, geometry.laid(codes), scale)


@cache
def _kind(held: type[HeldConvolution], like: type[nn.Module]) -> type[HeldConvolution]:
    """A class of its own for each kind of torch's, so that whoever asks sees one of these."""
    return cast("type[HeldConvolution]", type(f"{held.__name__}Of{like.__name__}", (held, like), {}))


class _Walk(torch.autograd.Function):
    """The weight is unfolded again for the gradient of x, of which nothing but the shape is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: HeldConvolution, geometry: Geometry, after: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        ctx.layer, ctx.geometry, ctx.after, ctx.shape = layer, geometry, after, x.shape
        return geometry.run(x, layer.unfolded(x.dtype, after), bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight = ctx.layer.unfolded(g.dtype, ctx.after)
        dx, _ = ctx.geometry.back(g, g.new_empty(1).expand(ctx.shape), weight, (True, False, False))
        return dx, *[None] * 4
