"""Linear layers and tables of embeddings in few bits.

Weights are unfolded in each product and multiplied as floats; gradients go through the same weights. What a layer is
given is never rounded to 8 bits, as that would be faster and wrong: a number that lies between two steps falls to the
other side when another pass moves its last bit, and by the last layer a row's answer would depend on who shared its
pass, by as much as the rounding is worth.

A layer's `weight` has a shape, no memory, and is NaN throughout: a class that reads it without calling the layer
answers no numbers, and is refused for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_lora.bases.few_bits.rounding import nearest, unfolded


class Held(nn.Module):
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
        none = torch.full((1,) * len(shape), torch.nan, device="meta" if codes.is_meta else None).expand(*shape)
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


class _HeldLinear(Held, nn.Linear):
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
        super().__init__(like, weight.shape, *nearest(weight))

    def float_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[out, in]."""
        return unfolded(self.codes, self.scale, self.weight.shape).to(dtype)

    def product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.float_weight(x.dtype), self.bias)

    def product_t(self, g: Tensor) -> Tensor:
        """g W."""
        return g @ self.float_weight(g.dtype)


class Int8Embedding(Held, nn.Embedding):
    """A table whose rows are whole numbers of a step each; `codes` is [rows, width], `scale` [rows]."""

    as_told: Tensor

    def __init__(self, like: nn.Module, codes: Tensor, scale: Tensor) -> None:
        Held.__init__(self, like, codes.shape, codes, scale)
        self.register_buffer("as_told", torch.empty(0), persistent=False)  # moved to a dtype, it tells which

    def forward(self, ids: Tensor) -> Tensor:
        return (self.codes[ids] * self.scale[ids][..., None]).to(self.as_told.dtype)


class _Product(torch.autograd.Function):
    """A product whose weight is unfolded again for the gradient of x, so that no float weight is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return cast(Tensor, layer.product(x))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return cast(Tensor, ctx.layer.product_t(g)), None
