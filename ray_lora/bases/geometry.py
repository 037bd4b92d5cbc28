"""How a convolution of any kind walks over its input: its own forward and gradients, with weights that are handed in.

    Geometry.of(nn.Conv2d(3, 8, 3, stride=2)).run(x, weight)

It knows nothing of slots and low-rank terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Geometry:
    """How a convolution walks over its input.

    Attributes:
        kernel, stride, padding, dilation: of each spatial axis.
        around: what is laid around the input first, in `mode`, as `torch.nn.functional.pad` counts; none where
            `padding` says all.
        out: channels that come out.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    out: int
    transposed: bool = False
    around: tuple[int, ...] = ()
    mode: str = "constant"
    output_padding: tuple[int, ...] = ()

    @classmethod
    def of(cls, module: _Conv) -> Geometry:
        """Of a module of one of the kinds in `CONVOLUTIONS`."""
        zero = (0,) * len(module.kernel_size)
        around: Sequence[int] = module._reversed_padding_repeated_twice if not module.transposed else ()
        even = around[::2] == around[1::2]
        plain = module.transposed or (module.padding_mode == "zeros" and even)
        padding = tuple(module.padding) if module.transposed else tuple(around[::2][::-1]) if plain else zero
        return cls(
            kernel=tuple(module.kernel_size),
            stride=tuple(module.stride),
            padding=padding,  # type: ignore[arg-type]
            dilation=tuple(module.dilation),
            groups=module.groups,
            out=module.out_channels,
            transposed=module.transposed,
            around=() if plain else tuple(around),
            mode="constant" if module.padding_mode == "zeros" else module.padding_mode,
            output_padding=tuple(module.output_padding),
        )

    @property
    def is_point(self) -> bool:
        """Whether it reads each pixel for itself, so that it is a product."""
        plain = not self.transposed and not self.around and self.groups == 1
        return plain and set(self.kernel) == {1} and set(self.padding) == {0}

    def fitting(self, x: Tensor, y: Tensor) -> Geometry:
        """With the output padding that led from an input to an output: a transposed convolution may be asked for it."""
        if not self.transposed:
            return self
        walked = (
            (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
            for size, stride, padding, dilation, kernel in zip(
                x.shape[2:], self.stride, self.padding, self.dilation, self.kernel, strict=True
            )
        )
        return replace(self, output_padding=tuple(b - a for a, b in zip(walked, y.shape[2:], strict=True)))

    def padded(self, x: Tensor) -> Tensor:
        """The input with what `padding` does not say around it."""
        return F.pad(x, self.around, mode=self.mode) if self.around else x

    @property
    def _walk(self) -> tuple[Any, ...]:
        """As torch's convolutions take it, behind their tensors."""
        return self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution itself; the weight is [in, out / groups, *kernel] where it is transposed."""
        y: Tensor = torch.convolution(
            x,
            weight,
            bias,
            *self._walk,
        )
        return y

    def back(self, g: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor]:
        """The gradients of x and of the weight, of those that `mask` asks for."""
        dx, dw, _ = torch.ops.aten.convolution_backward(
            g,
            x,
            weight,
            None,
            *self._walk,
            mask,
        )
        return dx, dw

    def laid(self, weight: Tensor) -> Tensor:
        """[out, in / groups, *kernel] in the layer's layout, and back."""
        if not self.transposed:
            return weight
        laid: Tensor = weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        return laid

    def times(self, weight: Tensor, factors: Tensor) -> Tensor:
        """A weight in the layer's layout, what leads to each output channel multiplied by its factor, [out]."""
        return self.laid(self.laid(weight) * factors.view(-1, *[1] * (weight.dim() - 1)))


def towards(module: Any, geometry: Geometry, x: Tensor, output_size: Any) -> Geometry:
    """How a layer walks over `x` where a transposed one was asked for an output of a size, None where it was not."""
    if output_size is None:
        return geometry
    axes, sizes = len(geometry.kernel), (module.stride, module.padding, module.kernel_size)
    padding = module._output_padding(x, output_size, *sizes, axes, module.dilation)
    return replace(geometry, output_padding=tuple(padding))
