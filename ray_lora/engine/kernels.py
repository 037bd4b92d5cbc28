"""The low-rank term (alpha/r) B A x for rows of many slots, and its gradients.

`lora_reference` is the paper's formula, one slot at a time (Hu et al., arXiv 2106.09685, eq. 3). `LoraTerm` computes
the same for all rows at once, adds it to the base layer's output, and adds the gradients straight into the stacked
gradient buffers, so that a backward touches only the slots of its own pass. Kernels know tensors and rows, not models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ray_lora.engine.routing import Routing

Scale: TypeAlias = Tensor | tuple[float, ...]  # of each block, or of each segment


def lora_reference(x: Tensor, base: Tensor, a: Tensor, b: Tensor, scaling: Tensor, slots: Tensor) -> Tensor:
    """W x + (alpha/r) B A x, slot by slot.

    Args:
        x: inputs [rows, m, in]. base: W x, [rows, m, out]. a: [slots, rank, in]. b: [slots, out, rank].
        scaling: alpha/r of each slot, [slots]. slots: slot of each row, [rows]; slot 0 adds nothing.
    """
    out = base.clone()
    for slot in slots.unique().tolist():
        if slot:
            mine = slots == slot
            out[mine] = base[mine] + scaling[slot] * (x[mine] @ a[slot].T @ b[slot].T)
    return out


def select(stack: Tensor, routing: Routing) -> Tensor:
    """The matrix of each of the routing's blocks from stack [slots, p, q]: [blocks, p, q], a view where it can be."""
    return stack.index_select(0, routing.owners) if routing.span is None else stack[routing.span]


def blocked(x: Tensor, routing: Routing) -> Tensor:
    """[rows, m, width] as [blocks, rows/blocks * m, width]."""
    return x.reshape(len(routing.owners), -1, x.shape[-1])


def accumulate(grad: Tensor, routing: Routing, value: Tensor) -> None:
    """Add gradients of each block's matrix, [blocks, p, q], to the stacked buffer [slots, p, q]."""
    if routing.span is not None:
        grad[routing.span].add_(value)
    else:
        grad.index_add_(0, routing.owners, value.to(grad.dtype))


def lora_add(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: Scale, routing: Routing, mask: Tensor | None = None
) -> tuple[Tensor, ...]:
    """y + scale * B A x for rows of many slots, added to y in place.

    Returns it with h = scale * A x, [blocks, rank, m'], and the matrices used; of segments it alone.
    Adding in place is safe where y is a linear layer's fresh output: no backward looks at it again.

    Args:
        x: [rows, m, in]. y: W x, rows * m * out values in the layer's own shape.
        a: [slots, max_rank, in]. b: [slots, out, max_rank]. scale: alpha/r of each block, [blocks, 1, 1], of x's dtype;
            of each segment a number.
        mask: dropout mask like x.
    """
    if not isinstance(scale, Tensor):
        return (_add_segments(x if mask is None else x * mask, y, a, b, scale, routing),)
    h, a_rows, b_rows = _down(x if mask is None else x * mask, a, b, scale, routing)
    rows = y.view(len(h), h.shape[2], -1)
    with torch.no_grad():
        rows.baddbmm_(h.transpose(1, 2), b_rows)
    return y, h, a_rows, b_rows


def _down(x: Tensor, a: Tensor, b: Tensor, scale: Tensor, routing: Routing) -> tuple[Tensor, ...]:
    """h = scale * A x, [blocks, rank, m'], and each block's A and B.

    The rank comes first: a product of few rows takes half of the time of one of few columns, and one of a single row
    half of that in float32.
    """
    a_rows, inputs = select(a[:, : routing.rank], routing), blocked(x, routing)
    b_rows = select(b.transpose(1, 2)[:, : routing.rank], routing)  # [blocks, rank, out], as the stack lies
    if inputs.shape[1] == 1 and inputs.dtype == torch.float32:
        return torch.bmm(inputs, a_rows.transpose(1, 2)).transpose(1, 2) * scale, a_rows, b_rows
    return torch.bmm(a_rows, inputs.transpose(1, 2)) * scale, a_rows, b_rows


