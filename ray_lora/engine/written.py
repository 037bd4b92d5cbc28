"""Rows that a decoder writes behind an encoder, of any adapters: they begin together, and a pass gives each its next
tokens.

    written = Written(engine, engine.heads["AutoModelForSpeechSeq2Seq"], inputs, slots)
    logits = written.advance(torch.tensor([[50257, 50362]] * rows))      # [rows, vocabulary]
    written.keep([0, 2])                                                 # the others have ended

What earlier tokens and the encoder left is in transformers' own cache, which the plain class reads and writes. It knows
tokens and slots, not how one is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from ray_lora.bases.base import Base
from ray_lora.engine.heads import Head
from ray_lora.engine.looks import Looks


class Writes(Protocol):
    """As much of an engine as is asked."""

    @property
    def base(self) -> Base: ...

    def cast(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def next_tokens(self, inputs: Mapping[str, Any], owners: Sequence[int], cache: Any) -> Any: ...


class Written:
    """Rows in the making.

    Args:
        head: the class that says what follows, by the base's own head.
        inputs: the encoder's, each [rows, ...].
        slots: of each row; None: the bare base's.
        looks: (layer, head) of the attention to the encoder whose weights are wanted.

    Attributes:
        looked: of each row, what these heads looked at for its latest tokens, float32 [heads, new, positions].
    """

    def __init__(
        self,
        engine: Writes,
        head: Head,
        inputs: Mapping[str, Tensor],
        slots: Sequence[int] | None = None,
        looks: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._engine, self._head = engine, head
        self._looks = Looks(engine.base.backbone, looks) if looks else None
        self.looked: Sequence[Tensor] = ()
        self._inputs: dict[str, Any] = dict(engine.cast(inputs))
        rows = len(next(iter(self._inputs.values())))
        self._slots = list(slots) if slots is not None else [0] * rows
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    @property
    def rows(self) -> int:
        """Rows in the making."""
        return len(self._slots)

    def advance(self, tokens: Tensor) -> Tensor:
        """Logits of what follows each row's last token, [rows, vocabulary].

        Args:
            tokens: with which each row goes on, [rows, new].
        """
        with torch.inference_mode():
            (ids,) = self._engine.cast({"ids": tokens}).values()
            given = self._inputs | {"decoder_input_ids": ids}
            with self._looks or nullcontext():
                outputs = self._engine.next_tokens(given, self._slots, self._cache)
            if self._looks is not None:
                self.looked = list(self._looks.weights(self._cache))
            self._inputs = {"encoder_outputs": (outputs.encoder_last_hidden_state,)}
            return self._head.logits(outputs.last_hidden_state[None, :, -1])[0]

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        (states,) = self._inputs["encoder_outputs"]
        index = torch.tensor(rows, device=states.device)
        with torch.inference_mode():
            self._cache.batch_select_indices(index)
            self._inputs = {"encoder_outputs": (states[index],)}
        self._slots = [self._slots[row] for row in rows]
