"""Heads: a transformers task class whose backbone is the engine's, and whose Linear layers hold one weight a slot.

The class's own forward runs on hidden states that the engine computed for a whole mixed batch, so a head does exactly
what the plain transformers class does, for all rows of one head class at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ray_lora.bases.plain import HeadSpec
from ray_lora.engine.kernels import accumulate, blocked, select
from ray_lora.engine.routing import Routing
from ray_lora.errors import AdapterError

_Pass = tuple[Routing, int]  # the rows a head runs on, and how many labels they have


class _Slotted(torch.autograd.Function):
    """W_slot x + b_slot for each row; gradients go straight into the stacked buffers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, routing: Routing, width: int) -> Tensor:
        w = select(weight[:, :width], routing)
        inputs = blocked(x, routing)
        out = torch.baddbmm(select(bias[:, :width].unsqueeze(1), routing), inputs, w.transpose(1, 2))
        ctx.save_for_backward(inputs, w)
        ctx.routing, ctx.grads, ctx.width, ctx.shape = routing, (weight.grad, bias.grad), width, x.shape
        return out.reshape(*x.shape[:-1], width)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
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

    def __init__(self, name: str, like: nn.Linear, per_label: bool, current: Callable[[], _Pass]) -> None:
        super().__init__()
        self.name, self.per_label, self.has_bias = name, per_label, like.bias is not None
        self.in_features, self.out_features = like.in_features, like.out_features
        self.weight: nn.Parameter
        self.bias: nn.Parameter
        self._current = current

    def width(self, labels: int) -> int:
        """Outputs that a head of `labels` labels uses."""
        return labels if self.per_label else self.out_features

    def forward(self, x: Tensor) -> Tensor:
        routing, labels = self._current()
        width = self.width(labels)
        rows = routing.by_row(x).to(self.weight.dtype)
        out: Tensor = _Slotted.apply(rows, self.weight, self.bias, routing, width)  # type: ignore[no-untyped-call]
        return out.reshape(*x.shape[:-1], width)


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

    def __init__(self, config: Any, prefix: str, spec: HeadSpec) -> None:
        super().__init__()
        self.architecture, self.labels = spec.architecture, spec.num_labels
        model = _plain(config, spec.architecture, spec.num_labels)
        wider = dict(_plain(config, spec.architecture, spec.num_labels + 1).named_parameters())
        self.targets = frozenset(
            name.removeprefix(prefix + ".") for name, _ in model.named_modules() if name.startswith(prefix + ".")
        )
        # a decoder's class finds a row's last token by its id, so padding must have the id that the class knows
        self._padding: int | None = getattr(model.config.get_text_config(), "pad_token_id", None)
        self._given = _Given()
        self._pass: _Pass | None = None
        setattr(model, prefix, self._given)
        self.linears: list[SlotLinear] = []
        for name, module in list(model.named_modules()):
            if isinstance(module, nn.Linear):
                per_label = wider[f"{name}.weight"].shape != module.weight.shape
                slotted = SlotLinear(name, module, per_label, self._current)
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
        for linear, weight, bias in self._parts(flat):
            linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
        if grad is not None:
            for linear, weight, bias in self._parts(grad):
                linear.weight.grad, linear.bias.grad = weight, bias

    def init(self, slot: int, labels: int, generator: torch.Generator) -> None:
        """transformers' start: weights normal, biases zero."""
        for linear in self.linears:
            fresh = torch.empty(linear.width(labels), linear.in_features)
            fresh.normal_(0, self.initializer_range, generator=generator)
            linear.weight.data[slot, : len(fresh)] = fresh.to(linear.weight)

    def views(self, flat: Tensor, slot: int, labels: int) -> dict[str, Tensor]:
        """One slot's part of `flat` under the plain class's parameter names, cut to `labels`."""
        named = {}
        for linear, weight, bias in self._parts(flat):
            width = linear.width(labels)
            named[f"{linear.name}.weight"] = weight[slot, :width]
            if linear.has_bias:
                named[f"{linear.name}.bias"] = bias[slot, :width]
        return named

    def shapes(self, labels: int) -> dict[str, tuple[int, ...]]:
        """Parameter names and shapes of the plain class's head with this many labels."""
        shapes: dict[str, tuple[int, ...]] = {}
        for linear in self.linears:
            shapes[f"{linear.name}.weight"] = (linear.width(labels), linear.in_features)
            if linear.has_bias:
                shapes[f"{linear.name}.bias"] = (linear.width(labels),)
        return shapes

    def _parts(self, flat: Tensor) -> Iterator[tuple[SlotLinear, Tensor, Tensor]]:
        """Each layer, its weight [slots, out, in] and bias [slots, out] in `flat`: all weights, then all biases."""
        at, bias_at = 0, self.sizes[0]
        for linear in self.linears:
            out, into = linear.out_features, linear.in_features
            weight = flat[:, at : at + out * into].view(-1, out, into)
            yield linear, weight, flat[:, bias_at : bias_at + out]
            at, bias_at = at + out * into, bias_at + out

    def forward(self, hidden: Any, inputs: dict[str, Tensor], routing: Routing, labels: int) -> Any:
        """The class's outputs from the backbone's outputs and the model inputs of the same rows."""
        self._given.outputs, self._pass = hidden, (routing, labels)
        if self._padding is not None and {"input_ids", "attention_mask"} <= inputs.keys():
            empty = inputs["attention_mask"] == 0
            inputs = inputs | {"input_ids": inputs["input_ids"].masked_fill(empty, self._padding)}
        try:
            return self.model(**inputs)
        finally:
            self._given.outputs = self._pass = None

    def _current(self) -> _Pass:
        assert self._pass is not None
        return self._pass


def _plain(config: Any, architecture: str, labels: int) -> Any:
    """The plain transformers class without memory for its weights."""
    import transformers

    config = copy.deepcopy(config)
    config.num_labels = labels
    text = config.get_text_config()
    if getattr(text, "pad_token_id", 0) is None:
        text.pad_token_id = -1  # no token at all; without one a decoder's class takes a single row at a time
    named = architecture.startswith("AutoModelFor")  # the name may come from a file: it reaches nothing else
    factory = getattr(transformers, architecture, None) if named else None
    if factory is None:
        raise AdapterError(
            f"transformers has no class {architecture!r}; name a class such as AutoModelForSequenceClassification"
        )
    try:
        with torch.device("meta"):
            return factory.from_config(config)
    except ValueError as error:
        raise AdapterError(f"{architecture} does not know this base ({config.model_type}): {error}") from None
