"""Modules that are trained in full, one copy a slot, inside a head: stacked products for Linear layers and convolutions
of 1 x 1, and for every other kind the module itself, run once for each slot of the pass on that slot's rows.

They know stacks and routings, not what a head is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ray_lora.engine.frozen import contiguous_gradient
from ray_lora.engine.kernels import accumulate, blocked, select
from ray_lora.engine.routing import Routing
from ray_lora.errors import AdapterError, CapacityError

Stacks = Mapping[str, Tensor]  # tensor name in the plain class -> [slots, ...]
Index = tuple[Any, ...]


def corner(slot: int, shape: Sequence[int]) -> Index:
    """Where in a stack the slot's copy of this shape lies."""
    return (slot, *(slice(size) for size in shape))


@dataclass(frozen=True)
class HeadPass:
    """The rows that a head runs on."""

    routing: Routing

    @cached_property
    def groups(self) -> tuple[tuple[int, Tensor], ...]:
        """Each slot among the rows with its own, [rows of the slot]."""
        slots = self.routing.slots
        return tuple((slot, (slots == slot).nonzero().flatten()) for slot in self.routing.distinct)

    @cached_property
    def back(self) -> Tensor | None:
        """Where each row lies when the groups follow one another, [rows]; None where they lie so already."""
        order = torch.cat([rows for _, rows in self.groups])
        lies = bool((order[1:] > order[:-1]).all())
        return None if lies else torch.argsort(order)


# -------------------------------------------------------------------- Linear


class _StackedLinear(torch.autograd.Function):
    """W_slot x + b_slot for each row; gradients go straight into the stacked buffers.

    `weight` is [slots, out, in], or that of convolutions, [slots, out, in, 1, 1].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, routing: Routing, out: int, into: int
    ) -> Tensor:
        w, inputs = select(_matrix(weight)[:, :out, :into], routing), blocked(x, routing)
        if bias is None:
            y = torch.bmm(inputs, w.transpose(1, 2))
        else:
            y = torch.baddbmm(select(bias[:, :out].unsqueeze(1), routing), inputs, w.transpose(1, 2))
        ctx.save_for_backward(inputs, w)
        grad_weight = None if weight.grad is None else _matrix(weight.grad)
        ctx.routing, ctx.grads, ctx.shape = routing, (grad_weight, None if bias is None else bias.grad), x.shape
        return y.reshape(*x.shape[:-1], out)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        inputs, w = ctx.saved_tensors
        grad_weight, grad_bias = ctx.grads
        out, into = w.shape[1:]
        g_rows = g.reshape(*inputs.shape[:-1], out)
        if grad_weight is not None:
            accumulate(grad_weight[:, :out, :into], ctx.routing, torch.bmm(g_rows.transpose(1, 2), inputs))
        if grad_bias is not None:
            accumulate(grad_bias[:, :out], ctx.routing, g_rows.sum(1))
        dx = torch.bmm(g_rows, w).reshape(ctx.shape) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None, None


def _matrix(stack: Tensor) -> Tensor:
    return stack if stack.dim() == 3 else stack[..., 0, 0]


class SlotModule(nn.Module):
    """One module of a head with a copy a slot; its tensors are parts of the head's stacks.

    Args:
        name: its name in the plain class. shapes: of its own tensors, what a slot's copy is cut to.
        stacks, current: the head's stacks, and the pass that it runs.
    """

    def __init__(
        self, name: str, shapes: Mapping[str, torch.Size], stacks: Stacks, current: Callable[[], HeadPass]
    ) -> None:
        super().__init__()
        self.name, self.shapes = name, dict(shapes)
        self._stacks, self._current = stacks, current

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("shapes", ()):
            raise AdapterError(
                f"the head reads {self.name}.{name} without calling {self.name}; such a module cannot have a copy "
                "for each adapter: call it, or freeze it as a part of the base"
            )
        return super().__getattr__(name)


class SlotLinear(SlotModule):
    """A Linear with one weight and bias a slot, all of a pass in one product."""

    def forward(self, x: Tensor) -> Tensor:
        routing = self._current().routing
        weight, bias = self._stacks[f"{self.name}.weight"], self._stacks.get(f"{self.name}.bias")
        rows = routing.by_row(x).to(weight.dtype)
        out, into = self.shapes["weight"]
        y: Tensor = _StackedLinear.apply(rows, weight, bias, routing, out, into)  # type: ignore[no-untyped-call]
        return y.reshape(*x.shape[:-1], out)


class SlotPoint(SlotModule):
    """A convolution of 1 x 1, which is a Linear at every pixel."""

    def forward(self, x: Tensor) -> Tensor:
        routing = self._current().routing
        weight, bias = self._stacks[f"{self.name}.weight"], self._stacks.get(f"{self.name}.bias")
        if x.requires_grad:  # a norm before it may be called as a function, which `Frozen` does not see
            x = x.view_as(x)
            contiguous_gradient(x)
        rows = routing.by_row(x.flatten(2).transpose(1, 2)).to(weight.dtype)
        out, into = self.shapes["weight"][:2]
        y: Tensor = _StackedLinear.apply(rows, weight, bias, routing, out, into)  # type: ignore[no-untyped-call]
        pixels: Tensor = y.reshape(x.shape[0], -1, out).transpose(1, 2).unflatten(2, x.shape[2:])
        return pixels.contiguous()  # or what comes behind, a frozen batch norm too, is handed transposed gradients


def is_point(module: nn.Module) -> bool:
    """Whether a module is nothing but a convolution of 1 x 1."""
    return (
        type(module) is nn.Conv2d
        and (module.kernel_size, module.stride, module.groups) == ((1, 1), (1, 1), 1)
        and module.padding in ((0, 0), "valid", "same")
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


# -------------------------------------------------------------------- everything else


class _Lent(torch.autograd.Function):
    """One slot's copy of a tensor; its gradient is added straight into the stack's buffer."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, index: Index) -> Tensor:
        ctx.grad = None if stack.grad is None else stack.grad[index]
        return stack[index].detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None]:
        if ctx.grad is not None:
            ctx.grad.add_(g)
        return None, None


