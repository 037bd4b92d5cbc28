"""Rows alone and rows together: what a probe runs and compares. Knows no slots' contents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ray_lora.engine.sharing import Lengths, Sharing
from ray_lora.engine.token_states import TokenStates

if TYPE_CHECKING:
    from ray_lora.bases.base import Base
    from ray_lora.engine.backbone import Backbone
    from ray_lora.engine.buffers import Buffers
    from ray_lora.engine.joined import Joined
    from ray_lora.engine.layers import TargetLayer
    from ray_lora.engine.routing import Routes

SIZES = (5, 11, 8, 11, 6)  # a prime number of rows, so that few other shapes divide by it
LENGTHS: tuple[Lengths, ...] = ("joined", "padded", "equal")
SAID = {"joined": "rows end to end", "padded": "padded rows", "equal": "rows of one length"}
# how far two roundings of one answer may lie apart, for answers of the size of 1
_CLOSE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}

Answers = list[list[Tensor]]  # of each row, each of the outputs' tensors


class Probed(Protocol):
    """As much of an engine as is looked at."""

    base: Base
    layers: dict[str, TargetLayer]
    buffers: Buffers
    sharing: Sharing
    _backbone: Backbone
    _ranks: list[int]

    def refresh(self, slots: Iterable[int]) -> None: ...

    def _cast(self, tensor: Tensor) -> Tensor: ...

    def cast(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def next_tokens(self, inputs: Mapping[str, Any], owners: Sequence[int], cache: Any) -> Any: ...

    def _routes(self, owners: Sequence[int], joined: Joined | None) -> Routes | None: ...


class Rows:
    """Rows through one engine's backbone, which reads them so."""

    def __init__(self, engine: Probed, both_ways: bool = False) -> None:
        self._both_ways = both_ways
        self.engine, self.base, self.backbone = engine, engine.base, engine._backbone
        self._close = _CLOSE[engine.base.dtype]

    def alone(self, rows: Sequence[dict[str, Tensor]], slot: int) -> Answers:
        """Each row by itself, as the class computes it."""
        self.backbone.lay(joined=False)
        return [self.answers([row], self.run([row], [slot]))[0] for row in rows]

    def together(self, rows: Sequence[dict[str, Tensor]], slots: Sequence[int], lengths: Lengths) -> Answers:
        self.backbone.lay(joined=lengths == "joined")
        return self.answers(rows, self.run(rows, slots))

    def run(self, rows: Sequence[dict[str, Tensor]], slots: Sequence[int], first_token: bool = False) -> Any:
        batch = self.base.batch(rows)
        joined = self.backbone.join(batch, slots)
        inputs = {name: self.engine._cast(tensor) for name, tensor in batch.items()}
        routes = self.engine._routes(slots, joined)
        return self.backbone.run(inputs, routes, joined, first_token, self._both_ways)

    def answers(self, rows: Sequence[dict[str, Tensor]], outputs: Any) -> Answers:
        """Each row's part of every output, its padding cut off."""
        mask = self.base.output_mask(self.base.batch(rows))
        found: Answers = []
        for row in range(len(rows)):
            kept = None if mask is None else mask[row].bool().to(self.base.device)
            mine = [value[row] for value in _tensors(outputs) if value.dim() and len(value) == len(rows)]
            cut = kept is not None and not bool(kept.all())
            found.append([value[kept] if cut and value.shape[:1] == kept.shape else value for value in mine])  # type: ignore[union-attr]
        return found

    def same(self, one: Answers, other: Answers) -> bool:
        for mine, given in zip(one, other, strict=True):
            if [value.shape for value in mine] != [value.shape for value in given]:
                return False
            for a, b in zip(mine, given, strict=True):
                if a.is_floating_point() and a.numel():
                    size = max(1.0, float(a.abs().max()))
                    if not float((a - b).abs().max()) <= self._close * size:  # also when it is no number
                        return False
        return True


def _tensors(outputs: Any) -> list[Tensor]:
    """Every tensor among a model's outputs, in their order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, TokenStates):
        return [outputs.logits]
    if isinstance(outputs, Mapping):
        return [tensor for value in outputs.values() for tensor in _tensors(value)]
    if isinstance(outputs, (tuple, list)):
        return [tensor for value in outputs for tensor in _tensors(value)]
    return (
        [value for value in vars(outputs).values() if isinstance(value, Tensor)] if hasattr(outputs, "__dict__") else []
    )


def short(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
