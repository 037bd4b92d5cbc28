"""Heads: a base's plain class whose backbone is the engine's, and whose modules hold one copy of themselves a slot.

The class's own forward runs on hidden states that the engine computed for a whole mixed batch, so a head does exactly
what the plain class does, for all rows of one head class and size at once. A head that is the base's own (`own_head`)
has no copies: every slot's rows go through the one there is.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, Seq2SeqModelOutput

from ray_lora.bases.base import Base
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.quantised import output_layers
from ray_lora.engine.accepted import accepted
from ray_lora.engine.head_parts import Kind, Part, own_tensors, owners, parts_of, reordered, saved_modules
from ray_lora.engine.own_head import own_values, tied_tables
from ray_lora.engine.own_norms import norms_in
from ray_lora.engine.routing import Routing
from ray_lora.engine.slotted import HeadPass, SlotLeaf, SlotLinear, SlotPoint, corner, is_point
from ray_lora.engine.tall import tall
from ray_lora.engine.token_states import TokenStates
from ray_lora.errors import AdapterError, RecipeError

_KINDS: tuple[Kind, ...] = ("weight", "undecayed", "kept")  # as they lie in a slot's row
_STATISTICS = (".running_mean", ".running_var")  # of a batch norm, which begin as zero and one


class _Given(nn.Module):
    """Stands where the backbone stood; returns what the engine computed."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: Any = None

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.outputs


