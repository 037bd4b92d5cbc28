"""The heads of an engine's slots: room for each class of them, and how rows under it share passes.

    heads = PlacedHeads(engine)
    heads.reserve(HeadSpec("BertForSequenceClassification", 3))
    heads["BertForSequenceClassification"].init(slot, 3, generator)

A class gets its room when it is first asked for, and is then compared with the plain class once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import probe
from ray_lora.engine.buffers import Resident
from ray_lora.engine.heads import Head
from ray_lora.engine.own_norms import OwnNorms
from ray_lora.engine.probe.rows import Probed
from ray_lora.engine.sharing import Sharing
from ray_lora.errors import AdapterError, CapacityError
from ray_lora.task_spec import Attention


class Holder(Probed, Protocol):
    """As much of an engine as heads are placed in."""

    residents: dict[int, Resident]
    train: bool

    def own_norms(self, kind: Callable[[int], str | None]) -> OwnNorms: ...

    def read(self, slot: int) -> dict[str, Tensor]: ...

    def write(self, slot: int, tensors: Mapping[str, Tensor]) -> None: ...


class PlacedHeads(dict[str, Head]):
    """Heads by `HeadSpec.kind`.

    Attributes:
        norms: the batch norms of adapters that have their own; None where none has.
    """

    def __init__(self, engine: Holder) -> None:
        super().__init__()
        self.norms: OwnNorms | None = None
        self._engine = engine
        self._sharing: dict[tuple[str, Attention | None], Sharing] = {}

    def sharing(self, spec: HeadSpec) -> Sharing:
        """How rows share passes whose outputs a head of this class, which has its room, reads."""
        return self._sharing[spec.kind, spec.attention]

    def reserve(self, spec: HeadSpec) -> None:
        """Make room for heads of this class with up to `num_labels` labels, keeping what is resident.

        Raises:
            AdapterError: the class, read as asked, cannot be used with adapters on this base.
            CapacityError: a pack has begun with fewer labels.
        """
        old = self.get(spec.kind)
        if old is not None and old.labels >= spec.num_labels:
            old.reserve(spec.num_labels)
        else:
            self._place(spec, old)
        self._compare(spec)

    def _place(self, spec: HeadSpec, old: Head | None) -> None:
        engine = self._engine
        holders = [s for s, held in engine.residents.items() if held.head and held.head.kind == spec.kind]
        if old is not None and engine.train and holders:
            raise CapacityError(
                f"heads of {spec.num_labels} labels join a pack built for {old.labels}; "
                "start the pack with all label sets"
            )
        plain = self.get(spec.architecture)  # a pack has made room for the labels of all its jobs there
        most = spec.num_labels if plain is None else max(spec.num_labels, plain.labels)
        head = Head(engine.base, replace(spec, num_labels=most))
        head.reserve(spec.num_labels)
        if not head.targets & set(engine.layers):
            raise AdapterError(
                f"{head.architecture} shares no layer with base {engine.base.id!r}; choose a head for this base"
            )
        for held in (engine.residents[slot].head for slot in holders):
            head.reserve(held.num_labels if held else spec.num_labels)
        kept = {slot: engine.read(slot) for slot in holders}
        self[spec.kind] = head
        engine.buffers.place_head(head)
        if spec.norms:
            self._hold_norms(head)
        for slot, tensors in kept.items():
            engine.write(slot, tensors)

    def _hold_norms(self, head: Head) -> None:
        base = self._engine.base
        if self.norms is None:
            self.norms = self._engine.own_norms(self._normed)
        self.norms.add(head.kind, f"{base.prefix}.", head.stacks)

    def _normed(self, slot: int) -> str | None:
        """The kind of a slot's head, where it has norms of its own."""
        head = self._engine.residents[slot].head if slot else None
        return head.kind if head is not None and head.norms else None

    def _compare(self, spec: HeadSpec) -> None:
        name, known = spec.kind, self._sharing
        if (name, spec.attention) in known:
            return
        engine = self._engine
        found = engine.sharing.with_head(probe.of_head(engine, self[name], spec.attention))
        if found.refused:
            if all(name != other for other, _ in known):
                del self[name]
                engine.buffers.drop_head(name)
            raise AdapterError(f"{spec.architecture} on base {engine.base.id!r}: {found.refused}")
        known[name, spec.attention] = found
