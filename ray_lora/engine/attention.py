"""Attention of joined rows, handed to transformers' classes through their `AttentionInterface`.

Each row attends to its own tokens; sliding windows and causal order count from the row's own beginning. It knows rows
and heads; it knows nothing of slots or adapters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ray_lora.engine.joined import Bucket, Joined

NAME = "ray_lora_joined"
_HOLDER = "_ray_lora_pass"
# what a class may hand over beside query, key and value without changing what is computed here
_MEANS_NOTHING = frozenset(
    "dropout deterministic position_ids cache_position output_attentions use_cache return_dict".split()
)


class CannotJoinError(Exception):
    """The class asks for an attention that is not computed for joined rows."""


class Cached(Protocol):
    """What computes attention of new tokens whose rows have earlier ones that are kept."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: How) -> Tensor:
        """[1, tokens, heads, size of a value], in transformers' shapes."""
        ...


class JoinedPass:
    """The rows that the backbone's attention is to see; `current` is set for the time of a pass and its backward."""

    def __init__(self, backbone: Any) -> None:
        self.current: Joined | None = None
        self.cached: Cached | None = None  # keeps what the tokens before these were
        self.windows = False  # whether the class has handed one over
        self._backbone = backbone
        self._own = str(backbone.config._attn_implementation)
        self._use_cache = getattr(backbone.config, "use_cache", None)
        ALL_ATTENTION_FUNCTIONS.register(NAME, joined_attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *_, **__: None)
        backbone.set_attn_implementation(NAME)
        if self._use_cache:
            backbone.config.use_cache = False
        for module in backbone.modules():
            module.__dict__[_HOLDER] = self

    @staticmethod
    def possible(backbone: Any) -> bool:
        """Whether the class takes an attention of ours."""
        return bool(getattr(backbone, "_supports_attention_backend", False)) and backbone._can_set_attn_implementation()

    def undo(self) -> None:
        """Give the backbone its own attention back."""
        for module in self._backbone.modules():
            module.__dict__.pop(_HOLDER, None)
        self._backbone.set_attn_implementation(self._own)
        if self._use_cache:
            self._backbone.config.use_cache = self._use_cache


def joined_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """softmax(Q K^T scaling + mask) V of each row, in transformers' shapes.

    Args:
        query: [1, heads, tokens, size]. key, value: the same, perhaps of fewer heads.
        sliding_window: a token sees so many tokens, itself included (as far on both sides where order is not causal).
        softcap: scores become softcap * tanh(scores / softcap) (arXiv 2408.00118).

    Returns:
        [1, tokens, heads, size of a value].

    Raises:
        CannotJoinError: the class hands over something else that changes the scores.
    """
    holder: JoinedPass = module.__dict__[_HOLDER]
    joined, holder.windows = holder.current, holder.windows or sliding_window is not None
    odd = [name for name, given in others.items() if given is not None and name not in _MEANS_NOTHING]
    if joined is None or attention_mask is not None or odd or query.shape[2] != joined.count:
        what = f"attention with {', '.join(odd)}" if odd else "attention over other tokens than its rows'"
        raise CannotJoinError(f"its class {type(module).__name__} computes {what}")
    if key.shape[2] != joined.count:
        raise CannotJoinError(f"its class {type(module).__name__} attends to other tokens than its rows'")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if sliding_window is not None and not causal and getattr(module, "is_causal", True):
        sliding_window += 1  # a decoder's mask for both ways shows the token that is a window away, its causal one not
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    how = How(float(scale), causal, sliding_window, softcap)
    if holder.cached is not None:
        if not causal or not hasattr(module, "layer_idx"):
            raise CannotJoinError(f"its class {type(module).__name__} does not go from left to right, layer by layer")
        return holder.cached.attend(module.layer_idx, query, key, value, how), None  # type: ignore[arg-type]
    return _Attention.apply(query, key, value, joined, how), None  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class How:
    """What is computed of the scores."""

    scale: float
    causal: bool
    window: int | None
    softcap: float | None


