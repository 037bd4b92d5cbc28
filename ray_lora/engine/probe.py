"""The probe: what rows of a base may share is found by comparing, not believed.

Each row alone, as the plain class computes it, against rows together as the engine does: end to end, padded, of one
length; of several adapters and of one. A row that is changed may move no other row's input of a target layer. The first
way of sharing that gives every row its own answer is taken; where none does, adapters are refused with the reason. It
runs once for each base and head class, and what it found is kept by the base's fingerprint (`sharing`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ray_lora.engine import architecture
from ray_lora.engine.accepted import accepted
from ray_lora.engine.layers import is_linear
from ray_lora.engine.routing import Routing
from ray_lora.engine.sharing import Lengths, Sharing, recall, remember
from ray_lora.errors import BaseModelError, RayLoraError

if TYPE_CHECKING:
    from ray_lora.bases.base import Base
    from ray_lora.engine.engine import AdapterEngine
    from ray_lora.engine.heads import Head

SIZES = (5, 11, 8, 11, 6)  # a prime number of rows, so that few other shapes divide by it
_SLOTS = (1, 0, 1, 0, 1)
_LENGTHS: tuple[Lengths, ...] = ("joined", "padded", "equal")
# how far two roundings of one answer may lie apart, for answers of the size of 1
_CLOSE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}

Inputs = Mapping[str, Tensor]
Answers = list[list[Tensor]]  # of each row, each of the outputs' tensors


def of_base(engine: AdapterEngine) -> Sharing:
    """How rows of this engine's base share passes. The engine holds no adapters yet."""
    name = _name_of(engine.base)
    known = recall(engine.base.fingerprint, name)
    if known is None and engine.base.device.type == "meta":
        return Sharing()  # nothing can be computed; whoever has weights will see
    if known is None:
        with torch.inference_mode():
            known = _Probe(engine).find_base()
        remember(engine.base.fingerprint, name, known)
    return known


def of_head(engine: AdapterEngine, head: Head) -> Sharing:
    """How rows with heads of this class share passes. Slot 0 of the head is used and left empty."""
    name = f"{_name_of(engine.base)}|{head.architecture}"
    known = recall(engine.base.fingerprint, name)
    if known is None and engine.base.device.type == "meta":
        return Sharing("joined")
    if known is None:
        with torch.inference_mode():
            known = _Probe(engine).find_head(head)
        remember(engine.base.fingerprint, name, known)
    return known


def is_known(base: Base, architecture: str) -> bool:
    """Whether the base and this head class were probed before."""
    name = _name_of(base)
    return all(recall(base.fingerprint, what) is not None for what in (name, f"{name}|{architecture}"))


def _name_of(base: Base) -> str:
    """What was probed: the class, its sizes and dtype."""
    shapes = [f"{name}{tuple(parameter.shape)}" for name, parameter in base.backbone.named_parameters()]
    sizes = hashlib.sha256("|".join(shapes).encode()).hexdigest()[:16]
    return f"{type(base.backbone).__name__}|{sizes}|{base.dtype}"