def gives_by_token(model: nn.Module) -> bool:
    """Whether a class gives logits token by token, of as many as are asked for (`logits_to_keep`), or of a decoder's
    states that it is given."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters or has_encoder(model)


def has_encoder(model: nn.Module) -> bool:
    """Whether a class writes token by token what its encoder was given."""
    return "decoder_inputs_embeds" in inspect.signature(model.forward).parameters


def _is_outside(name: str, prefix: str) -> bool:
    return bool(name) and name != prefix and not name.startswith(f"{prefix}.")


class Head:
    """One head class on one base: stacked tensors of up to `labels` labels for every slot.

    Attributes:
        parts: its tensors, in the class's order.
        stacks: each as [slots, ...] by its name; those that are trained are Parameters.
        own: values of a head that is the base's own, by their names in the plain class; None where slots have copies.
        outside: names of the class's modules beside the backbone.
        gives_tokens: whether it is the base's own and computes logits of those tokens alone that are asked for.
        writes: whether its tokens are written by a decoder behind an encoder.
        targets: names inside the backbone that exist in the plain class too (a class may have no pooler).
        modules_to_save: the class's own top-level modules, PEFT's word.
    """

    def __init__(self, base: Base, spec: HeadSpec) -> None:
        self.architecture, self.labels, self._base = spec.architecture, spec.num_labels, base
        self.kind, self.norms = spec.kind, norms_in(base.backbone) if spec.norms else {}
        model = base.plain(spec)
        self.own = own_values(base, spec, model)
        if spec.norms and (self.own is not None or not self.norms):
            why = f"the head of {spec.architecture} is the base's own" if self.norms else "it has none"
            raise RecipeError(f"lora.batch_norms: own on base {base.id!r}, and {why}; leave it out")
        self.outside = tuple(name for name in dict(model.named_modules()) if _is_outside(name, base.prefix))
        self.gives_tokens = self.own is not None and gives_by_token(model)
        self.writes = self.gives_tokens and has_encoder(model)
        start = f"{base.prefix}."
        self.targets = frozenset(
            name.removeprefix(start) for name, _ in model.named_modules() if name.startswith(start)
        )
        # a decoder's class finds a row's last token by its id, so padding must have the id that the class knows
        config: Any = getattr(model, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else None
        self._padding: int | None = getattr(text, "pad_token_id", None)
        modules: dict[str, nn.Module] = {}
        self.parts: list[Part] = []
        if self.own is None:
            wider = base.plain(HeadSpec(spec.architecture, spec.num_labels + 1))
            modules = owners(model, base.prefix, spec.architecture)
            norms = {f"{start}{name}": module for name, module in self.norms.items()}
            more = owners(wider, base.prefix, spec.architecture) | norms
            self.parts = parts_of(modules | norms, more, spec.architecture)
        unknown = [part.name for part in self.parts if part.kind == "kept" and not part.name.endswith(_STATISTICS)]
        if base.built is None and unknown:
            raise AdapterError(
                f"head class {spec.architecture} keeps numbers {unknown[:3]} whose start is not known here; "
                "such a head is not supported"
            )
        self.modules_to_save = saved_modules(model, modules, spec.architecture) + tuple(
            f"{start}{name}" for name in self.norms
        )
        self.initializer_range = float(getattr(base.config, "initializer_range", 0.02))
        self.stacks: dict[str, Tensor] = {}
        self._classes: dict[int, nn.Module] = {}  # labels -> the class
        self._trained: dict[int, dict[str, Tensor]] = {}
        self._given = _Given()
        self._pass: HeadPass | None = None
        self.reserve(spec.num_labels, model)

    def reserve(self, labels: int, plain: nn.Module | None = None) -> None:
        """Make the class for so many labels, which may read their number in its forward.

        Args:
            plain: what `base.plain` gives for it, where that is known.

        Raises:
            AdapterError: one of its sizes does not grow evenly with the labels.
        """
        if labels not in self._classes:
            spec = HeadSpec(self.architecture, labels)
            fresh = self._fresh(spec) if self.own is None else None
            self._classes[labels] = self._slotted(fresh or plain or self._base.plain(spec), self.shapes(labels))

    def of(self, labels: int) -> nn.Module:
        """The class with so many labels, as it runs here."""
        return self._classes[labels]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers a slot holds: weights, what is trained without decay (biases, norms), what is never trained."""
        weights, undecayed, kept = (
            sum(math.prod(part.shape) for part in self.parts if part.kind == kind) for kind in _KINDS
        )
        return weights, undecayed, kept

    def place(self, flat: Tensor, grad: Tensor | None) -> None:
        """Make every stack a view of flat [slots, numbers], its gradients of grad [slots, trained numbers]."""
        for part, stack in self._lie(flat):
            self.stacks[part.name] = stack if part.kind == "kept" else nn.Parameter(stack)
        if grad is not None:
            for part, stack in self._lie(grad):
                self.stacks[part.name].grad = stack

    def _lie(self, flat: Tensor) -> Iterator[tuple[Part, Tensor]]:
        """Each part and its stack in `flat`: weights, what is not decayed, and the rest where `flat` has it."""
        at = 0
        for kind in _KINDS[: 3 if flat.shape[1] == sum(self.sizes) else 2]:
            for part in self.parts:
                if part.kind == kind:
                    end = at + math.prod(part.shape)
                    yield part, flat[:, at:end].view(-1, *part.shape)
                    at = end

    # ---------------------------------------------------------------- one slot's numbers

    def init(self, slot: int, labels: int, generator: torch.Generator, names: Sequence[str] = ()) -> None:
        """A fresh head: as the builder's class starts it, else what the base's own head has been trained to, else
        transformers' start, which is weights normal, biases zero, norms one and zero.

        Args:
            names: of the outputs, for a builder and for `trained`.
        """
        if self.own is not None:
            return
        fresh = self._built(labels, generator, names)
        known = self.trained(labels, names) if fresh is None else fresh
        known |= {f"{self._base.prefix}.{name}": tensor for name, tensor in self._of_base().items()}
        with torch.no_grad():
            for name, view in self._views(self.stacks, slot, labels):
                if name in known:
                    view.copy_(known[name])
                elif name.endswith("bias") or name.endswith("running_mean"):
                    view.zero_()
                elif view.dim() < 2:
                    view.fill_(1)
                else:
                    view.copy_(torch.empty(view.shape).normal_(0, self.initializer_range, generator=generator))

    def _of_base(self) -> dict[str, Tensor]:
        """The base's own norms where adapters have copies of them."""
        return {
            f"{name}.{part}": value for name, norm in self.norms.items() for part, value in own_tensors(norm).items()
        }

    def trained(self, labels: int, names: Sequence[str] = ()) -> dict[str, Tensor]:
        """What the base's own head of so many labels has been trained to; empty where it has none.

        Args:
            names: of the outputs asked for. Where the base's outputs have the same names in another order, its rows
                follow the names.
        """
        if labels not in self._trained:
            self._trained[labels] = self._base.trained(self.shapes(labels))
        tensors = dict(self._trained[labels])
        ours, theirs = [name.casefold() for name in names], [name.casefold() for name in self._base.labels or ()]
        if ours == theirs or sorted(ours) != sorted(theirs) or len(set(ours)) < len(ours):
            return tensors
        return reordered(self.parts, tensors, labels, [theirs.index(name) for name in ours])

    @contextmanager
    def tried(self, labels: int) -> Iterator[dict[str, Tensor]]:
        """Values for a comparison in slot 0, which is nobody's, by their names in the plain class; gone afterwards."""
        draw = torch.Generator().manual_seed(0)
        self.init(0, labels, draw)
        views = dict(self._views(self.stacks, 0, labels))
        kinds = {part.name: part.kind for part in self.parts}
        with torch.no_grad():
            for name, view in views.items():
                if kinds[name] != "kept":
                    size = max(1, view[0].numel() if view.dim() > 1 else 16) ** -0.5
                    view.add_(torch.empty(view.shape).normal_(0, size, generator=draw).to(view))
        try:
            yield {name: view.clone() for name, view in views.items()}
        finally:
            for stack in self.stacks.values():
                stack.detach()[0] = 0

    def _built(self, labels: int, generator: torch.Generator, names: Sequence[str]) -> dict[str, Tensor] | None:
        """A builder's own start, from a seed that the generator draws."""
        model = self._fresh(HeadSpec(self.architecture, labels, tuple(names)), generator.initial_seed())
        return None if model is None else model.state_dict()

    def _fresh(self, spec: HeadSpec, seed: int = 0) -> nn.Module | None:
        """`base.fresh` from a seed; nobody else's random numbers move."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._base.fresh(spec)

    def views(self, flat: Tensor, slot: int, labels: int) -> dict[str, Tensor]:
        """One slot's part of `flat` under the plain class's names, cut to `labels`; of a buffer of gradients or
        moments only what is trained."""
        return dict(self._views({part.name: stack for part, stack in self._lie(flat)}, slot, labels))

    def _views(self, stacks: dict[str, Tensor], slot: int, labels: int) -> Iterator[tuple[str, Tensor]]:
        shapes = self.shapes(labels)
        for part in self.parts:
            if part.name in stacks:
                yield part.name, stacks[part.name].detach()[corner(slot, shapes[part.name])]

    def shapes(self, labels: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the plain class's head with this many labels."""
        return {part.name: part.cut(self.labels - labels) for part in self.parts}

    def labels_in(self, tensors: Mapping[str, Tensor]) -> int | None:
        """How many labels a head of these tensors has; None for a class whose head has none."""
        for part in self.parts:
            axis, given = part.labels_axis, tensors.get(part.name)
            if axis is not None and given is not None and given.dim() == len(part.shape):
                return self.labels - (part.shape[axis] - given.shape[axis]) // part.slope[axis]
        return None

    # ---------------------------------------------------------------- a pass

    def __call__(self, hidden: Any, inputs: dict[str, Tensor], routing: Routing, labels: int) -> Any:
        """The class's outputs from the backbone's outputs and the model inputs of the same rows."""
        if self.gives_tokens:
            return TokenStates(hidden.last_hidden_state, self.logits)
        self._given.outputs, self._pass = hidden, HeadPass(routing)
        if self._padding is not None and {"input_ids", "attention_mask"} <= inputs.keys():
            empty = inputs["attention_mask"] == 0
            inputs = inputs | {"input_ids": inputs["input_ids"].masked_fill(empty, self._padding)}
        try:
            return self._classes[labels](**accepted(self._classes[labels], inputs))
        finally:
            self._given.outputs = self._pass = None

    def logits(self, states: Tensor) -> Tensor:
        """[1, tokens, vocabulary] of last hidden states of any tokens, [1, tokens, hidden], by a base's own head."""
        kind = Seq2SeqModelOutput if self.writes else BaseModelOutputWithPastAndCrossAttentions
        self._given.outputs = kind(last_hidden_state=states)
        name = "decoder_inputs_embeds" if self.writes else "inputs_embeds"
        try:
            logits: Tensor = self._classes[self.labels](**{name: states}, use_cache=False).logits
            return logits
        finally:
            self._given.outputs = None

    def _current(self) -> HeadPass:
        assert self._pass is not None
        return self._pass

    def _slotted(self, model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
        if self.own is not None:
            scheme = self._base.quantised
            tied = tied_tables(self._base, model) if scheme is not None else {}
            setattr(model, self._base.prefix, self._given)
            model.requires_grad_(False).load_state_dict(self.own, strict=False, assign=True)
            if scheme is not None:
                self.own |= output_layers(model, self._base.backbone, tied, scheme)
            for module in model.modules():
                tall(module)
            return self._whole(model)
        for name, module in owners(model, self._base.prefix, self.architecture).items():
            own = {part: tensor.shape for part, tensor in own_tensors(module).items()}
            for part, shape in own.items():
                if shapes.get(f"{name}.{part}") != tuple(shape):
                    raise AdapterError(
                        f"head class {self.architecture} has {name}.{part} of shape {tuple(shape)}, by its other sizes "
                        f"it would be {shapes.get(f'{name}.{part}')}; a head's sizes must grow evenly with its labels"
                    )
            slotted: nn.Module
            if type(module).forward is nn.Linear.forward and not module._forward_pre_hooks:
                slotted = SlotLinear(name, own, self.stacks, self._current)
            elif is_point(module):
                slotted = SlotPoint(name, own, self.stacks, self._current)
            else:
                slotted = SlotLeaf(name, module, own, self.stacks, self._current, self._base.device)
            model.set_submodule(name, slotted)
        setattr(model, self._base.prefix, self._given)
        return self._whole(model)

    def _whole(self, model: nn.Module) -> nn.Module:
        """The class on the base's device; AdapterError where something in it never got values."""
        without = self.own is not None and self._base.device.type == "meta"
        lost = [] if without else [name for name, tensor in model.named_buffers() if tensor.is_meta]
        if lost:
            raise AdapterError(
                f"head class {self.architecture} computes {lost[:3]} when it is built, which is not supported"
            )
        return model.to(self._base.device)
