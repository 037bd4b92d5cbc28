"""A base's backbone as an engine runs it: hooked, its frozen modules rewritten, its passes without what nobody reads.

Rows of different lengths are laid end to end where the class allows it (`joined`), so that no padding is computed; all
other classes are given padded rows. `undo` gives the base its plain weights and its own ways back. It knows layers and
routings, not slots' contents.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ray_lora.bases.base import Base
from ray_lora.engine import narrow
from ray_lora.engine.accepted import accepted
from ray_lora.engine.attention import Cached, JoinedPass
from ray_lora.engine.frozen import Frozen, innermost, outermost
from ray_lora.engine.joined import EXACT, NARROW, Joined
from ray_lora.engine.layers import TargetLayer
from ray_lora.engine.own_norms import OwnNorms
from ray_lora.engine.packed import Packing
from ray_lora.engine.routing import Routes
from ray_lora.errors import BaseModelError, CapacityError

_HELD = "held_by_an_adapter_engine"
_ROW = 5  # tokens of the row that tells what a class does with its convolutions


class Backbone:
    """One base, held by one engine."""

    def __init__(self, base: Base, layers: Mapping[str, TargetLayer]) -> None:
        self._base, self._layers = base, layers
        self._module: Any = base.backbone
        self._device = base.device
        exact = base.device.type == "cpu" and base.dtype in (torch.float32, torch.float64)
        self._costs = EXACT if exact else NARROW
        self._routes: Routes | None = None
        self._cut: narrow.Cut | None = None
        self.could_join = can_join(base)
        self._shift = positions_from(base.backbone)
        self._hooks = [layer.attach(self.routes) for layer in layers.values()]
        self._hooks += narrow.attach(base.backbone, lambda: self._cut)
        self._packing: Packing | None = None
        self._frozen: Frozen | None = None
        self._attention: JoinedPass | None = None
        setattr(base.backbone, _HELD, True)

    @staticmethod
    def check(base: Base) -> None:
        """CapacityError when another engine holds the base: the hooks of both would answer."""
        if getattr(base.backbone, _HELD, False):
            raise CapacityError(f"base {base.id!r} is held by another engine; close() that one, or use its slots")

    @property
    def joins(self) -> bool:
        """Whether rows of different lengths are laid end to end, so that no padding is computed."""
        return self._attention is not None

    def pack(self, train: bool, uncalled: Collection[str]) -> None:
        """Lay frozen weights out as products read them, and fold norms; `train`: whether passes have gradients."""
        self._packing = Packing(self._module, train, uncalled)
        self.rest()
        self._frozen = Frozen(self._module, self._row)
        for name, scale in self._frozen.after.items():
            self._layers[name].after = scale

    def give_norms(self, norms: OwnNorms) -> None:
        """From now on rows are normalised as `norms` says, and no norm is folded."""
        if self._frozen is not None:
            self._frozen.undo()
        for layer in self._layers.values():
            layer.after = None
        self.rest()
        self._frozen = Frozen(self._module, self._row, folds=False)
        norms.attach()

    def routes(self) -> Routes | None:
        """Those of the pass; None for the bare base."""
        return self._routes

    def _row(self) -> dict[str, Tensor] | None:
        """Inputs of one row; None of a base that cannot give any."""
        try:
            inputs = self._base.batch(self._base.examples([_ROW]))
        except BaseModelError:
            return None
        return {
            name: tensor.to(self._base.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in accepted(self._module, inputs).items()
        }

    @property
    def windows(self) -> bool:
        """Whether the class has handed a sliding window to an attention over joined rows."""
        return self._attention is not None and self._attention.windows

    def lay(self, joined: bool) -> None:
        """From now on lay rows end to end, or give the class padded rows and its own attention."""
        if joined and self._attention is None:
            self._attention = JoinedPass(self._module)
        elif not joined and self._attention is not None:
            self._attention.undo()
            self._attention = None

    def join(self, inputs: Mapping[str, Tensor], slots: Sequence[int], beside: bool = False) -> Joined | None:
        """How these rows are laid end to end, with pairs side by side for few tokens or without; None where they are
        not."""
        if self._attention is None or "input_ids" not in inputs:
            return None
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
        return Joined.of(mask, slots, self._device, None if beside else self._costs)

    def run(
        self,
        inputs: Mapping[str, Tensor],
        routes: Routes | None,
        joined: Joined | None,
        first_token: bool,
        both_ways: bool = False,
    ) -> Any:
        """The backbone's outputs, [rows, longest, ...].

        Args:
            inputs: the backbone's inputs, each [rows, ...].
            routes: the rows' slots; None for the bare base. They stay set until the next pass, for a backward.
            joined: from `join`.
            first_token: whether the pass's heads read nothing else; an encoder's outputs are then cut to it.
            both_ways: whether a decoder's tokens see all of their row.
        """
        with self.reading(both_ways):
            return self._run(inputs, routes, joined, first_token)

    @contextmanager
    def reading(self, both_ways: bool) -> Iterator[None]:
        """While it lasts, a decoder's class lets each token see all of its row, as `config.is_causal = False` has it
        (transformers' masks and attentions follow that); its own way otherwise."""
        if not both_ways:
            yield
            return
        config = self._module.config
        held = vars(config).get("is_causal")
        config.is_causal = False
        try:
            yield
        finally:
            if held is None:
                del config.is_causal
            else:
                config.is_causal = held

    def _run(
        self, inputs: Mapping[str, Tensor], routes: Routes | None, joined: Joined | None, first_token: bool
    ) -> Any:
        first_token = first_token and narrow.reads_first(self._module)
        self._routes = routes
        if joined is None:
            self._cut = _first_column if first_token else None
            given = accepted(self._module, inputs)
            if self._frozen is not None and self._frozen.innermost:
                return outermost(self._module(**innermost(given)))
            return self._module(**given)
        assert self._attention is not None
        self._attention.current = joined
        self._cut = (lambda states: states.index_select(1, joined.firsts)) if first_token else None
        return self._joined(inputs, joined, first_token)

    def _joined(self, inputs: Mapping[str, Tensor], joined: Joined, first_token: bool) -> Any:
        """Rows laid end to end, without the pooler, which takes each row's first token for itself."""
        given = {name: joined.take(tensor) for name, tensor in inputs.items() if name != "attention_mask"}
        pooler = getattr(self._module, "pooler", None)
        if pooler is not None:
            self._module.pooler = None
        try:
            outputs = self._module(position_ids=self._positions(given.get("input_ids"), joined)[None], **given)
        finally:
            if pooler is not None:
                self._module.pooler = pooler
        states = outputs.last_hidden_state
        states = states.transpose(0, 1) if first_token else joined.spread(states)
        kept = {"last_hidden_state": states}
        if pooler is not None:
            kept["pooler_output"] = pool(self._module, pooler, states)
        return type(outputs)(**kept)

    def _positions(self, ids: Tensor | None, joined: Joined) -> Tensor:
        """Of each token, [tokens]. RoBERTa's kind leaves out a padding token also where it stands in a text."""
        plain = joined.positions + self._shift
        if ids is None or not self._shift:
            return plain
        counts = ids[0] != self._shift - 1
        counts[joined.idle] = True
        so_far = counts.cumsum(0)
        before = (so_far - counts.long())[joined.firsts][joined.of_row]
        found = torch.where(counts, so_far - before, 0) + self._shift - 1
        found[joined.idle] = plain[joined.idle]
        return found

    def advance(self, ids: Tensor, positions: Tensor, routes: Routes | None, joined: Joined, cached: Cached) -> Tensor:
        """The last hidden states of new tokens, [1, tokens, hidden], whose rows have earlier ones that are kept.

        Args:
            ids, positions: of each token in its row, [tokens].
            joined: how the new tokens lie; the backbone lays rows end to end.
        """
        assert self._attention is not None
        self._routes, self._cut = routes, None
        self._attention.current, self._attention.cached = joined, cached
        try:
            outputs = self._module(input_ids=ids[None], position_ids=positions[None] + self._shift)
        finally:
            self._attention.cached = None
        states: Tensor = outputs.last_hidden_state
        return states

    def next_tokens(self, inputs: Mapping[str, Any], routes: Routes | None, cache: Any) -> Any:
        """The outputs for the next tokens of rows, as many of each, whose earlier ones are in `cache`, transformers'.

        Args:
            inputs: of an encoder and the tokens; from the second time on `encoder_outputs` and the tokens.
        """
        self._routes, self._cut = routes, None
        return self._module(**inputs, past_key_values=cache, use_cache=True)

    def rest(self) -> None:
        """Forget the last pass: the backbone is the plain one when somebody else calls it."""
        self._routes, self._cut = None, None

    def undo(self) -> None:
        """Take the hooks off the base and give it its plain weights and its own attention back."""
        for hook in self._hooks:
            hook.remove()
        if self._frozen is not None:
            self._frozen.undo()
        if self._packing is not None:
            self._packing.undo()
        self.lay(joined=False)
        setattr(self._module, _HELD, False)


def can_join(base: Base) -> bool:
    """Whether the class says that it takes an attention of ours, and positions."""
    if base.device.type == "meta" or not JoinedPass.possible(base.backbone):
        return False
    return "position_ids" in inspect.signature(base.backbone.forward).parameters


def positions_from(backbone: Any) -> int:
    """The position of a row's first token: RoBERTa's kind counts from behind its padding index."""
    embeddings: Any = getattr(backbone, "embeddings", None)
    counts = hasattr(embeddings, "create_position_ids_from_input_ids")
    return int(embeddings.padding_idx) + 1 if counts else 0


def pool(backbone: Any, pooler: Any, states: Tensor) -> Tensor:
    """The pooler's output of padded rows; ALBERT's is a plain layer that its class hands the first token."""
    activation = getattr(backbone, "pooler_activation", None)
    pooled: Tensor = pooler(states) if activation is None else activation(pooler(states[:, 0]))
    return pooled


def _first_column(states: Tensor) -> Tensor:
    return states[:, :1]
