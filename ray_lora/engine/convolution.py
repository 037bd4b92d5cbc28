"""The low-rank term of a convolution of any kind, (alpha/r) B (A * x), for rows of many slots, and its gradients.

A is a convolution of the layer's own stride, padding, dilation and kind into `rank` channels, B one of 1 x 1 behind it:
together the low-rank change of the layer's weight, [out, in / groups, *kernel]. In groups, A and B are those of that
weight too: A [rank, in / groups, *kernel] is every group's own, which PEFT's is not. Gradients of A and B are added
straight into the stacks' `.grad` buffers. It knows tensors and rows, not modules of a base.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ray_lora.bases.geometry import Geometry
from ray_lora.engine.kernels import accumulate, select
from ray_lora.engine.routing import Routing

_FEW = 256  # pixels of a block's input, up to which all blocks' A are one convolution in groups: calls are dear there


def low_rank(a: Tensor, b: Tensor, geometry: Geometry) -> Tensor:
    """B A as a weight of the layer's own layout; a [rank, in / groups, *kernel], b [out, rank]."""
    return geometry.laid((b @ a.flatten(1)).unflatten(1, a.shape[1:]))


def is_innermost(x: Tensor) -> bool:
    """Whether channels lie innermost in memory."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class ConvTerm(torch.autograd.Function):
    """y + scale * B (A * x), added to y in place: no backward of a convolution looks at its output.

    `a_master` and `b_master` [slots, max_rank, in, *kernel] and [slots, out, max_rank] are passed so that autograd sees
    that something here is trained; a and b are the same in the pass's dtype, scale is alpha/r of each block,
    [blocks, 1, 1]. `after` [out]: by what each channel of y was multiplied, where a norm is folded into it.
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
        scale: Tensor,
        routing: Routing,
        geometry: Geometry,
        after: Tensor | None,
    ) -> Tensor:
        term, kept, a_rows, b_rows = conv_add(x, y, a, b, scale, routing, geometry, after)
        ctx.save_for_backward(x, a_rows, b_rows, scale, after, kept)
        ctx.routing, ctx.geometry, ctx.grads, ctx.term = routing, geometry, (a_master.grad, b_master.grad), term
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, a_rows, b_rows, scale, after, kept = ctx.saved_tensors
        dx, da, db = ctx.term.back(g, x, a_rows, b_rows, ctx.geometry, kept, ctx.needs_input_grad[0])
        grad_a, grad_b = ctx.grads
        rank = ctx.routing.rank
        if grad_a is not None:
            accumulate(grad_a[:, :rank], ctx.routing, da)
            db = db * scale if after is None else db * scale * after
            accumulate(grad_b.transpose(1, 2)[:, :rank], ctx.routing, db)
        return dx, g, *[None] * 8


def conv_add(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    routing: Routing,
    geometry: Geometry,
    after: Tensor | None,
) -> tuple[Any, Tensor, Tensor, Tensor]:
    """What `ConvTerm` computes, added to y; gives what its backward reads: the kind of term, what that keeps, and each
    block's A and B, [blocks, rank, out]."""
    a_rows = select(a[:, : routing.rank], routing)
    b_rows = select(b.transpose(1, 2)[:, : routing.rank], routing) * scale
    if after is not None:
        b_rows = b_rows * after
    term = _Grouped if geometry.groups > 1 else _Plain
    return term, term.add(x, y, a_rows, b_rows, geometry), a_rows, b_rows


