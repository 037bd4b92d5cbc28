"""The layers of a graph: a base's products and convolutions with low-rank terms from inputs, and a head's from inputs.

    model.set_submodule("encoder.key", LoraProduct("encoder.key", module, given))

Each takes its numbers by its name from what the pass was given, `NAME.A` [slots, rank, in, ...], `NAME.B` [slots, out,
rank] with the scaling in it, or a head's tensors with an axis of slots in front, of which each row has those of its own
slot. It knows modules and tensors: no bases and no ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_lora.engine.layers import is_linear


@dataclass
class Given:
    """What a pass was given: the slot of each row, [rows], and the stacked numbers by name."""

    slots: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    stacks: Mapping[str, Tensor] = field(default_factory=dict)

    def take(self, slots: Tensor | None, stacks: Mapping[str, Tensor] | None) -> None:
        """Those of the pass that begins; None of a graph without adapters as inputs."""
        if slots is not None and stacks is not None:
            self.slots, self.stacks = slots, stacks

    def of(self, name: str) -> Tensor:
        """Each row's own, [rows, ...]."""
        return self.stacks[name].index_select(0, self.slots)


def target(name: str, module: nn.Module, given: Given) -> nn.Module | None:
    """A target layer with its term from inputs; None of a kind that has no such form."""
    if is_linear(module):
        return LoraProduct(name, module, given)
    if type(module) is nn.Conv2d:
        return LoraConvolution(name, module, given)
    if type(module) is nn.ConvTranspose2d and module.groups == 1:
        return LoraTransposed(name, module, given)
    return None


def own(name: str, module: nn.Module, given: Given) -> nn.Module | None:
    """A head's layer with all its numbers from inputs; None of a kind that has no such form."""
    if isinstance(module, nn.Linear):
        return HeadProduct(name, module.bias is not None, given)
    if type(module) is nn.Conv2d and _is_point(module):
        return HeadPoint(name, module.bias is not None, given)
    if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats:
        return HeadNorm(name, module.eps, given)
    return None


def _is_point(module: nn.Conv2d) -> bool:
    """Whether it reads each pixel for itself."""
    plain = module.groups == 1 and set(module.kernel_size) == {1} and set(module.stride) == {1}
    return plain and module.padding in ((0, 0), "valid", "same")


class Product(nn.Module):
    """x W + b with W [in, out], laid as a graph multiplies with it."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        weight = module.weight.T if isinstance(module, nn.Linear) else module.weight
        self.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
        self.bias = module.bias

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


class LoraProduct(Product):
    """A target layer: each row's own low-rank term beside the base's product."""

    def __init__(self, name: str, module: Any, given: Given) -> None:
        super().__init__(module)
        self.name, self.given = name, given

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.given.of(f"{self.name}.A"), self.given.of(f"{self.name}.B")
        rows = x.unsqueeze(1) if x.dim() == 2 else x
        term = (rows @ a.transpose(1, 2)) @ b.transpose(1, 2)
        return super().forward(x) + (term.squeeze(1) if x.dim() == 2 else term)


class LoraConvolution(nn.Conv2d):
    """A target layer: A of all slots as one convolution of the layer's own kind, of which each row keeps its own
    channels, and its own B behind it. A graph's convolution cannot have groups that follow from its rows."""

    def __init__(self, name: str, module: nn.Conv2d, given: Given) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(module.__dict__)  # a class may read the layer's sizes
        self.name, self.given = name, given

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        stack, groups = self.given.stacks[f"{self.name}.A"], self.groups
        slots, rank = stack.shape[:2]
        weight = stack.reshape(slots * rank, *self.weight.shape[1:])
        weight = weight.repeat(groups, 1, 1, 1)  # every group's own channels by the same A
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        wide = F.conv2d(x, weight, None, self.stride, padding, self.dilation, groups)
        wide = wide.reshape(x.shape[0], groups, slots, rank, -1)
        chosen = self.given.slots.reshape(-1, 1, 1, 1, 1).expand(-1, groups, 1, rank, wide.shape[-1])
        own = wide.gather(2, chosen).squeeze(2)  # [rows, groups, rank, pixels]
        b = self.given.of(f"{self.name}.B").unflatten(1, (groups, -1))
        term: Tensor = (b @ own).reshape(y.shape)
        return y + term


class LoraTransposed(nn.ConvTranspose2d):
    """As `LoraConvolution`, of a transposed convolution without groups."""

    def __init__(self, name: str, module: nn.ConvTranspose2d, given: Given) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(module.__dict__)
        self.name, self.given = name, given

    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        y: Tensor = super().forward(x)
        stack = self.given.stacks[f"{self.name}.A"]
        slots, rank = stack.shape[:2]
        weight = stack.reshape(slots * rank, self.in_channels, *self.kernel_size)
        told: Any = (self.stride, self.padding, self.output_padding, 1, self.dilation)
        wide = F.conv_transpose2d(x, weight.transpose(0, 1), None, *told).reshape(x.shape[0], slots, rank, -1)
        chosen = self.given.slots.reshape(-1, 1, 1, 1).expand(-1, 1, rank, wide.shape[-1])
        own = wide.gather(1, chosen).squeeze(1)  # [rows, rank, pixels]
        return y + (self.given.of(f"{self.name}.B") @ own).reshape(y.shape)


class HeadProduct(nn.Module):
    """A head's layer, all of whose numbers are each row's own."""

    def __init__(self, name: str, bias: bool, given: Given) -> None:
        super().__init__()
        self.name, self.biased, self.given = name, bias, given

    def forward(self, x: Tensor) -> Tensor:
        weight = self.given.of(f"{self.name}.weight").transpose(1, 2)
        rows = x.unsqueeze(1) if x.dim() == 2 else x
        product = rows @ weight
        if self.biased:
            product = product + self.given.of(f"{self.name}.bias").unsqueeze(1)
        return product.squeeze(1) if x.dim() == 2 else product


class HeadPoint(nn.Module):
    """A head's convolution of 1 x 1: a product at every pixel."""

    def __init__(self, name: str, bias: bool, given: Given) -> None:
        super().__init__()
        self.name, self.biased, self.given = name, bias, given

    def forward(self, x: Tensor) -> Tensor:
        product = self.given.of(f"{self.name}.weight").flatten(2) @ x.flatten(2)  # [rows, out, pixels]
        if self.biased:
            product = product + self.given.of(f"{self.name}.bias").unsqueeze(2)
        return product.reshape(x.shape[0], -1, *x.shape[2:])


class HeadNorm(nn.Module):
    """A head's batch norm, by the statistics that it has kept."""

    def __init__(self, name: str, eps: float, given: Given) -> None:
        super().__init__()
        self.name, self.eps, self.given = name, eps, given

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            self.given.of(f"{self.name}.{kind}")[:, :, None, None]
            for kind in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + self.eps).sqrt() * weight + bias
