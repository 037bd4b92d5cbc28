"""The probe: what rows of a base may share is found by comparing, not believed.

Each row alone, as the plain class computes it, against rows together as the engine does: end to end, padded, of one
length; of several adapters and of one. A row that is changed may move no other row's input of a target layer. The first
way of sharing that gives every row its own answer is taken; where none does, adapters are refused with the reason. It
runs once for each base and head class, and what it found is kept by the base's fingerprint (`sharing`); a builder's
classes may change while their weights stay, so they are compared anew by each engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch

from ray_lora.bases.base import Base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine.heads import Head
from ray_lora.engine.probe.base import BaseProbe
from ray_lora.engine.probe.head import HeadProbe
from ray_lora.engine.probe.rows import Probed
from ray_lora.engine.sharing import Sharing, recall, remember
from ray_lora.task_spec import Attention


def of_base(engine: Probed) -> Sharing:
    """How rows of this engine's base share passes. The engine holds no adapters yet."""
    if engine.base.device.type == "meta":  # nothing can be computed; whoever has weights will see
        return _known(engine.base, _name_of(engine.base)) or Sharing()
    return _found(engine.base, _name_of(engine.base), BaseProbe(engine).find)


def of_head(engine: Probed, head: Head, attention: Attention | None) -> Sharing:
    """How rows with heads of this class share passes, read so. Slot 0 of the head is used and left empty."""
    name = _name_of_head(engine.base, head.architecture, attention)
    if engine.base.device.type == "meta":
        return _known(engine.base, name) or Sharing("joined")
    return _found(engine.base, name, lambda: HeadProbe(engine, attention).find(head))


def _known(base: Base, name: str) -> Sharing | None:
    return None if base.built is not None else recall(base.fingerprint, name)


def _found(base: Base, name: str, find: Callable[[], Sharing]) -> Sharing:
    """What is known, else what is found now and kept."""
    known = _known(base, name)
    if known is None:
        with torch.inference_mode():
            known = find()
        if base.built is None:
            remember(base.fingerprint, name, known)
    return known


def is_known(base: Base, head: HeadSpec) -> bool:
    """Whether the base and this head class were probed before."""
    names = _name_of(base), _name_of_head(base, head.architecture, head.attention)
    return all(_known(base, what) is not None for what in names)


def _name_of(base: Base) -> str:
    """What was probed: the class, its sizes and dtype."""
    shapes = [f"{name}{tuple(parameter.shape)}" for name, parameter in base.backbone.named_parameters()]
    sizes = hashlib.sha256("|".join(shapes).encode()).hexdigest()[:16]
    return f"{type(base.backbone).__name__}|{sizes}|{base.quantised or base.dtype}"


def _name_of_head(base: Base, architecture: str, attention: Attention | None) -> str:
    return "|".join(filter(None, (_name_of(base), architecture, attention)))
