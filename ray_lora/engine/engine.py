"""The engine: a frozen base whose target layers hold stacked adapters; each row of a batch names its slot.

W x + (alpha/r) B A x, for every row with its own A and B. Slot 0 is the bare base. The engine knows tensors and slots; it
knows nothing of tasks, files or Ray. All stacked tensors are views of a few flat buffers [slots, numbers], so that an
optimizer, an all-reduce or a checkpoint deals with one row a slot.

    engine = AdapterEngine(base, slots=8)
    slot = engine.load(Adapter.load(folder))
    for rows, outputs in engine.forward(inputs, slots=torch.tensor([0, slot, slot])): ...
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ray_lora.adapter import Adapter, Card, LowRank, layer_rank, layer_scaling, split
from ray_lora.base import Base
from ray_lora.engine.heads import Head, HeadSpec
from ray_lora.engine.layers import TargetLayer, refusal
from ray_lora.engine.routing import Routing
from ray_lora.errors import AdapterError, BaseModelError, CapacityError, RecipeError, did_you_mean
from ray_lora.recipe import LoraSpec

_ARCHITECTURES = {  # PEFT's task_type -> the plain class, for folders that plain PEFT wrote
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


@dataclass(frozen=True)
class Resident:
    """What one slot holds."""

    config: LoraSpec
    head: HeadSpec | None
    targets: tuple[str, ...]  # backbone module names
    peft_type: str | None
    prefix: str  # "bert." where the plain class holds the backbone under a name, else ""


class AdapterEngine:
    """A base with `slots` places for adapters of ranks up to `max_rank`.

    Args:
        base: the loaded base; its modules get forward hooks and are otherwise untouched.
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
        self.base, self.slots, self.max_rank, self.train = base, slots, max_rank, train
        self.residents: dict[int, Resident] = {}
        self.heads: dict[str, Head] = {}
        self.head_flat: dict[str, Tensor] = {}
        self.head_grad: dict[str, Tensor] = {}
        self.dropout: dict[int, tuple[float, torch.Generator]] = {}
        self.layers = self._find_layers(embeddings)
        self._ranks = [0] * (slots + 1)
        self._routing: Routing | None = None
        self._allocate()
        for layer in self.layers.values():
            layer.attach(lambda: self._routing)

    def close(self) -> None:
        """Take the hooks off the base."""
        for layer in self.layers.values():
            layer.module._forward_hooks.clear()

    # ---------------------------------------------------------------- what a pass computes

    def forward(self, inputs: Mapping[str, Tensor], slots: Tensor) -> list[tuple[Tensor, Any]]:
        """One pass over rows of any slots.

        Args:
            inputs: the backbone's inputs, each [rows, ...].
            slots: slot of each row, [rows].

        Returns:
            (row indices, outputs) for each kind of head among the rows; slots without a head give the backbone's outputs.
        """
        inputs = {name: self._cast(tensor) for name, tensor in inputs.items()}
        slots = slots.to(self.base.device)
        hidden = self._run_backbone(inputs, slots)
        results = []
        for head, rows in self._by_head(slots.tolist()).items():
            index = torch.tensor(rows, device=self.base.device)
            whole = len(rows) == len(slots)
            mine = hidden if whole else take_rows(hidden, index)
            if head is not None:
                chosen = dict(inputs) if whole else {name: tensor[index] for name, tensor in inputs.items()}
                routing = Routing.of(slots if whole else slots[index], self._ranks)
                self._routing = replace(routing, labels=head.num_labels)
                mine = self.heads[head.architecture](mine, chosen)
            results.append((index, mine))
        return results

    def hidden(self, inputs: Mapping[str, Tensor], slots: Tensor) -> Any:
        """The backbone's outputs for rows of any slots, without heads."""
        return self._run_backbone({name: self._cast(t) for name, t in inputs.items()}, slots.to(self.base.device))

    def _run_backbone(self, inputs: Mapping[str, Tensor], slots: Tensor) -> Any:
        unknown = sorted(set(slots.tolist()) - set(self.residents) - {0})
        if unknown:
            raise CapacityError(f"slots {unknown} hold no adapter; load one or use a resident slot of {self.resident_slots}")
        dropout = self.dropout if torch.is_grad_enabled() else {}
        self._routing = Routing.of(slots, self._ranks, dropout) if bool(slots.any()) else None
        return self.base.backbone(**inputs)

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
        """A fresh adapter in a free slot, initialised as PEFT does: A kaiming-uniform, B zero, head normal.

        Raises:
            RecipeError: targets match nothing, or a rank is beyond a layer's width or `max_rank`.
            CapacityError: no slot is free.
        """
        if head is not None:
            self.reserve_head(head)
        targets = self.match(config, head)
        slot = self._claim(config, head, targets, peft_type)
        generator = torch.Generator().manual_seed(seed)
        for name in targets:
            layer, rank = self.layers[name], layer_rank(config, name)
            pair = layer.B if layer.embedding else layer.A
            fresh = torch.empty(layer.shape.b, rank) if layer.embedding else torch.empty(rank, *layer.shape.a)
            if layer.embedding:
                fresh.normal_(generator=generator)
                pair.data[slot, :, :rank] = fresh.to(pair)
            else:
                nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
                pair.data[slot, :rank] = fresh.to(pair)
        if head is not None:
            for linear in self.heads[head.architecture].linears:
                width = head.num_labels if linear.per_label else linear.out_features
                fresh = torch.empty(width, linear.in_features)
                fresh.normal_(0, self.heads[head.architecture].initializer_range, generator=generator)
                linear.weight.data[slot, :width] = fresh.to(linear.weight)
        if config.lora_dropout:
            self.dropout[slot] = (config.lora_dropout, generator)
        self.refresh([slot])
        return slot

    def load(self, adapter: Adapter) -> int:
        """Put an adapter into a free slot; returns the slot.

        Raises:
            AdapterError: a layer, a shape, a rank or the head does not fit this base and engine.
            BaseModelError: the adapter was trained on another base.
            CapacityError: no slot is free.
        """
        recorded = adapter.card.base_fingerprint
        if recorded is not None and recorded != self.base.fingerprint:
            raise BaseModelError(
                f"the adapter was trained on base {adapter.card.base!r} ({recorded[:12]}…), this engine holds "
                f"{self.base.id!r} ({self.base.fingerprint[:12]}…); serve it on its own base"
            )
        head = self._head_of(adapter)
        prefix = self._prefix_of(adapter, head)
        pairs = {name.removeprefix(prefix): pair for name, pair in adapter.layers.items()}
        self._check(pairs, prefix)
        if head is not None:
            self.reserve_head(head)
            self._check_head(adapter, self.heads[head.architecture], head)
        config = adapter.config
        slot = self._claim(config, head, tuple(pairs), adapter.peft_type, prefix, {n: p.rank for n, p in pairs.items()})
        self.write(slot, adapter.tensors)
        self.refresh([slot])
        return slot

    def export(self, slot: int, card: Card = Card()) -> Adapter:
        """The slot's adapter, copied, with the base's id and fingerprint in its card."""
        resident = self.residents[slot]
        layers, head = split(self.read(slot), f"slot {slot}")
        modules = self.heads[resident.head.architecture].modules_to_save if resident.head else ()
        origin = {"base": self.base.id, "base_fingerprint": self.base.fingerprint}
        if resident.head is not None:
            origin["architecture"] = resident.head.architecture
        card = card.model_copy(update=origin)
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
        for flat in self.flats:
            flat[slot] = 0
        self.refresh([slot])

    def _claim(
        self,
        config: LoraSpec,
        head: HeadSpec | None,
        targets: tuple[str, ...],
        peft_type: str | None,
        prefix: str | None = None,
        ranks: Mapping[str, int] | None = None,
    ) -> int:
        if not self.free_slots:
            raise CapacityError(f"all {self.slots} slots are taken; evict one or build the engine with more slots")
        slot = self.free_slots[0]
        if prefix is None:
            prefix = f"{self.base.prefix}." if head is not None else ""
        self.residents[slot] = Resident(config, head, targets, peft_type, prefix)
        for name in targets:
            rank = ranks[name] if ranks else layer_rank(config, prefix + name)
            self.layers[name].ranks[slot] = rank
            self.layers[name].scaling[slot] = layer_scaling(config, prefix + name, rank)
            self._ranks[slot] = max(self._ranks[slot], rank)
        return slot

    # ---------------------------------------------------------------- a slot's tensors under PEFT's keys

    def read(self, slot: int, flats: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """Copies of the slot's tensors under PEFT's file keys, cut to the adapter's ranks and labels; `flats` names other
        buffers of the same layout (an optimizer's moments)."""
        return {key: view.detach().clone() for key, view in self._views(slot, flats).items()}

    def write(self, slot: int, tensors: Mapping[str, Tensor], flats: Sequence[Tensor] | None = None) -> None:
        """Set the slot's tensors from PEFT's keys; keys must be exactly those `read` gives."""
        views = self._views(slot, flats)
        if set(views) != set(tensors):
            odd = sorted(set(views) ^ set(tensors))[:3]
            raise AdapterError(f"tensors do not fit the slot's layout: {odd} are missing or unknown")
        with torch.no_grad():
            for key, view in views.items():
                view.copy_(tensors[key].reshape(view.shape))

    def _views(self, slot: int, flats: Sequence[Tensor] | None) -> dict[str, Tensor]:
        resident = self.residents[slot]
        views: dict[str, Tensor] = {}
        lora = self.flat if flats is None else flats[0]
        for name in resident.targets:
            layer, key = self.layers[name], f"base_model.model.{resident.prefix}{name}"
            rank = layer.ranks[slot]
            a, b = self._pair(layer, lora)
            if layer.embedding:
                views[f"{key}.lora_embedding_A"], views[f"{key}.lora_embedding_B"] = a[slot, :rank], b[slot, :, :rank]
            else:
                shape = (layer.shape.b, rank) + ((1, 1) if len(layer.shape.a) == 3 else ())
                views[f"{key}.lora_A.weight"] = a[slot, :rank]
                views[f"{key}.lora_B.weight"] = b[slot, :, :rank].view(shape)
        if resident.head is not None:
            head = self.heads[resident.head.architecture]
            flat = self.head_flat[resident.head.architecture] if flats is None else flats[1]
            at, bias_at = 0, head.sizes[0]
            for linear in head.linears:
                width = resident.head.num_labels if linear.per_label else linear.out_features
                size = linear.out_features * linear.in_features
                weight = flat[slot, at : at + size].view(linear.out_features, linear.in_features)
                views[f"base_model.model.{linear.name}.weight"] = weight[:width]
                if linear.has_bias:
                    views[f"base_model.model.{linear.name}.bias"] = flat[slot, bias_at : bias_at + width]
                at, bias_at = at + size, bias_at + linear.out_features
        return views

    # ---------------------------------------------------------------- buffers

    @property
    def flats(self) -> list[Tensor]:
        """Every buffer that holds a slot's numbers, [slots + 1, numbers]."""
        buffers = [self.flat, *self.head_flat.values()]
        return buffers + ([self.grad, *self.head_grad.values()] if self.train else [])

    def _find_layers(self, embeddings: bool) -> dict[str, TargetLayer]:
        found = {}
        for name, module in self.base.backbone.named_modules():
            if refusal(module) is None and not _bypassed(self.base.backbone, name):
                if embeddings or not isinstance(module, nn.Embedding):
                    found[name] = TargetLayer(name, module, self.slots + 1, self.base.device)
        return found

    def _allocate(self) -> None:
        sizes = [self.max_rank * (math.prod(layer.shape.a) + layer.shape.b) for layer in self.layers.values()]
        shape = (self.slots + 1, sum(sizes))
        # trained values are float32 whatever the base is held in (float64 for a float64 base)
        exact = {"device": self.base.device, "dtype": torch.promote_types(self.base.dtype, torch.float32)}
        self.flat = torch.zeros(shape, **exact)
        self.grad = torch.zeros(shape if self.train else (0, 0), **exact)
        self.compute = self.flat if self.flat.dtype == self.base.dtype else self.flat.to(self.base.dtype)
        self._offsets = {}
        at = 0
        for layer, size in zip(self.layers.values(), sizes, strict=True):
            self._offsets[layer.name] = at
            a, b = self._pair(layer, self.flat)
            layer.A, layer.B = nn.Parameter(a), nn.Parameter(b)
            layer.a, layer.b = self._pair(layer, self.compute)
            if self.train:
                layer.A.grad, layer.B.grad = self._pair(layer, self.grad)
            at += size

    def _pair(self, layer: TargetLayer, flat: Tensor) -> tuple[Tensor, Tensor]:
        at, width = self._offsets[layer.name], math.prod(layer.shape.a)
        middle = at + self.max_rank * width
        end = middle + self.max_rank * layer.shape.b
        a = flat[:, at:middle].view(-1, self.max_rank, *layer.shape.a)
        return a, flat[:, middle:end].view(-1, layer.shape.b, self.max_rank)

    def refresh(self, slots: Iterable[int]) -> None:
        """Copy trained values of these slots into the pass's dtype."""
        if self.compute is not self.flat:
            rows = list(slots)
            self.compute[rows] = self.flat[rows].to(self.compute.dtype)

    def reserve_head(self, spec: HeadSpec) -> None:
        """Make room for heads of this class with up to `num_labels` labels, keeping what is resident."""
        old = self.heads.get(spec.architecture)
        if old is not None and old.labels >= spec.num_labels:
            return
        if old is not None and self.train and any(r.head and r.head.architecture == spec.architecture for r in self.residents.values()):
            raise CapacityError(
                f"heads of {spec.num_labels} labels join a pack built for {old.labels}; start the pack with all label sets"
            )
        head = Head(self.base.config, self.base.prefix, spec, self._current).to(self.base.device)
        if old is None:
            self._warn_nothing_shared(head)
        kept = {s: self.read(s) for s, r in self.residents.items() if r.head and r.head.architecture == spec.architecture}
        flat = self.flat.new_zeros(self.slots + 1, sum(head.sizes))
        grad = torch.zeros_like(flat) if self.train else None
        head.place(flat, grad)
        self.heads[spec.architecture], self.head_flat[spec.architecture] = head, flat
        if grad is not None:
            self.head_grad[spec.architecture] = grad
        for slot, tensors in kept.items():
            self.write(slot, tensors)

    def _current(self) -> Routing:
        assert self._routing is not None
        return self._routing

    def _warn_nothing_shared(self, head: Head) -> None:
        if not head.targets & set(self.layers):
            raise AdapterError(f"{head.architecture} shares no layer with base {self.base.id!r}; choose a head for this base")

    # ---------------------------------------------------------------- what fits

    def match(self, config: LoraSpec, head: HeadSpec | None) -> tuple[str, ...]:
        """Backbone layers that `target_modules` names in the plain class, by PEFT's rules.

        Raises:
            RecipeError: nothing matches, a match cannot hold an adapter, or a rank is too large.
        """
        prefix = f"{self.base.prefix}." if head is not None else ""
        allowed = self.heads[head.architecture].targets if head is not None else None
        modules = {
            prefix + name: module
            for name, module in self.base.backbone.named_modules()
            if name and (allowed is None or name in allowed)
        }
        if config.target_modules == ():
            return ()
        names = [name for name, module in modules.items() if _is_target(config, name, module)]
        if not names:
            leaves = sorted({name.rsplit(".", 1)[-1] for name in modules if name.removeprefix(prefix) in self.layers})
            wanted = config.target_modules if isinstance(config.target_modules, str) else ", ".join(config.target_modules)
            raise RecipeError(
                f"target_modules {wanted!r} match no layer of base {self.base.id!r}; "
                f"its layers are {', '.join(leaves)}{did_you_mean(wanted, leaves)}"
            )
        for name in names:
            self._check_target(name, prefix, config)
        return tuple(name.removeprefix(prefix) for name in names)

    def _check_target(self, name: str, prefix: str, config: LoraSpec) -> None:
        layer = self.layers.get(name.removeprefix(prefix))
        if layer is None:
            module = self.base.backbone.get_submodule(name.removeprefix(prefix))
            reason = refusal(module) or (
                "this engine was built without embeddings" if isinstance(module, nn.Embedding) else "its parent never calls it"
            )
            raise RecipeError(f"target {name!r} cannot hold an adapter: {reason}; leave it out of target_modules")
        rank = layer_rank(config, name)
        if rank > layer.shape.width:
            raise RecipeError(f"rank {rank} exceeds the width {layer.shape.width} of layer {name!r}; lower lora.r")
        if rank > self.max_rank:
            raise RecipeError(f"rank {rank} exceeds this engine's max_rank {self.max_rank}; raise max_rank or lower the rank")

    def _prefix_of(self, adapter: Adapter, head: HeadSpec | None) -> str:
        prefix = f"{self.base.prefix}."
        return prefix if any(name.startswith(prefix) for name in adapter.layers) or head is not None else ""

    def _head_of(self, adapter: Adapter) -> HeadSpec | None:
        if not adapter.head:
            return None
        architecture = adapter.card.architecture or _ARCHITECTURES.get(adapter.peft_type or "")
        if architecture is None:
            raise AdapterError(
                f"the adapter has a head ({', '.join(sorted(adapter.head))}) but task_type {adapter.peft_type!r} names no "
                f"head class; set task_type to one of {', '.join(_ARCHITECTURES)}"
            )
        probe = Head(self.base.config, self.base.prefix, HeadSpec(architecture, 2), self._current)
        for linear in probe.linears:
            weight = adapter.head.get(f"{linear.name}.weight")
            if linear.per_label and weight is not None:
                return HeadSpec(architecture, int(weight.shape[0]))
        return HeadSpec(architecture, 2)

    def _check_head(self, adapter: Adapter, head: Head, spec: HeadSpec) -> None:
        shapes = {}
        for linear in head.linears:
            width = spec.num_labels if linear.per_label else linear.out_features
            shapes[f"{linear.name}.weight"] = (width, linear.in_features)
            if linear.has_bias:
                shapes[f"{linear.name}.bias"] = (width,)
        given = {name: tuple(tensor.shape) for name, tensor in adapter.head.items()}
        if given != shapes:
            raise AdapterError(f"the adapter's head {given} does not fit {spec.architecture} on {self.base.id!r}, which has {shapes}")
        task = adapter.card.task
        if task is not None and task.labels is not None and len(task.labels) != spec.num_labels:
            raise AdapterError(f"the adapter's card names {len(task.labels)} labels, its head has {spec.num_labels}")

    def _check(self, pairs: Mapping[str, LowRank], prefix: str) -> None:
        for name, pair in pairs.items():
            layer = self.layers.get(name)
            if layer is None:
                raise AdapterError(
                    f"adapter layer {prefix + name!r} matches no layer of base {self.base.id!r} that can hold an adapter"
                    f"{did_you_mean(name, self.layers)}"
                )
            fits = tuple(pair.A.shape[1:]) == layer.shape.a and pair.B.shape[0] == layer.shape.b
            if not fits or pair.embedding != layer.embedding:
                raise AdapterError(
                    f"adapter layer {prefix + name!r} has A {tuple(pair.A.shape)} and B {tuple(pair.B.shape)}; base "
                    f"{self.base.id!r} needs A [rank, {layer.shape.a}] and B [{layer.shape.b}, rank]"
                )
            if pair.rank > self.max_rank:
                raise AdapterError(f"rank {pair.rank} exceeds this engine's max_rank {self.max_rank}; raise max_rank")


def _is_target(config: LoraSpec, name: str, module: nn.Module) -> bool:
    """PEFT's matching: 'all-linear', a regular expression for the whole name, or a list of name endings."""
    if config.exclude_modules is not None and _names(config.exclude_modules, name):
        return False
    if config.target_modules == "all-linear":
        return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    return _names(config.target_modules, name)


def _names(wanted: str | tuple[str, ...], name: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == ending or name.endswith("." + ending) for ending in wanted)


def _bypassed(backbone: nn.Module, name: str) -> bool:
    """Whether the parent reads this module's weight without calling it."""
    return isinstance(backbone.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)


def take_rows(outputs: Any, index: Tensor) -> Any:
    """The rows `index` of every tensor among a model's outputs."""
    kept = {name: value[index.to(value.device)] for name, value in outputs.items() if isinstance(value, Tensor)}
    return type(outputs)(**kept)