class SlotLeaf(SlotModule):
    """Any other module: it runs once for each slot, with the slot's tensors, on the slot's rows.

    Rows are the first axis of what it is given, each as one entry or as several that follow one another; what has
    another first axis than the first argument goes to every slot as it is.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        shapes: Mapping[str, torch.Size],
        stacks: Stacks,
        current: Callable[[], HeadPass],
        device: torch.device,
    ) -> None:
        super().__init__(name, shapes, stacks, current)
        _hollow(name, module, device)
        self._module = (module,)  # no child of this one: its own tensors are not used

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Tensor:
        run = self._current()
        rows = len(run.routing.slots)
        if x.shape[0] == 1 < rows:  # shared by all rows, such as numbers of positions
            x = x.expand(rows, *x.shape[1:])
        if x.shape[0] % rows or (x.dim() == 1 and len(x) != rows):
            raise CapacityError(
                f"module {self.name!r} of a head saw {x.shape[0]} leading entries for {rows} rows; "
                "it mixes rows and cannot have a copy for each adapter"
            )
        if len(run.groups) == 1:
            return self._call(run.groups[0][0], (x, *args), named)
        entries = x.shape[0]
        outputs = []
        for slot, index in run.groups:

            def cut(value: Any, index: Tensor = index) -> Any:
                mine = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == entries
                return value.unflatten(0, (rows, -1))[index].flatten(0, 1) if mine else value

            given = {key: cut(value) for key, value in named.items()}
            output = self._call(slot, tuple(map(cut, (x, *args))), given)
            outputs.append(output.unflatten(0, (len(index), -1)))
        whole = torch.cat(outputs)
        return (whole if run.back is None else whole[run.back]).flatten(0, 1)

    def _call(self, slot: int, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        tensors = {}
        for name, shape in self.shapes.items():
            stack, index = self._stacks[f"{self.name}.{name}"], corner(slot, shape)
            lent = isinstance(stack, nn.Parameter) and torch.is_grad_enabled()
            tensors[name] = _Lent.apply(stack, index) if lent else stack.detach()[index]  # type: ignore[no-untyped-call]
        dtype = next(iter(tensors.values())).dtype
        output = torch.func.functional_call(
            self._module[0],
            tensors,
            tuple(_cast(value, dtype) for value in args),
            {key: _cast(value, dtype) for key, value in named.items()},
        )
        if not isinstance(output, Tensor):
            raise AdapterError(
                f"module {self.name!r} of a head gives a {type(output).__name__}; a module that owns parameters and "
                "is no Linear layer must give one tensor of rows"
            )
        if isinstance(self._module[0], _NormBase):
            contiguous_gradient(output)
        return output


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point inputs in the head's dtype, which may be wider than the base's."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _hollow(name: str, module: nn.Module, device: torch.device) -> None:
    """Give back the memory of a module's own tensors, and bring to the device what it computed when it was built.

    Raises:
        AdapterError: what it computed then is lost, because it was built without memory.
    """
    for part in module.modules():
        for key, own in part._parameters.items():
            part._parameters[key] = None if own is None else nn.Parameter(own.to("meta"), requires_grad=False)
        for key, value in part._buffers.items():
            if value is None or key not in part._non_persistent_buffers_set:
                continue
            if value.is_meta:
                raise AdapterError(f"the head's {name} computes {key!r} when it is built, which is not supported")
            part._buffers[key] = value.to(device)