@dataclass(frozen=True)
class _Places:
    """Where a bucket's rows lie among all tokens, head by head.

    Attributes:
        take: the place of each query among [tokens * heads], [rows * heads * width].
        behind: places of `take` behind a row's end.
        mask: what is added to the scores, [rows * heads, 1 or width, width]; None where nothing is.
    """

    take: Tensor
    behind: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(cls, bucket: Bucket, heads: int, how: How, dtype: torch.dtype) -> _Places:
        head = torch.arange(heads, device=bucket.tokens.device)
        take = bucket.tokens[:, None, :] * heads + head[:, None]  # [rows, heads, width]
        column = torch.arange(bucket.width, device=head.device)
        behind = column >= bucket.ends[:, None]  # [rows, width]
        hidden: Tensor | None = None if bucket.full else behind[:, None, :]
        if how.causal or how.window is not None:
            away = column[:, None] - column  # how far a key lies before its query
            far = away < 0 if how.causal else torch.zeros_like(away, dtype=torch.bool)
            if how.window is not None:
                far |= (away if how.causal else away.abs()) >= how.window
            # what lies behind a row's end sees itself: a softmax over nothing would be no number
            hidden = far.expand(bucket.rows, -1, -1) if hidden is None else (hidden | far) & (away != 0)
        mask = None
        if hidden is not None:
            mask = torch.zeros(hidden.shape, dtype=dtype, device=head.device).masked_fill_(hidden, -math.inf)
            mask = mask.repeat_interleave(heads, 0)
        nowhere = behind[:, None, :].expand(-1, heads, -1).flatten().nonzero().squeeze(1)
        return cls(take.flatten(), None if bucket.full else nowhere, mask)


class _Attention(torch.autograd.Function):
    """Bucket by bucket, with gradients; what belongs to no row takes no part and gets none."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, joined: Joined, how: How) -> Tensor:
        heads, few = query.shape[1], key.shape[1]
        kept: list[Tensor] = []
        contexts = []
        for number, bucket in enumerate(joined.buckets):
            places = _places(joined, number, heads, how, query.dtype)
            q = _take(query, joined, places.take, bucket)
            k, v = (_take(x, joined, _places(joined, number, few, how, query.dtype).take, bucket) for x in (key, value))
            k, v = (_repeat(x, few, heads) for x in (k, v))
            if places.mask is None or how.softcap is not None:
                scores = torch.bmm(q, k.transpose(1, 2)).mul_(how.scale)
            else:  # to add the mask afterwards takes as long as the product
                scores = torch.baddbmm(places.mask, q, k.transpose(1, 2), alpha=how.scale)
            if how.softcap is not None:
                kept.append(scores := torch.tanh(scores / how.softcap))
                scores = scores * how.softcap if places.mask is None else scores * how.softcap + places.mask
            weights = _softmax(scores)
            contexts.append(torch.bmm(weights, v))
            kept += [q, k, v, weights]
        ctx.save_for_backward(*kept)
        ctx.joined, ctx.how, ctx.heads, ctx.few = joined, how, heads, few
        return _join(contexts, joined, heads)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        joined, how, heads, few = ctx.joined, ctx.how, ctx.heads, ctx.few
        kept = list(ctx.saved_tensors)
        found: tuple[list[Tensor], ...] = ([], [], [])
        for number, bucket in enumerate(joined.buckets):
            places = _places(joined, number, heads, how, g.dtype)
            squashed = kept.pop(0) if how.softcap is not None else None
            q, k, v, weights = kept[:4]
            del kept[:4]
            out = _take(g.transpose(1, 2), joined, places.take, bucket)
            if places.behind is not None and joined.rows > 1:  # idle tokens of a single row have no gradient
                out.view(-1, out.shape[-1]).index_fill_(0, places.behind, 0)
            dv = torch.bmm(weights.transpose(1, 2), out)
            ds = _softmax_backward(torch.bmm(out, v.transpose(1, 2)), weights)
            if squashed is not None:
                ds = ds * (1 - squashed.square())
            dq = torch.bmm(ds, k).mul_(how.scale)
            dk = torch.bmm(ds.transpose(1, 2), q).mul_(how.scale)
            for gradients, gradient in zip(found, (dq, _gather(dk, few, heads), _gather(dv, few, heads)), strict=True):
                gradients.append(gradient)
        dq, dk, dv = (_join(x, joined, h) for x, h in zip(found, (heads, few, few), strict=True))
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None, None


def _places(joined: Joined, number: int, heads: int, how: How, dtype: torch.dtype) -> _Places:
    """Made once a pass: a base's layers are alike."""
    key = (number, heads, how.causal, how.window, dtype)
    if key not in joined.kept:
        joined.kept[key] = _Places.of(joined.buckets[number], heads, how, dtype)
    places: _Places = joined.kept[key]
    return places