class _Probe:
    def __init__(self, engine: AdapterEngine) -> None:
        self.engine, self.base, self.backbone = engine, engine.base, engine._backbone
        self.close = _CLOSE[engine.base.dtype]

    # ---------------------------------------------------------------- the base

    def find_base(self) -> Sharing:
        """See `of_base`."""
        try:
            rows, even = self.base.examples(SIZES), self.base.examples([max(SIZES)] * len(SIZES))
        except BaseModelError as error:
            return Sharing("equal", refused=f"it cannot be compared with its plain class: {error}")
        try:
            self._alone(rows, 0)
        except Exception as error:  # a class may raise anything where it is not given what it expects
            return Sharing("equal", refused=f"its class gives no answer to a row alone: {_short(error)}")
        if refused := architecture.refuses(self.base.config):
            return Sharing("equal", refused=refused)
        uncalled = self._uncalled(rows)
        with self._adapter():
            return replace(self._find(rows, even), uncalled=uncalled)

    def _find(self, rows: Sequence[dict[str, Tensor]], even: Sequence[dict[str, Tensor]]) -> Sharing:
        """What rows of slot 0 and of the adapter in slot 1 may share."""
        begin: Lengths = "joined" if (why := architecture.own_lengths(self.base.config)) is None else "equal"
        apart = self._rowless(even)
        alone = {slot: self._alone(rows, slot) for slot in (0, 1)}
        if not self._same(alone[1], self._alone(rows, 1)):
            return Sharing(
                "equal", refused="its class answers the same row differently from call to call, or with no numbers"
            )
        if self._same(alone[0], alone[1]):
            return Sharing("equal", refused="adapters on its layers change none of its outputs")
        found = self._first(rows, even, _SLOTS, apart, alone, begin)
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
        for lengths in _LENGTHS[_LENGTHS.index(begin) :]:
            if lengths == "joined" and not (self.backbone.could_join and "input_ids" in rows[0]):
                continue
            mine = even if lengths == "equal" else rows
            expected = alone if lengths != "equal" else {slot: self._alone(even, slot) for slot in set(slots)}
            wanted = [expected[slot][row] for row, slot in enumerate(slots)]
            try:
                with self._without(apart):
                    got = self._together(mine, slots, lengths)
            except Exception as error:  # a class may raise anything at shapes that it was not made for
                reasons.append(f"{_SAID[lengths]}: {_short(error)}")
                continue
            if lengths == "joined" and architecture.has_windows(self.base.config) and not self.backbone.windows:
                reasons.append(f"{_SAID[lengths]}: its class hands no sliding window to its attention")
                continue
            if self._same(wanted, got):
                return Sharing(lengths, reason="; ".join(reasons))
            reasons.append(f"{_SAID[lengths]}: a row's answer differs from its answer alone")
        return "; ".join(reasons)

    def _alone(self, rows: Sequence[dict[str, Tensor]], slot: int) -> Answers:
        """Each row by itself, as the class computes it."""
        self.backbone.lay(joined=False)
        return [self._answers([row], self._run([row], [slot]))[0] for row in rows]

    def _together(self, rows: Sequence[dict[str, Tensor]], slots: Sequence[int], lengths: Lengths) -> Answers:
        self.backbone.lay(joined=lengths == "joined")
        return self._answers(rows, self._run(rows, slots))

    def _run(self, rows: Sequence[dict[str, Tensor]], slots: Sequence[int], first_token: bool = False) -> Any:
        batch = self.base.batch(rows)
        joined = self.backbone.join(batch, slots)
        inputs = {name: self.engine._cast(tensor) for name, tensor in batch.items()}
        return self.backbone.run(inputs, self.engine._routes(slots, joined), joined, first_token)

    def _answers(self, rows: Sequence[dict[str, Tensor]], outputs: Any) -> Answers:
        """Each row's part of every output, its padding cut off."""
        mask = self.base.batch(rows).get("attention_mask")
        found: Answers = []
        for row in range(len(rows)):
            kept = None if mask is None else mask[row].bool().to(self.base.device)
            mine = [value[row] for value in _tensors(outputs) if value.dim() and len(value) == len(rows)]
            cut = kept is not None and not bool(kept.all())
            found.append([value[kept] if cut and value.shape[:1] == kept.shape else value for value in mine])  # type: ignore[union-attr]
        return found

    def _same(self, one: Answers, other: Answers) -> bool:
        for mine, given in zip(one, other, strict=True):
            if [value.shape for value in mine] != [value.shape for value in given]:
                return False
            for a, b in zip(mine, given, strict=True):
                if a.is_floating_point() and a.numel():
                    size = max(1.0, float(a.abs().max()))
                    if not float((a - b).abs().max()) <= self.close * size:  # also when it is no number
                        return False
        return True

    # ---------------------------------------------------------------- an adapter in every layer

    @contextmanager
    def _adapter(self) -> Iterator[None]:
        """A pair of rank 1 in every layer of slot 1 while it lasts, large enough to move what the base says."""
        engine, draw = self.engine, torch.Generator().manual_seed(0)
        for layer in engine.layers.values():
            layer.ranks[1], engine._ranks[1] = 1, 1
            layer.scaling[1] = 1.0
            for part in (layer.A.data[1, :1], layer.B.data[1, :, :1]):
                fresh = torch.empty(part.shape).normal_(0, max(1, part[0].numel()) ** -0.5, generator=draw)
                part.copy_(fresh.to(part))
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
            self._run(rows[:1], [0])
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
            self._run(rows, [0] * len(rows))
        finally:
            for hook in hooks:
                hook.remove()
        return found

    # ---------------------------------------------------------------- a head

    def find_head(self, head: Head) -> Sharing:
        """See `of_head`."""
        from ray_lora.engine import narrow

        labels, first = head.labels, head.architecture in narrow.READERS
        routing = Routing.of(torch.zeros(len(SIZES), dtype=torch.long, device=self.base.device), self.engine._ranks)
        even = self.base.examples([max(SIZES)] * len(SIZES))
        held = self.backbone.joins
        try:
            with head.tried(labels) as values:
                plain = _plain_with(self.base, head, labels, values)
                reasons: list[str] = []
                for lengths in _LENGTHS[_LENGTHS.index(self.engine.sharing.lengths) :]:
                    rows = even if lengths == "equal" else self.base.examples(SIZES)
                    self.backbone.lay(joined=False)
                    alone = [self._plainly(plain, row) for row in rows]
                    self.backbone.lay(joined=held)
                    batch = {name: self.engine._cast(value) for name, value in self.base.batch(rows).items()}
                    outputs = head(self._run(rows, [0] * len(rows), first), batch, routing, labels)
                    if self._same(alone, self._answers(rows, outputs)):
                        return Sharing(lengths, reason="; ".join(reasons))
                    reasons.append(f"{_SAID[lengths]}: the head's answer differs from its answer alone")
        except RayLoraError as error:
            return Sharing("equal", refused=str(error))
        except Exception as error:  # a class may raise anything where it is not given what it expects
            return Sharing("equal", refused=f"its plain class cannot be compared: {_short(error)}")
        finally:
            self.backbone.lay(joined=held)
        extra = self._handed(plain, even[0])
        why = f"; it hands its backbone {', '.join(extra)}, which a shared pass does not have" if extra else ""
        return Sharing("equal", refused=f"its answers differ from those of the plain class{why}")

    def _plainly(self, plain: Any, row: dict[str, Tensor]) -> list[Tensor]:
        inputs = {name: self.engine._cast(value) for name, value in self.base.batch([row]).items()}
        self.backbone.rest()
        return self._answers([row], plain(**accepted(plain, inputs)))[0]

    def _handed(self, plain: Any, row: dict[str, Tensor]) -> list[str]:
        """Tensors that the plain class gives its backbone beside the row's inputs."""
        inputs = {name: self.engine._cast(value) for name, value in self.base.batch([row]).items()}
        seen: set[str] = set()

        def look(_: Any, args: Any, named: Mapping[str, Any]) -> None:
            seen.update(name for name, value in named.items() if isinstance(value, Tensor))

        hook = self.base.backbone.register_forward_pre_hook(look, with_kwargs=True)
        held = self.backbone.joins
        self.backbone.lay(joined=False)
        self.backbone.rest()
        try:
            plain(**accepted(plain, inputs))
        finally:
            hook.remove()
            self.backbone.lay(joined=held)
        return sorted(seen - set(inputs))


