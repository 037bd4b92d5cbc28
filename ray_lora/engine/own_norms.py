"""Batch norms of a backbone of which adapters have copies: each row is scaled and shifted as its own adapter says.

A norm's statistics are of the pictures that the base was trained on. Where an adapter's are others, what the frozen
layers hand on has another mean and spread than all layers behind them have learnt, and no pair of low rank mends that.

    norms = OwnNorms(backbone, current, kind_of)
    norms.add(kind, "segmenter.", stacks)          # stacks of a `Head` that holds the norms' copies
    with norms.measured() as found: ...            # passes over rows; then what their statistics are, by name

It knows stacks and rows, not what an adapter is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ray_lora.engine.frozen import has_statistics
from ray_lora.engine.routing import Routes

Stacks = Mapping[str, Tensor]  # a tensor's name in the plain class -> [slots, channels]


def norms_in(backbone: nn.Module) -> dict[str, Any]:
    """The batch norms that have statistics, by name."""
    return {name: module for name, module in backbone.named_modules() if has_statistics(module)}


@dataclass
class _Sums:
    """Of one norm's inputs: how many rows, and the sums of their channels' means and mean squares, [channels]."""

    rows: int = 0
    mean: Any = 0.0
    square: Any = 0.0

    def add(self, rows: int, mean: Tensor, variance: Tensor) -> None:
        mean, variance = mean.double(), variance.double()
        self.rows += rows
        self.mean = self.mean + rows * mean
        self.square = self.square + rows * (variance + mean.square())

    @property
    def statistics(self) -> dict[str, Tensor]:
        mean = self.mean / self.rows
        return {"running_mean": mean, "running_var": self.square / self.rows - mean.square()}


@dataclass
class OwnNorms:
    """The norms of one backbone.

    Args:
        current: the routes of the pass, None for the bare base.
        kind_of: the kind of head that holds a slot's norms; None where the slot answers with the base's.
    """

    backbone: nn.Module
    current: Callable[[], Routes | None]
    kind_of: Callable[[int], str | None]
    _held: dict[str, tuple[str, Stacks]] = field(default_factory=dict)
    _sums: dict[str, _Sums] | None = None

    def add(self, kind: str, prefix: str, stacks: Stacks) -> None:
        """Slots of this kind have copies in `stacks`, under the norms' names behind `prefix`."""
        self._held[kind] = prefix, stacks

    def attach(self) -> None:
        """From now on the norms answer each row as its slot says; what they answer now is the base's."""
        for name, module in norms_in(self.backbone).items():
            module.forward = self._forward(name, module, module.forward)

    def _forward(self, name: str, module: Any, plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            if self._sums is not None:
                return _measured(x, module, self._sums.setdefault(name, _Sums()))
            routes = self.current()
            kinds = set() if routes is None else set(map(self.kind_of, routes.rows.distinct))
            if routes is None or kinds <= {None}:
                return plain(x)
            slots = routes.of(x).slots
            slots = slots.repeat_interleave(x.shape[0] // len(slots))
            if len(kinds) == 1:
                return self._own(name, module, x, slots, kinds.pop())
            of_row = list(map(self.kind_of, slots.tolist()))
            parts, order = [], []
            for kind in kinds:
                mine = torch.tensor([row for row, other in enumerate(of_row) if other == kind], device=x.device)
                part = x[mine]
                parts.append(plain(part) if kind is None else self._own(name, module, part, slots[mine], kind))
                order.append(mine)
            return torch.cat(parts)[torch.cat(order).argsort()]

        return forward

    def _own(self, name: str, module: Any, x: Tensor, slots: Tensor, kind: str | None) -> Tensor:
        assert kind is not None
        prefix, stacks = self._held[kind]
        own = [stacks.get(f"{prefix}{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias")]
        y: Tensor = _Scaled.apply(x, slots, module.eps, *own)  # type: ignore[no-untyped-call]
        return y

    @contextmanager
    def measured(self) -> Iterator[dict[str, Tensor]]:
        """While it lasts every pass is normalised by its own rows' statistics; when it ends, `running_mean` and
        `running_var` of all passes' rows together are found, [channels] float64 by the norms' names.

        A norm behind others is measured on what these give once they are measured, as in training with live norms.
        """
        found: dict[str, Tensor] = {}
        self._sums = {}
        try:
            yield found
            for name, sums in self._sums.items():
                found |= {f"{name}.{part}": value for part, value in sums.statistics.items()}
        finally:
            self._sums = None


def _measured(x: Tensor, module: Any, sums: _Sums) -> Tensor:
    axes = [0, *range(2, x.dim())]
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(exact, axes, correction=0)
    sums.add(len(x), mean, variance)
    weight, bias = (None if value is None else value.to(exact) for value in (module.weight, module.bias))
    return nn.functional.batch_norm(exact, mean, variance, weight, bias, False, 0.0, module.eps).to(x.dtype)


class _Scaled(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias with each row's own numbers; gradients of weight and bias go
    straight into the stacks' buffers."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, slots: Tensor, eps: float, mean: Tensor, variance: Tensor, weight: Any, bias: Any
    ) -> Tensor:
        middle, steep = mean[slots], (variance[slots] + eps).rsqrt()
        scale = steep if weight is None else steep * weight[slots]
        shift = -middle * scale if bias is None else bias[slots] - middle * scale
        ctx.save_for_backward(x, slots, middle, steep, scale)
        ctx.grads = tuple(None if value is None else value.grad for value in (weight, bias))
        axes = (*scale.shape, *[1] * (x.dim() - 2))
        return torch.addcmul(shift.view(axes), x, scale.view(axes)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, slots, middle, steep, scale = ctx.saved_tensors
        of_weight, of_bias = ctx.grads
        axes = list(range(2, x.dim()))
        exact = g.to(scale.dtype)
        sums = exact.sum(axes) if axes else exact
        if of_weight is not None:
            products = exact * x
            of_weight.index_add_(0, slots, ((products.sum(axes) if axes else products) - middle * sums) * steep)
        if of_bias is not None:
            of_bias.index_add_(0, slots, sums)
        dx = (exact * scale.view(*scale.shape, *[1] * len(axes))).to(x.dtype) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None, None, None
