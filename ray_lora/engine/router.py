"""From the slots of a pass's rows to what every target layer reads: whose each row is, each token, and what it drops.

Knows slots and their ranks, not what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ray_lora.engine.buffers import Buffers
from ray_lora.engine.dropout import Dropout
from ray_lora.engine.joined import Joined
from ray_lora.engine.lone_slot import LoneSlots
from ray_lora.engine.routing import Routes, Routing
from ray_lora.engine.side_by_side import SideBySide


class Router:
    """The routes of one engine's passes.

    Args:
        ranks: the largest rank of each slot.
        dropout: the probability of each slot that drops.
        beside: where pairs lie for passes of one token a row; None where none do.
    """

    def __init__(
        self,
        ranks: list[int],
        buffers: Buffers,
        dropout: Mapping[int, float],
        device: torch.device,
        beside: SideBySide | None = None,
    ) -> None:
        self._ranks, self._buffers, self._probability, self._device = ranks, buffers, dropout, device
        self._beside = beside
        self._lone = LoneSlots(buffers.versions)

    def routes(self, owners: Sequence[int], joined: Joined | None, draws: Tensor | None) -> Routes:
        """Routes of rows of these slots; `draws` fixes what each drops, None drops nothing."""
        drawn = draws.to(self._device) if draws is not None and self._probability else None
        rows = self._route(owners, self._dropout(owners, drawn))
        if joined is None:
            first = None if drawn is None else drawn[:1]
            alike = len(set(owners)) == 1
            return Routes(rows, whole=self._route(owners[:1], self._dropout(owners[:1], first)) if alike else None)
        dropout = self._of_tokens(self._dropout(owners, drawn), joined)
        if joined.block:
            tokens = self._route(joined.owners, dropout, joined=True)
        else:
            scaling = self._buffers.scaling
            tokens = Routing.of_segments(joined.segments, joined.count, self._ranks, scaling, dropout)
        if joined.few and self._beside is not None:
            groups = self._beside.groups(joined.segments[-joined.few :])
            tokens = tokens if groups is None else tokens.with_groups(groups)
        return Routes(rows, tokens, joined.count)

    def _route(self, owners: Sequence[int], dropout: Dropout | None, joined: bool = False) -> Routing:
        slots = torch.tensor(owners, device=self._device)
        routing = Routing.of(slots, self._ranks, self._buffers.scaling, dropout, joined)
        if joined or len(routing.distinct) > 1:  # joined tokens reach no convolution
            return routing
        return replace(routing, lone=self._lone.pairs(routing.distinct[0]))

    def _dropout(self, owners: Sequence[int], draws: Tensor | None) -> Dropout | None:
        if draws is None:
            return None
        probability = [self._probability.get(slot, 0.0) for slot in owners]
        return Dropout(torch.tensor(probability, device=self._device), draws)

    def _of_tokens(self, rows: Dropout | None, joined: Joined) -> Dropout | None:
        """What each token drops, as its row would."""
        if rows is None:
            return None
        probability = rows.probability[joined.of_row].index_fill_(0, joined.idle, 0)
        return Dropout(probability, rows.draws[joined.of_row], joined.positions)
