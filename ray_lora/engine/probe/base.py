"""The probe of a base: with an adapter in every layer, what rows of that adapter and of none may share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ray_lora.bases.quantised import float_weight
from ray_lora.engine import architecture
from ray_lora.engine.layers import is_linear
from ray_lora.engine.probe.rows import LENGTHS, SAID, SIZES, Answers, Probed, Rows, short
from ray_lora.engine.sharing import Lengths, Sharing
from ray_lora.errors import BaseModelError

_SLOTS = (1, 0, 1, 0, 1)
_RESTLESS = "its class answers the same row differently from call to call, or with what is no number"
_SHARES = (0.5, 2.0, 8.0)  # of the weight of a convolution: the first with which the base says something else
_UNMOVED = "adapters on its layers change none of its outputs"
_ROWLESS = "some layers are given no rows, or rows elsewhere than on the first axis"


class BaseProbe:
    """One engine's base; the engine holds no adapters yet."""

    def __init__(self, engine: Probed) -> None:
        self.engine, self.base, self.backbone, self.rows = engine, engine.base, engine._backbone, Rows(engine)

    def find(self) -> Sharing:
        """How rows share passes."""
        try:
            rows, even = self.base.examples(SIZES), self.base.examples([max(SIZES)] * len(SIZES))
        except BaseModelError as error:
            return Sharing("equal", refused=f"it cannot be compared with its plain class: {error}")
        try:
            self.rows.alone(rows, 0)
        except Exception as error:  # a class may raise anything where it is not given what it expects
            return Sharing("equal", refused=f"its class gives no answer to a row alone: {short(error)}")
        if refused := architecture.refuses(self.base.config):
            return Sharing("equal", refused=refused)
        uncalled = self._uncalled(rows)
        for share in _SHARES:
            with self._adapter(share):
                found = self._find(rows, even)
            if found is not None:
                return replace(found, uncalled=uncalled)
        return Sharing("equal", refused=_UNMOVED, uncalled=uncalled)

    def _find(self, rows: Sequence[dict[str, Tensor]], even: Sequence[dict[str, Tensor]]) -> Sharing | None:
        """What rows of slot 0 and of the adapter in slot 1 may share; None where that adapter changes nothing."""
        begin: Lengths = "joined" if (why := architecture.own_lengths(self.base.config)) is None else "equal"
        apart = self._rowless(even)
        alone = {slot: self.rows.alone(rows, slot) for slot in (0, 1)}
        if not self.rows.same(alone[1], self.rows.alone(rows, 1)):
            return Sharing("equal", refused=_RESTLESS)
        if self.rows.same(alone[0], alone[1]):
            return None
        with self._without(apart):
            fewer = {0: alone[0], 1: self.rows.alone(rows, 1) if apart else alone[1]}
        found = self._first(rows, even, _SLOTS, apart, fewer, begin)
        if isinstance(found, Sharing):
            together = self._first(rows, even, [1] * len(rows), (), {1: alone[1]}, begin=found.lengths)
            if not isinstance(together, Sharing):
                return Sharing("equal", refused=together)
            reason = "; ".join(filter(None, (why, found.reason, _ROWLESS if apart else "")))
            return Sharing(together.lengths, apart, reason)
        everywhere = tuple(self.engine.layers)
        together = self._first(rows, even, [1] * len(rows), (), {1: alone[1]}, begin)
        if isinstance(together, Sharing):
            return Sharing(together.lengths, everywhere, f"rows of several adapters in one pass: {found}")
        return Sharing("equal", refused=together)

    def _first(
        self,
        rows: Sequence[dict[str, Tensor]],
        even: Sequence[dict[str, Tensor]],
        slots: Sequence[int],
        apart: Sequence[str],
        alone: Mapping[int, Answers],
        begin: Lengths = "joined",
    ) -> Sharing | str:
        """The first way in which rows together get what they get alone; why not even the last, where none is."""
        reasons = []
        for lengths in LENGTHS[LENGTHS.index(begin) :]:
            if lengths == "joined" and not (self.backbone.could_join and "input_ids" in rows[0]):
                continue
            mine = even if lengths == "equal" else rows
            try:
                with self._without(apart):
                    got = self.rows.together(mine, slots, lengths)
                    here = alone if lengths != "equal" else {slot: self.rows.alone(even, slot) for slot in set(slots)}
            except Exception as error:  # a class may raise anything at shapes that it was not made for
                reasons.append(f"{SAID[lengths]}: {short(error)}")
                continue
            if lengths == "joined" and architecture.has_windows(self.base.config) and not self.backbone.windows:
                reasons.append(f"{SAID[lengths]}: its class hands no sliding window to its attention")
                continue
            if self.rows.same([here[slot][row] for row, slot in enumerate(slots)], got):
                return Sharing(lengths, reason="; ".join(reasons))
            reasons.append(f"{SAID[lengths]}: a row's answer differs from its answer alone")
        return "; ".join(reasons)

    # ---------------------------------------------------------------- an adapter in every layer

    @contextmanager
    def _adapter(self, share: float) -> Iterator[None]:
        """A pair of rank 1 in every layer of slot 1 while it lasts, large enough to move what the base says.

        Args:
            share: how large one is beside its convolution's weight: the norms behind make too much of more.
        """
        engine, draw = self.engine, torch.Generator().manual_seed(0)
        for layer in engine.layers.values():
            layer.ranks[1], engine._ranks[1] = 1, 1
            layer.scaling[1] = 1.0
            for part in (layer.A.data[1, :1], layer.B.data[1, :, :1]):
                fresh = torch.empty(part.shape).normal_(0, max(1, part[0].numel()) ** -0.5, generator=draw)
                part.copy_(fresh.to(part))
            if layer.geometry is not None:
                pair = layer.A.data[1, :1].norm() * layer.B.data[1, :, :1].norm()
                layer.scaling[1] = share * float(torch.linalg.vector_norm(float_weight(layer.module)) / pair)
        engine.refresh([1])
        try:
            yield
        finally:
            for layer in engine.layers.values():
                layer.ranks[1] = 0
                layer.scaling[1] = 0
            engine._ranks[1] = 0
            engine.buffers.clear(1)

    @contextmanager
    def _without(self, apart: Sequence[str]) -> Iterator[None]:
        """The adapter without its pairs in these layers."""
        for name in apart:
            self.engine.layers[name].ranks[1] = 0
        try:
            yield
        finally:
            for name in apart:
                self.engine.layers[name].ranks[1] = 1

    def _rowless(self, even: Sequence[dict[str, Tensor]]) -> tuple[str, ...]:
        """Layers whose input, [rows * m, ...], does not move with each row and with that row alone."""
        other = self.base.examples([max(SIZES)] * len(SIZES), seed=1)
        changed = 2
        moved = [*even[:changed], other[changed], *even[changed + 1 :]]
        self.backbone.lay(joined=False)
        before, after = self._inputs(even), self._inputs(moved)
        return tuple(
            name
            for name in self.engine.layers
            if len(before[name]) != len(after[name])
            or not all(_by_row(a, b, len(even), changed) for a, b in zip(before[name], after[name], strict=True))
        )

    def _uncalled(self, rows: Sequence[dict[str, Tensor]]) -> tuple[str, ...]:
        """Linear layers that a pass does not call."""
        called: set[str] = set()
        hooks = [
            module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
            for name, module in self.base.backbone.named_modules()
            if is_linear(module)
        ]
        try:
            self.rows.run(rows[:1], [0])
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(
            name for name, module in self.base.backbone.named_modules() if is_linear(module) and name not in called
        )

    def _inputs(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
        """What every target layer is given."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.engine.layers}
        hooks = [
            layer.module.register_forward_pre_hook(_keep(found[name])) for name, layer in self.engine.layers.items()
        ]
        try:
            self.rows.run(rows, [0] * len(rows))
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _by_row(before: Tensor, after: Tensor, rows: int, changed: int) -> bool:
    """Whether of inputs [rows * m, ...] the changed row moved and no other; or none, as where all of it is cut to 0."""
    if before.shape != after.shape or before.dim() == 0 or before.shape[0] % rows:
        return False
    moved = (before != after).reshape(rows, -1).any(1)
    moved[changed] = False
    return not bool(moved.any())


def _keep(found: list[Tensor]) -> Callable[..., None]:
    def hook(_: Any, args: tuple[Any, ...]) -> None:
        found.append(args[0].detach().clone())

    return hook