def _take(x: Tensor, joined: Joined, take: Tensor, bucket: Bucket) -> Tensor:
    """[1, heads, tokens, size] as [rows * heads, width, size]; of a single row as it is, its idle tokens at its end."""
    if joined.rows == 1:
        return x[0]
    by_token = x[0].transpose(0, 1)  # as classes lay it out, so that this is a view
    return by_token.reshape(-1, x.shape[-1]).index_select(0, take).view(-1, bucket.width, x.shape[-1])


def _join(padded: list[Tensor], joined: Joined, heads: int) -> Tensor:
    """What `_take` gave of each bucket as [1, tokens, heads, size]; 0 where a token belongs to no row, lest one row's
    values that are no numbers reach another slot's stretch."""
    if joined.rows == 1:
        return padded[0].transpose(0, 1).unsqueeze(0)
    key = ("join", heads)
    if key not in joined.kept:
        back = torch.zeros(joined.count, heads, dtype=torch.int64, device=joined.places.device)
        at = 0
        for bucket in joined.buckets:
            column = torch.arange(bucket.width, device=back.device)
            row, inner = (column < bucket.ends[:, None]).nonzero(as_tuple=True)
            head = torch.arange(heads, device=back.device)
            back[bucket.tokens[row, inner]] = at + (row[:, None] * heads + head) * bucket.width + inner[:, None]
            at += bucket.rows * heads * bucket.width
        joined.kept[key] = back.flatten()
    size = padded[0].shape[-1]
    flat = padded[0].reshape(-1, size) if len(padded) == 1 else torch.cat([x.reshape(-1, size) for x in padded])
    tokens: Tensor = flat.index_select(0, joined.kept[key]).view(1, joined.count, heads, size)
    tokens[0].index_fill_(0, joined.idle, 0)
    return tokens


def _repeat(x: Tensor, few: int, heads: int) -> Tensor:
    """Keys or values of few heads for all queries' heads, [rows * heads, width, size]."""
    if few == heads:
        return x
    by_row = x.view(-1, few, *x.shape[1:])
    return by_row.repeat_interleave(heads // few, 1).flatten(0, 1)


def _gather(x: Tensor, few: int, heads: int) -> Tensor:
    """The gradient of what `_repeat` repeated."""
    if few == heads:
        return x
    return x.view(-1, heads // few, *x.shape[1:]).sum(1)


def _softmax(scores: Tensor) -> Tensor:
    exact = _softmax_dtype(scores)
    weights: Tensor = torch.softmax(scores.to(exact), -1).to(scores.dtype)
    return weights


def _softmax_backward(g: Tensor, weights: Tensor) -> Tensor:
    exact = _softmax_dtype(g)
    gradient: Tensor = torch._softmax_backward_data(g.to(exact), weights.to(exact), -1, exact).to(g.dtype)
    return gradient


def _softmax_dtype(x: Tensor) -> torch.dtype:
    """float32 for shorter numbers in rows of another width than 32: on a CPU those go number by number."""
    return x.dtype if x.shape[-1] % 32 == 0 else torch.promote_types(x.dtype, torch.float32)
