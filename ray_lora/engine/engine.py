"""The engine: a frozen base whose target layers hold stacked adapters; each row of a batch names its slot.

W x + (alpha/r) B A x, for every row with its own A and B. Slot 0 is the bare base. The engine knows tensors and slots;
it knows nothing of tasks, files or Ray.

    engine = AdapterEngine(base, slots=8)
    slot = engine.load(Adapter.load(folder))
    for rows, outputs in engine.forward(inputs, slots=torch.tensor([0, slot, slot])): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ray_lora.adapters.adapter import Adapter, Card, layer_rank, layer_scaling
from ray_lora.adapters.peft_folder import PREFIX, split
from ray_lora.bases.base import Base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import brought, narrow, probe, targets
from ray_lora.engine.attention import Cached
from ray_lora.engine.backbone import Backbone
from ray_lora.engine.buffers import Buffers, Resident
from ray_lora.engine.joined import Joined
from ray_lora.engine.own_norms import OwnNorms
from ray_lora.engine.placed_heads import PlacedHeads
from ray_lora.engine.router import Router
from ray_lora.engine.routing import Routes, Routing, take_rows
from ray_lora.engine.sharing import Sharing
from ray_lora.engine.side_by_side import SideBySide
from ray_lora.errors import AdapterError, CapacityError
from ray_lora.recipe import LoraSpec


class AdapterEngine:
    """A base with `slots` places for adapters of ranks up to `max_rank`. A base has one engine until it is closed.

    Args:
        base: the loaded base; its modules get forward hooks, and its linear layers' weights lie packed meanwhile.
        slots: adapters that can be resident at once, beside the bare base in slot 0.
        max_rank: the largest rank a slot can hold.
        train: keep gradient buffers.
        embeddings: let Embedding layers hold adapters too (their stacks are as long as the vocabulary).
    """

    def __init__(
        self, base: Base, *, slots: int, max_rank: int = 64, train: bool = False, embeddings: bool = False
    ) -> None:
        if slots < 1 or max_rank < 1:
            raise CapacityError(f"an engine needs at least one slot and rank 1; got slots={slots}, max_rank={max_rank}")
        Backbone.check(base)
        self.base, self.slots, self.max_rank, self.train = base, slots, max_rank, train
        self.residents: dict[int, Resident] = {}
        self.heads = PlacedHeads(self)
        self.dropout: dict[int, float] = {}
        self.layers = targets.find_layers(base.backbone, slots + 1, embeddings)
        self.buffers = Buffers(
            self.layers, slots=slots, max_rank=max_rank, dtype=base.dtype, device=base.device, train=train
        )
        self.flat, self.grad = self.buffers.flat, self.buffers.grad
        self.head_flat, self.head_grad = self.buffers.head_flat, self.buffers.head_grad
        self._ranks = [0] * (slots + 1)
        self._beside = SideBySide.of(self.layers.values(), self.buffers.versions, base)
        self._router = Router(self._ranks, self.buffers, self.dropout, base.device, self._beside)
        self._backbone = Backbone(base, self.layers)
        self.sharing = probe.of_base(self)
        self._backbone.pack(train, self.sharing.uncalled)
        self._backbone.lay(joined=self.sharing.lengths == "joined")

    def close(self) -> None:
        """Give the base back as it was."""
        self._backbone.undo()

    # ---------------------------------------------------------------- what a pass computes

    def forward(
        self, inputs: Mapping[str, Tensor], slots: Tensor, draws: Tensor | None = None
    ) -> list[tuple[Tensor, Any]]:
        """One pass over rows of any slots.

        Args:
            inputs: the backbone's inputs, each [rows, ...].
            slots: slot of each row, [rows].
            draws: a number for each row that fixes what its adapter drops (`dropout.draw_of`), [rows]; None drops
                nothing.

        Returns:
            (row indices, outputs) for each kind of head among the rows; slots without a head give the backbone's
            outputs.
        """
        owners: list[int] = slots.tolist()
        self._check(owners, inputs)
        joined = self._backbone.join(inputs, owners)
        inputs = self.cast(inputs)
        slots = slots.to(self.base.device)
        by_head = self._by_head(owners)
        first_token = all(spec is not None and spec.architecture in narrow.READERS for spec in by_head)
        both_ways = self.reads_both_ways(owners[0])
        hidden = self._backbone.run(inputs, self._routes(owners, joined, draws), joined, first_token, both_ways)
        results = []
        for spec, rows in by_head.items():
            index = torch.tensor(rows, device=self.base.device)
            whole = len(rows) == len(slots)
            outputs = hidden if whole else take_rows(hidden, index)
            if spec is not None:
                mine = inputs if whole else {name: tensor[index] for name, tensor in inputs.items()}
                routing = Routing.of(slots if whole else slots[index], self._ranks)
                outputs = self.heads[spec.kind](outputs, mine, routing, spec.num_labels)
            results.append((index, outputs))
        return results

    def sharing_of(self, slot: int) -> Sharing:
        """How rows of a slot share passes: as the base allows, and its head."""
        head = self.residents[slot].head if slot else None
        return self.sharing if head is None else self.heads.sharing(head)

    def reads_both_ways(self, slot: int) -> bool:
        """Whether each token of this slot's rows sees all of its row where the base's class lets it see what lies
        before it; such rows share no pass with others."""
        head = self.residents[slot].head if slot else None
        return head is not None and head.attention == "bidirectional"

    def sharing_under(self, head: HeadSpec) -> Sharing:
        """How the bare base's rows share passes whose outputs a head of this class reads."""
        self.heads.reserve(head)
        return self.heads.sharing(head)

    def passes_alone(self, slot: int) -> bool:
        """Whether rows of this slot share no pass with other adapters' rows."""
        return bool(slot) and self.sharing.passes_alone(self.residents[slot].targets)

    def hidden(self, inputs: Mapping[str, Tensor], slots: Tensor, head: HeadSpec | None = None) -> Any:
        """The backbone's outputs for rows of any slots, without heads; of each row no more than `head` reads, if one is
        given."""
        owners: list[int] = slots.tolist()
        self._check(owners, inputs)
        joined = self._backbone.join(inputs, owners)
        first_token = head is not None and head.architecture in narrow.READERS
        both_ways = self.reads_both_ways(owners[0]) if head is None else head.attention == "bidirectional"
        return self._backbone.run(self.cast(inputs), self._routes(owners, joined), joined, first_token, both_ways)

    def joined(self, mask: Tensor, owners: Sequence[int], writes: bool = False) -> Joined:
        """How new tokens of rows of these slots lie end to end; `mask` [rows, longest] is not 0 where there is one.

        Args:
            writes: for `advance`, which has no gradients.
        """
        beside = writes and self._beside is not None
        found = self._backbone.join({"input_ids": mask, "attention_mask": mask}, owners, beside)
        assert found is not None
        return found

    def advance(self, ids: Tensor, positions: Tensor, owners: Sequence[int], joined: Joined, cached: Cached) -> Tensor:
        """The backbone's last hidden states of new tokens, [1, tokens, hidden], of rows of any slots whose earlier
        tokens are kept; `decoding` asks for them."""
        return self._backbone.advance(ids, positions, self._routes(owners, joined), joined, cached)

    def next_tokens(self, inputs: Mapping[str, Any], owners: Sequence[int], cache: Any) -> Any:
        """The backbone's outputs for the next tokens of rows of any slots; `written` asks for them."""
        self._check(owners, {})
        return self._backbone.next_tokens(inputs, self._routes(owners, None), cache)

    def cast(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs as a pass is given them: on the base's device, numbers in its dtype."""
        return {name: self._cast(tensor) for name, tensor in inputs.items()}

    def _check(self, owners: Sequence[int], inputs: Mapping[str, Tensor]) -> None:
        """CapacityError for a slot that is empty, and for rows that may not share a pass (`inference.predict.passes`
        parts them)."""
        distinct = set(owners)
        unknown = sorted(distinct - set(self.residents) - {0})
        if unknown:
            raise CapacityError(
                f"slots {unknown} hold no adapter; load one or use a resident slot of {self.resident_slots}"
            )
        if len({self.reads_both_ways(slot) for slot in distinct}) > 1:
            raise CapacityError(
                "rows that are read both ways share no pass with rows that are read from left to right; give each a "
                "pass of its own"
            )
        targets = {slot: self.residents[slot].targets if slot else () for slot in distinct}
        mask = inputs.get("attention_mask")
        alike = mask is None or bool(mask.all())
        for slot in distinct:
            self.sharing_of(slot).check(targets, alike, self.base.id)

    def _routes(self, owners: Sequence[int], joined: Joined | None, draws: Tensor | None = None) -> Routes | None:
        """None where every row is the bare base's."""
        return self._router.routes(owners, joined, draws) if any(owners) else None

    def _cast(self, tensor: Tensor) -> Tensor:
        floating = tensor.is_floating_point()
        return tensor.to(self.base.device, self.base.dtype if floating else tensor.dtype)

    def _by_head(self, slots: Sequence[int]) -> dict[HeadSpec | None, list[int]]:
        groups: dict[HeadSpec | None, list[int]] = {}
        for row, slot in enumerate(slots):
            groups.setdefault(self.residents[slot].head if slot else None, []).append(row)
        return groups

    # ---------------------------------------------------------------- slots

    @property
    def resident_slots(self) -> list[int]:
        return sorted(self.residents)

    @property
    def free_slots(self) -> list[int]:
        return [slot for slot in range(1, self.slots + 1) if slot not in self.residents]

    def init(self, config: LoraSpec, head: HeadSpec | None, seed: int, peft_type: str | None = None) -> int:
        """A fresh adapter in a free slot, initialised as PEFT does: A kaiming-uniform, B zero, head normal, or begun
        from the base's own where its files hold one of that size.

        Raises:
            RecipeError: targets match nothing, or a rank is beyond a layer's width or `max_rank`.
            CapacityError: no slot is free.
        """
        self._check_usable()
        head = targets.with_norms(head, config)
        if head is not None:
            self.heads.reserve(head)
        names = self.match(config, head)
        prefix = f"{self.base.prefix}." if head is not None else ""
        ranks = {name: layer_rank(config, prefix + name) for name in names}
        slot = self._claim(Resident(config, head, names, peft_type, prefix), ranks)
        generator = torch.Generator().manual_seed(seed)
        for name in names:
            self.layers[name].init(slot, generator)
        if head is not None:
            self.heads[head.kind].init(slot, head.num_labels, generator, head.labels)
        self.drop(slot, config.lora_dropout)
        self.refresh([slot])
        return slot

    def drop(self, slot: int, share: float) -> None:
        """The share of what a slot's low-rank layers read that passes with draws drop."""
        if share:
            self.dropout[slot] = share

    def load(self, adapter: Adapter) -> int:
        """Put an adapter into a free slot; returns the slot. One without a head answers with the base's own, as in
        plain PEFT, where the base's files hold one for the adapter's class.

        Raises:
            AdapterError: a layer, a shape, a rank or the head does not fit this base and engine.
            BaseModelError: the adapter was trained on another base.
            CapacityError: no slot is free.
        """
        self._check_usable()
        brought.check_base(adapter, self.base)
        head = brought.head_of(adapter, self.base, self.heads)
        prefix = brought.prefix_of(adapter, self.base)
        brought.check_pairs(adapter.layers, prefix, self.base, self.layers, self.max_rank)
        if head is not None:
            self.heads.reserve(head)
        tensors = adapter.tensors
        if head is not None and not adapter.head:
            own = self.heads[head.kind].trained(head.num_labels)
            tensors |= {PREFIX + name: tensor for name, tensor in own.items()}
        ranks = {name.removeprefix(prefix): pair.rank for name, pair in adapter.layers.items()}
        slot = self._claim(Resident(adapter.config, head, tuple(ranks), adapter.peft_type, prefix), ranks)
        self.write(slot, tensors)
        self.refresh([slot])
        return slot

    def export(self, slot: int, card: Card | None = None) -> Adapter:
        """The slot's adapter, copied, with the base's id and fingerprint in its card."""
        resident = self.residents[slot]
        layers, head = split(self.read(slot), f"slot {slot}")
        modules = self.heads[resident.head.kind].modules_to_save if resident.head else ()
        origin: dict[str, str | None] = {
            "base": self.base.id,
            "base_fingerprint": self.base.fingerprint,
            "base_dtype": self.base.quantised,
        }
        if resident.head is not None:
            origin |= {"architecture": resident.head.architecture, "attention": resident.head.attention}
        beyond = tuple(
            f"{resident.prefix}{name}: {why}" for name in resident.targets if (why := self.layers[name].beyond)
        )
        card = (card or Card()).model_copy(update=origin | {"beyond_peft": beyond})
        return Adapter(resident.config, layers, head, card, resident.peft_type, modules)

    def evict(self, slot: int) -> None:
        """Empty a slot; its tensors become zero."""
        if slot not in self.residents:
            raise CapacityError(f"slot {slot} holds no adapter; resident slots are {self.resident_slots}")
        del self.residents[slot]
        self.dropout.pop(slot, None)
        self._ranks[slot] = 0
        for layer in self.layers.values():
            layer.ranks[slot] = 0
            layer.scaling[slot] = 0
        self.buffers.clear(slot)

    def _check_usable(self) -> None:
        if self.sharing.refused:
            raise AdapterError(f"base {self.base.id!r} cannot be used with adapters: {self.sharing.refused}")

    def _claim(self, resident: Resident, ranks: Mapping[str, int]) -> int:
        """A free slot, marked as this resident's."""
        if not self.free_slots:
            raise CapacityError(f"all {self.slots} slots are taken; evict one or build the engine with more slots")
        slot = self.free_slots[0]
        self.residents[slot] = resident
        for name, rank in ranks.items():
            self.layers[name].ranks[slot] = rank
            self.layers[name].scaling[slot] = layer_scaling(resident.config, resident.prefix + name, rank)
        self._ranks[slot] = max(ranks.values(), default=0)
        return slot

    def match(self, config: LoraSpec, head: HeadSpec | None) -> tuple[str, ...]:
        """Backbone layers that `target_modules` names in the plain class, by PEFT's rules.

        Raises:
            RecipeError: nothing matches, a match cannot hold an adapter, or a rank is too large.
        """
        head = targets.with_norms(head, config)
        if head is not None and head.kind not in self.heads:
            self.heads.reserve(head)
        known = None if head is None else self.heads[head.kind]
        return targets.match(config, known, self.base, self.layers, self.max_rank)

    def reserve_head(self, spec: HeadSpec) -> None:
        """As `PlacedHeads.reserve`."""
        self.heads.reserve(spec)

    def own_norms(self, kind: Callable[[int], str | None]) -> OwnNorms:
        """Have rows normalised by their slots' own batch norms from now on; `kind` gives that of a slot's head, None
        where the base's norms count."""
        norms = OwnNorms(self.base.backbone, self._backbone.routes, kind)
        self._backbone.give_norms(norms)
        return norms

    def measure_norms(self, passes: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Statistics of the bare base's batch norms on other rows, by their names in the plain class.

        Args:
            passes: the backbone's inputs, each [rows, ...]; an adapter with norms of its own is resident.
        """
        assert self.heads.norms is not None
        with torch.inference_mode(), self.heads.norms.measured() as found:
            for inputs in passes:
                self.hidden(inputs, torch.zeros(len(next(iter(inputs.values()))), dtype=torch.long))
        return {f"{self.base.prefix}.{name}": value for name, value in found.items()}

    # ---------------------------------------------------------------- a slot's numbers

    def read(self, slot: int, flats: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Copies of the slot's tensors under PEFT's file keys, cut to the adapter's ranks and labels.

        Args:
            flats: buffers of gradients or moments, which hold nothing for what is never trained.
        """
        views = self._views(slot, flats)
        return {key: view.detach().clone(memory_format=torch.contiguous_format) for key, view in views.items()}

    def write(self, slot: int, tensors: Mapping[str, Tensor], flats: Sequence[Tensor] | None = None) -> None:
        """Set the slot's tensors from PEFT's keys; keys and shapes must be exactly those `read` gives."""
        views = self._views(slot, flats)
        if set(views) != set(tensors):
            odd = sorted(set(views) ^ set(tensors))[:3]
            raise AdapterError(f"tensors do not fit the slot's layout: {odd} are missing or unknown")
        for key, view in views.items():
            if tensors[key].shape != view.shape:
                given, needed = tuple(tensors[key].shape), tuple(view.shape)
                raise AdapterError(f"tensor {key!r} is {given}, the slot needs {needed}")
        with torch.no_grad():
            for key, view in views.items():
                view.copy_(tensors[key])
        self.buffers.versions[slot] += 1

    def refresh(self, slots: Iterable[int]) -> None:
        """Copy trained values of these slots into the pass's dtype."""
        self.buffers.refresh(slots)

    def _views(self, slot: int, flats: Sequence[Tensor] | None) -> dict[str, Tensor]:
        resident = self.residents[slot]
        head = self.heads[resident.head.kind] if resident.head else None
        return self.buffers.views(slot, resident, head, flats)