_RESTLESS = "its class answers the same row differently from call to call, or with what is no number"
_ROWLESS = "some layers are given no rows, or rows elsewhere than on the first axis"
_SAID = {"joined": "rows end to end", "padded": "padded rows", "equal": "rows of one length"}


def _plain_with(base: Base, head: Head, labels: int, values: Mapping[str, Tensor]) -> Any:
    """The plain class on the base's own backbone, its head with these values."""
    from ray_lora.bases.plain import HeadSpec

    plain: Any = base.plain(HeadSpec(head.architecture, labels))
    setattr(plain, base.prefix, torch.nn.Identity())  # its own is without memory
    cast = {
        name: value.to(base.device, base.dtype if value.is_floating_point() else value.dtype)
        for name, value in values.items()
    }
    plain.load_state_dict(cast, strict=False, assign=True)
    setattr(plain, base.prefix, base.backbone)
    return plain.eval()


def _tensors(outputs: Any) -> list[Tensor]:
    """Every tensor among a model's outputs, in their order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        return [tensor for value in outputs.values() for tensor in _tensors(value)]
    if isinstance(outputs, (tuple, list)):
        return [tensor for value in outputs for tensor in _tensors(value)]
    return (
        [value for value in vars(outputs).values() if isinstance(value, Tensor)] if hasattr(outputs, "__dict__") else []
    )


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


def _short(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
