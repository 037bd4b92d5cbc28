"""The probe of a head class: the plain class on a row alone against the head on rows together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ray_lora.bases.base import Base
from ray_lora.bases.few_bits.layers import Held
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.quantised import float_weight
from ray_lora.engine import architecture, narrow
from ray_lora.engine.accepted import accepted
from ray_lora.engine.heads import Head
from ray_lora.engine.probe.rows import LENGTHS, SAID, SIZES, Probed, Rows, short
from ray_lora.engine.routing import Routing
from ray_lora.engine.sharing import Sharing
from ray_lora.engine.written import Written
from ray_lora.errors import RayLoraError
from ray_lora.task_spec import Attention

_UNWRITTEN = "its class {} answers otherwise token by token than for the whole row"


class HeadProbe:
    """One engine's base under heads of one class; slot 0 of the head is used and left empty."""

    def __init__(self, engine: Probed, attention: Attention | None = None) -> None:
        self.engine, self.base, self.backbone, self.attention = engine, engine.base, engine._backbone, attention
        self.both_ways = attention == "bidirectional"
        self.rows = Rows(engine, self.both_ways)

    def find(self, head: Head) -> Sharing:
        """How rows with such heads share passes."""
        labels, first = head.labels, head.architecture in narrow.READERS
        routing = Routing.of(torch.zeros(len(SIZES), dtype=torch.long, device=self.base.device), self.engine._ranks)
        even = self.base.examples([max(SIZES)] * len(SIZES))
        held = self.backbone.joins
        try:
            with head.tried(labels) as values:
                if refused := self._misread():
                    return Sharing("equal", refused=refused)
                plain = _plain_with(self.base, head, labels, values | (head.own or {}))
                reasons: list[str] = []
                for lengths in LENGTHS[LENGTHS.index(self.engine.sharing.lengths) :]:
                    if lengths == "padded" and self.both_ways and architecture.has_windows(self.base.config):
                        reasons.append(f"{SAID[lengths]}: a token of padding may have nothing to see in its window")
                        continue
                    rows = even if lengths == "equal" else self.base.examples(SIZES)
                    self.backbone.lay(joined=False)
                    alone = [self._plainly(plain, row, head.gives_tokens) for row in rows]
                    self.backbone.lay(joined=held)
                    batch = {name: self.engine._cast(value) for name, value in self.base.batch(rows).items()}
                    outputs = head(self.rows.run(rows, [0] * len(rows), first), batch, routing, labels)
                    if self.rows.same(alone, self.rows.answers(rows, outputs)):
                        if head.writes and not self._written(head, rows[0], alone[0][0]):
                            return Sharing("equal", refused=_UNWRITTEN.format(type(self.base.backbone).__name__))
                        return Sharing(lengths, reason="; ".join(reasons))
                    reasons.append(f"{SAID[lengths]}: the head's answer differs from its answer alone")
        except RayLoraError as error:
            return Sharing("equal", refused=str(error))
        except Exception as error:  # a class may raise anything where it is not given what it expects
            return Sharing("equal", refused=f"its plain class cannot be compared: {short(error)}")
        finally:
            self.backbone.lay(joined=held)
        extra = self._handed(plain, even[0])
        why = f"; it hands its backbone {', '.join(extra)}, which a shared pass does not have" if extra else ""
        return Sharing("equal", refused=f"its answers differ from those of the plain class{why}")

    def _written(self, head: Head, row: dict[str, Tensor], logits: Tensor) -> bool:
        """Whether a row that is written token by token has the logits that it has at once, [tokens, vocabulary]."""
        inputs, ids = self.base.batch([row]), row["decoder_input_ids"]
        steps = Written(self.engine, head, {name: inputs[name] for name in inputs if not name.startswith("decoder_")})
        found = [steps.advance(part[None])[0] for part in (ids[:2], *ids[2:].split(1))]
        return self.rows.same([[logits[1:]]], [[torch.stack(found)]])

    def _plainly(self, plain: Any, row: dict[str, Tensor], logits: bool = False) -> list[Tensor]:
        inputs = {name: self.engine._cast(value) for name, value in self.base.batch([row]).items()}
        self.backbone.rest()
        with self.backbone.reading(self.both_ways):
            outputs = plain(**accepted(plain, inputs))
            return self.rows.answers([row], outputs.logits if logits else outputs)[0]

    def _misread(self) -> str:
        """Why the class does not read as it is asked to; empty where it does, or nothing is asked.

        A class whose switch does nothing would go on from left to right and say nothing.
        """
        if self.attention is None:
            return ""
        if self.base.built is not None:
            return f"attention: {self.attention} is of transformers' classes, not of a builder's; leave it out"
        name, size = type(self.base.backbone).__name__, max(SIZES)
        [row], [other] = self.base.examples([size]), self.base.examples([size], seed=1)
        if "input_ids" not in row:
            return f"attention: {self.attention} is of texts, and {name} reads none"
        kept = size // 2
        changed = row | {"input_ids": torch.cat([row["input_ids"][:kept], other["input_ids"][kept:]])}
        before, after = (self.rows.alone([each], 0)[0][0][kept - 1] for each in (row, changed))
        far = (before - after).abs() > before.abs() * max(1e-3, 4 * torch.finfo(before.dtype).eps)
        ahead = float(far.double().mean()) > 0.5  # by more than experts' batches of other sizes round otherwise
        if self.both_ways and not ahead:
            return f"its class {name} reads from left to right whatever is asked of it; leave task.attention out"
        if ahead and not self.both_ways:
            return f"its class {name} reads both ways, and in no other way; leave task.attention out"
        return ""

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


def _plain_with(base: Base, head: Head, labels: int, values: Mapping[str, Tensor]) -> Any:
    """The plain class on the base's own backbone, its head with these values; what is quantised there is unfolded."""
    plain: Any = base.plain(HeadSpec(head.architecture, labels))
    setattr(plain, base.prefix, torch.nn.Identity())  # its own is without memory
    ours = dict(head.of(labels).named_modules())
    cast = {
        name: _unfolded(ours, name, value).to(base.device, base.dtype if value.is_floating_point() else value.dtype)
        for name, value in values.items()
    }
    plain.load_state_dict(cast, strict=False, assign=True)
    setattr(plain, base.prefix, base.backbone)
    return plain.eval()


def _unfolded(ours: Mapping[str, nn.Module], name: str, value: Tensor) -> Tensor:
    """A value of the head, or the numbers of one that is held in few bits; `ours`: the head's modules by name."""
    owner, _, part = name.rpartition(".")
    module = ours.get(owner)
    return float_weight(module) if part == "weight" and isinstance(module, Held) else value