class _Plain:
    """Without groups: A as a convolution of each block's pictures, then B at every pixel."""

    @staticmethod
    def add(x: Tensor, y: Tensor, a: Tensor, b: Tensor, geometry: Geometry) -> Tensor:
        """Adds to y; gives A * x, [pictures, rank, *pixels]."""
        h = _down(x, a, geometry)
        if is_innermost(y):
            pixels = y.flatten(2).transpose(1, 2).view(len(b), -1, y.shape[1])
            pixels.baddbmm_(_inner(h, len(b)), b)
        else:
            each = b.repeat_interleave(len(y) // len(b), 0).transpose(1, 2)
            y.view(*y.shape[:2], -1).baddbmm_(each, h.flatten(2))
        return h

    @staticmethod
    def back(
        g: Tensor, x: Tensor, a: Tensor, b: Tensor, geometry: Geometry, h: Tensor, wanted: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """The gradients of x, [pictures, ...], of a, and of b without its scale."""
        blocks = len(a)
        if is_innermost(g):
            pixels = _inner(g, blocks)
            db = torch.bmm(_inner(h, blocks).transpose(1, 2), pixels)
            gh = torch.bmm(pixels, b.transpose(1, 2)).view(len(g), -1, a.shape[1]).transpose(1, 2)
        else:
            flat, each = g.flatten(2), b.repeat_interleave(len(g) // blocks, 0)
            db = torch.bmm(h.flatten(2), flat.transpose(1, 2)).unflatten(0, (blocks, -1)).sum(1)
            gh = torch.bmm(each, flat)
        dx, da = _down_back(gh.unflatten(2, h.shape[2:]), x, a, geometry, wanted)
        return dx, da, db


def _inner(x: Tensor, blocks: int) -> Tensor:
    """[pictures, channels, *pixels] as [blocks, pictures / blocks * pixels, channels]."""
    return x.flatten(2).transpose(1, 2).reshape(blocks, -1, x.shape[1])


def _down(x: Tensor, a: Tensor, geometry: Geometry) -> Tensor:
    """A * x, [pictures, rank, *pixels]; a [blocks, rank, in, *kernel]."""
    blocks, rank = a.shape[:2]
    if blocks == 1:
        return geometry.run(x, geometry.laid(a[0]))
    if geometry.is_point:
        x = strided(x, geometry)
        flat = a.flatten(1).view(blocks, rank, -1)
        if is_innermost(x):
            h = torch.bmm(_inner(x, blocks), flat.transpose(1, 2)).view(len(x), -1, rank).transpose(1, 2)
        else:
            h = torch.bmm(flat.repeat_interleave(len(x) // blocks, 0), x.flatten(2))
        found: Tensor = h.unflatten(2, x.shape[2:])
        return found
    if _together(x, blocks):
        weight = torch.cat([geometry.laid(one) for one in a]) if geometry.transposed else a.flatten(0, 1)
        return _apart(replace(geometry, groups=blocks).run(_beside(x, blocks), weight), blocks)
    parts = [geometry.run(mine, geometry.laid(one)) for mine, one in zip(x.chunk(blocks), a, strict=True)]
    return torch.cat(parts)


def _down_back(gh: Tensor, x: Tensor, a: Tensor, geometry: Geometry, wanted: bool) -> tuple[Tensor | None, Tensor]:
    """The gradients of x and a."""
    blocks, rank = a.shape[:2]
    mask = (wanted, True, False)
    if blocks == 1:
        dx, da = geometry.back(gh, x, geometry.laid(a[0]), mask)
        return dx, geometry.laid(da)[None]
    if geometry.is_point:
        flat, inputs = a.flatten(1).view(blocks, rank, -1), _inner(strided(x, geometry), blocks)
        pixels = _inner(gh, blocks)
        da = torch.bmm(pixels.transpose(1, 2), inputs).view_as(a)
        if not wanted:
            return None, da
        dx = torch.bmm(pixels, flat).view(len(x), -1, x.shape[1]).transpose(1, 2).unflatten(2, gh.shape[2:])
        return _spread(dx, x, geometry), da
    if _together(x, blocks):
        weight = torch.cat([geometry.laid(one) for one in a]) if geometry.transposed else a.flatten(0, 1)
        many = replace(geometry, groups=blocks)
        dx, dw = many.back(_beside(gh, blocks), _beside(x, blocks), weight, mask)
        da = torch.stack([geometry.laid(one) for one in dw.chunk(blocks)])
        return _apart(dx, blocks) if wanted else None, da
    pairs = [
        geometry.back(g, mine, geometry.laid(one), mask)
        for g, mine, one in zip(gh.chunk(blocks), x.chunk(blocks), a, strict=True)
    ]
    da = torch.stack([geometry.laid(dw) for _, dw in pairs])
    return torch.cat([dx for dx, _ in pairs]) if wanted else None, da


def strided(x: Tensor, geometry: Geometry) -> Tensor:
    """The pixels that a convolution of 1 x 1 reads."""
    if set(geometry.stride) == {1}:
        return x
    return x[tuple(slice(None, None, step) for step in (1, 1, *geometry.stride))]


def _spread(dx: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """Gradients of the pixels that were read, and zeros between them."""
    if set(geometry.stride) == {1}:
        return dx
    whole = torch.zeros_like(x)
    strided(whole, geometry).copy_(dx)
    return whole


def _together(x: Tensor, blocks: int) -> bool:
    """Whether a convolution in groups beats one call for each block."""
    return x[0, 0].numel() * (len(x) // blocks) <= _FEW


def _beside(x: Tensor, blocks: int) -> Tensor:
    """[blocks * m, channels, ...] as [m, blocks * channels, ...]."""
    m = len(x) // blocks
    if m == 1:
        return x.reshape(1, -1, *x.shape[2:])
    beside: Tensor = x.unflatten(0, (blocks, m)).transpose(0, 1).flatten(1, 2)
    return beside


def _apart(x: Tensor, blocks: int) -> Tensor:
    """[m, blocks * channels, ...] as [blocks * m, channels, ...]."""
    apart: Tensor = x.unflatten(1, (blocks, -1)).transpose(0, 1).flatten(0, 1)
    return apart


class _Grouped:
    """In groups: each block's B A as one weight, with which the layer's own convolution runs."""

    @staticmethod
    def add(x: Tensor, y: Tensor, a: Tensor, b: Tensor, geometry: Geometry) -> Tensor:
        """Adds to y; gives the weights, [blocks, ...] in the layer's layout."""
        weights = torch.stack([low_rank(one, out.t(), geometry) for one, out in zip(a, b, strict=True)])
        blocks = len(a)
        if blocks > 1 and _together(x, blocks):
            many = replace(geometry, groups=geometry.groups * blocks)
            y.add_(_apart(many.run(_beside(x, blocks), weights.flatten(0, 1)), blocks))
        else:
            for mine, out, weight in zip(x.chunk(blocks), y.chunk(blocks), weights, strict=True):
                out.add_(geometry.run(mine, weight))
        return weights

    @staticmethod
    def back(
        g: Tensor, x: Tensor, a: Tensor, b: Tensor, geometry: Geometry, weights: Tensor, wanted: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """The gradients of x, of a, and of b without its scale."""
        blocks, mask = len(a), (wanted, True, False)
        if blocks > 1 and _together(x, blocks):
            many = replace(geometry, groups=geometry.groups * blocks)
            together, dw = many.back(_beside(g, blocks), _beside(x, blocks), weights.flatten(0, 1), mask)
            changes = dw.unflatten(0, (blocks, -1))
            dx = _apart(together, blocks) if wanted else None
        else:
            pairs = [geometry.back(*one, mask) for one in zip(g.chunk(blocks), x.chunk(blocks), weights, strict=True)]
            changes = torch.stack([dw for _, dw in pairs])
            dx = torch.cat([dx for dx, _ in pairs]) if wanted else None
        flat = torch.stack([geometry.laid(change) for change in changes]).flatten(2)  # [blocks, out, in * kernel]
        da = torch.bmm(b, flat).view_as(a)
        return dx, da, torch.bmm(a.flatten(2), flat.transpose(1, 2))
