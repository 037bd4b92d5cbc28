"""Heads: a transformers task class whose backbone is the engine's, and whose Linear layers hold one weight a slot.

The class's own forward runs on hidden states that the engine computed for a whole mixed batch, so a head does exactly
what the plain transformers class does, for all rows of one head class at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ray_lora.engine.kernels import accumulate, grouped, select
from ray_lora.engine.routing import Routing
from ray_lora.errors import AdapterError


@dataclass(frozen=True)
class HeadSpec:
    """Which plain transformers class answers, and how many labels it has."""

    architecture: str  # "AutoModelForSequenceClassification"
    num_labels: int


class _Slotted(torch.autograd.Function):
    """W_slot x + b_slot for each row; gradients go straight into the stacked buffers."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, routing: Routing, width: int
    ) -> Tensor:
        w = select(weight[:, :width], routing)
        inputs = grouped(x, routing)
        out = torch.baddbmm(select(bias[:, :width].unsqueeze(1), routing), inputs, w.transpose(1, 2))
        ctx.save_for_backward(inputs, w)
        ctx.routing, ctx.grads, ctx.width, ctx.shape = routing, (weight.grad, bias.grad), width, x.shape
        return out.reshape(*x.shape[:-1], width)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs, w = ctx.saved_tensors
        grad_weight, grad_bias = ctx.grads
        g_rows = g.reshape(*inputs.shape[:-1], ctx.width)
        if grad_weight is not None:
            accumulate(grad_weight[:, : ctx.width], ctx.routing, torch.bmm(g_rows.transpose(1, 2), inputs))
            accumulate(grad_bias[:, : ctx.width], ctx.routing, g_rows.sum(1))
        dx = torch.bmm(g_rows, w).reshape(ctx.shape) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None


class SlotLinear(nn.Module):
    """A Linear with one weight and bias a slot: weight [slots, out, in], bias [slots, out], in float32."""

    def __init__(self, name: str, like: nn.Linear, per_label: bool, current: Callable[[], Routing]) -> None:
        super().__init__()
        self.name, self.per_label, self.has_bias = name, per_label, like.bias is not None
        self.in_features, self.out_features = like.in_features, like.out_features
        self.weight: nn.Parameter
        self.bias: nn.Parameter
        self._current = current

    def forward(self, x: Tensor) -> Tensor:
        routing = self._current()
        width = routing.labels if self.per_label and routing.labels else self.out_features
        out = _Slotted.apply(routing.by_row(x).to(self.weight.dtype), self.weight, self.bias, routing, width)
        return out.reshape(*x.shape[:-1], width)  # type: ignore[no-any-return]


class _Given(nn.Module):
    """Stands where the backbone stood; returns what the engine computed."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.outputs


class Head(nn.Module):
    """One head class on one base: stacked weights of up to `labels` labels for every slot.

    Attributes:
        linears: its SlotLinear layers, in the class's order.
        targets: names inside the backbone that exist in the plain class too (a class may have no pooler).
        modules: the class's own top-level modules, PEFT's `modules_to_save`.
    """

    def __init__(self, config: Any, prefix: str, spec: HeadSpec, current: Callable[[], Routing]) -> None:
        super().__init__()
        self.architecture, self.labels = spec.architecture, spec.num_labels
        model = _plain(config, spec.architecture, spec.num_labels)
        wider = dict(_plain(config, spec.architecture, spec.num_labels + 1).named_parameters())
        self.targets = frozenset(
            name.removeprefix(prefix + ".") for name, _ in model.named_modules() if name.startswith(prefix + ".")
        )
        self._given = _Given()
        setattr(model, prefix, self._given)
        self.linears: list[SlotLinear] = []
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear):
                per_label = wider[f"{name}.weight"].shape != module.weight.shape
                slotted = SlotLinear(name, module, per_label, current)
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, slotted)
                self.linears.append(slotted)
        left = [name for name, _ in model.named_parameters()]
        if left or not self.linears:
            raise AdapterError(
                f"head class {spec.architecture} has parameters {left[:3]} that are not Linear layers; "
                "such a head is not supported"
            )
        self.modules_to_save = tuple(sorted({linear.name.split(".")[0] for linear in self.linears}))
        self.initializer_range = float(getattr(config, "initializer_range", 0.02))
        self.model = model.eval()

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers a slot holds: weights, biases."""
        return (
            sum(linear.out_features * linear.in_features for linear in self.linears),
            sum(linear.out_features for linear in self.linears),
        )

    def place(self, flat: Tensor, grad: Tensor | None) -> None:
        """Make every layer's weight and bias a view of flat [slots, weights + biases]."""
        slots, at, bias_at = flat.shape[0], 0, self.sizes[0]
        for linear in self.linears:
            out, into = linear.out_features, linear.in_features
            linear.weight = nn.Parameter(flat[:, at : at + out * into].view(slots, out, into))
            linear.bias = nn.Parameter(flat[:, bias_at : bias_at + out])
            if grad is not None:
                linear.weight.grad = grad[:, at : at + out * into].view(slots, out, into)
                linear.bias.grad = grad[:, bias_at : bias_at + out]
            at, bias_at = at + out * into, bias_at + out

    def forward(self, hidden: Any, inputs: dict[str, Tensor]) -> Any:
        """The class's outputs from the backbone's outputs and the model inputs of the same rows."""
        self._given.outputs = hidden
        try:
            return self.model(**inputs)
        finally:
            self._given.outputs = None


def _plain(config: Any, architecture: str, labels: int) -> Any:
    """The plain transformers class without memory for its weights."""
    import transformers

    config = copy.deepcopy(config)
    config.num_labels = labels
    factory = getattr(transformers, architecture, None)
    if factory is None:
        raise AdapterError(f"transformers has no class {architecture!r}; name a class such as AutoModelForSequenceClassification")
    try:
        with torch.device("meta"):
            return factory.from_config(config)
    except ValueError as error:
        raise AdapterError(f"{architecture} does not know this base ({config.model_type}): {error}") from None
