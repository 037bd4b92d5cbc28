"""A base's backbone as an engine runs it: hooked, its weights packed, its passes without what nobody reads.

`undo` gives the base its plain weights and its own ways back. It knows layers and routings, not slots' contents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ray_lora.bases.load import Base
from ray_lora.engine import narrow
from ray_lora.engine.aligned import Aligned
from ray_lora.engine.buffers import Buffers
from ray_lora.engine.encoder import EncoderPass
from ray_lora.engine.layers import TargetLayer
from ray_lora.engine.packed import Packing
from ray_lora.engine.routing import Routing
from ray_lora.errors import CapacityError

_HELD = "held_by_an_adapter_engine"


class Backbone:
    """One base, held by one engine.

    Args:
        train: whether passes have gradients.
    """

    def __init__(self, base: Base, layers: Mapping[str, TargetLayer], buffers: Buffers, train: bool) -> None:
        self._module: Any = base.backbone
        self._routing: Routing | None = None
        self._first_token = False
        self._hooks = [layer.attach(lambda: self._routing) for layer in layers.values()]
        self._hooks += narrow.attach(base.backbone, lambda: self._first_token)
        self._encoder = EncoderPass.find(base.backbone, layers, buffers, base.device)
        self._packing = Packing(base.backbone, train)
        self._aligned = Aligned(base.backbone, base.dtype, base.device)
        setattr(base.backbone, _HELD, True)

    @staticmethod
    def check(base: Base) -> None:
        """CapacityError when another engine holds the base: the hooks of both would answer."""
        if getattr(base.backbone, _HELD, False):
            raise CapacityError(f"base {base.id!r} is held by another engine; close() that one, or use its slots")

    @property
    def pads(self) -> bool:
        """Whether a pass that answers computes the padding between rows of different lengths."""
        return self._encoder is None

    def run(self, inputs: Mapping[str, Tensor], routing: Routing | None, first_token: bool) -> Any:
        """The backbone's outputs.

        Args:
            inputs: the backbone's inputs, each [rows, ...].
            routing: the rows' slots; None for the bare base. It stays set until the next pass, for a backward.
            first_token: whether the pass's heads read nothing else; an encoder's outputs are then cut to it.
        """
        self._routing, self._first_token = routing, first_token
        dropped = routing is not None and routing.dropout is not None
        lengths = None if self._encoder is None or dropped else self._encoder.lengths(inputs)
        if self._encoder is None or lengths is None:
            return self._module(**inputs)
        return self._encoder(inputs, lengths, routing, first_token)

    def undo(self) -> None:
        """Take the hooks off the base and give it its plain weights and its own attention back."""
        for hook in self._hooks:
            hook.remove()
        self._packing.undo()
        self._aligned.undo()
        setattr(self._module, _HELD, False)