def _add_segments(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: Sequence[float], routing: Routing, h: Tensor | None = None
) -> Tensor:
    """y [tokens, out] + scale * B A x, slot by slot and in place; A x goes to `h`, [tokens, rank], where it is given.

    A loop over slots is the fastest where a product's call costs little: float32 and float64 on processors.
    """
    rank, rows = routing.rank, y.view(len(x), -1)
    with torch.no_grad():
        for (slot, begin, end), factor in zip(routing.segments, scale, strict=True):
            if factor:
                down = a[slot, :rank].t()
                mine = torch.mm(x[begin:end], down, out=None if h is None else h[begin:end])
                rows[begin:end].addmm_(mine, b[slot, :, :rank].t(), alpha=factor)
    return y


def _segments_backward(
    g: Tensor,
    x: Tensor,
    h: Tensor,
    a: Tensor,
    b: Tensor,
    grads: tuple[Tensor, Tensor],
    routing: Routing,
    scale: Sequence[float],
) -> Tensor:
    """The gradient of x, [tokens, in]; those of A and B are added to `grads`, slot by slot."""
    rank, (grad_a, grad_b) = routing.rank, grads
    g_rows, dx = g.reshape(len(x), -1), torch.zeros_like(x)
    for (slot, begin, end), factor in zip(routing.segments, scale, strict=True):
        if factor:
            mine = g_rows[begin:end]
            gh = torch.mm(mine, b[slot, :, :rank]).mul_(factor)
            grad_b[slot].t()[:rank].addmm_(h[begin:end].t(), mine, alpha=factor)
            grad_a[slot, :rank].addmm_(gh.t(), x[begin:end])
            torch.mm(gh, a[slot, :rank], out=dx[begin:end])
    return dx


class LoraTerm(torch.autograd.Function):
    """`lora_add` with gradients; those of A and B go into the stacks' `.grad` buffers.

    `a_master` and `b_master` are passed so that autograd sees that something here is trained.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        a_master: Tensor,
        b_master: Tensor,
        a: Tensor,
        b: Tensor,
        scale: Scale,
        routing: Routing,
        mask: Tensor | None,
    ) -> Tensor:
        ctx.routing, ctx.grads, ctx.scale = routing, (a_master.grad, b_master.grad), None
        if not isinstance(scale, Tensor):
            ctx.scale, h = scale, x.new_zeros(len(x), routing.rank)
            ctx.save_for_backward(x, h, a, b, None, mask)
            return _add_segments(x if mask is None else x * mask, y, a, b, scale, routing, h)
        out, h, a_rows, b_rows = lora_add(x, y, a, b, scale, routing, mask)
        ctx.save_for_backward(x, h, a_rows, b_rows, scale, mask)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, h, a_rows, b_rows, scale, mask = ctx.saved_tensors
        routing, (grad_a, grad_b) = ctx.routing, ctx.grads
        if ctx.scale is not None:
            dropped = x if mask is None else x * mask
            gx = _segments_backward(g, dropped, h, a_rows, b_rows, ctx.grads, routing, ctx.scale)
            gx = gx if mask is None else gx * mask
            return gx if ctx.needs_input_grad[0] else None, g, None, None, None, None, None, None, None
        g_rows = g.reshape(len(h), h.shape[2], -1)  # [blocks, m', out]
        gh = torch.bmm(b_rows, g_rows.transpose(1, 2)) * scale  # [blocks, rank, m']
        inputs = blocked(x if mask is None else x * mask, routing)
        accumulate(grad_b.transpose(1, 2)[:, : routing.rank], routing, torch.bmm(h, g_rows))
        accumulate(grad_a[:, : routing.rank], routing, torch.bmm(gh, inputs))
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.bmm(gh.transpose(1, 2), a_rows).reshape(x.shape)
            if mask is not None:
                dx = dx * mask
        return dx, g, None, None, None, None, None, None, None


class Pick(torch.autograd.Function):
    """view(stack)[index] of a trained stack; its gradient is added straight into the stack's `.grad` buffer."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor, view: Callable[[Tensor], Tensor], *index: Tensor) -> Tensor:
        ctx.grad, ctx.index = None if stack.grad is None else view(stack.grad), index
        return view(stack)[index]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, ...]:
        if ctx.grad is not None:
            ctx.grad.index_put_(ctx.index, g.to(ctx.grad.dtype), accumulate=True)
        return (None, None, *[None] * len(ctx.index))


def pick(stack: Tensor, view: Callable[[Tensor], Tensor], *index: Tensor) -> Tensor:
    """Entries of a trained stack, with gradients where a pass has them."""
    picked: Tensor = Pick.apply(stack, view, *index)  # type: ignore[no-untyped-call]
    return picked
