"""Rows that are written token by token, of any adapters, in one pass.

A pass takes some new tokens of each row, one of a row that is being written or many of a prompt, and gives what may
follow each row's last.

    decoding = Decoding(engine, HeadSpec("AutoModelForCausalLM", 49152))
    row = decoding.enter(slot, capacity=200)
    logits = decoding.advance([(row, [5, 6, 7])])          # [rows, vocabulary]
    decoding.leave(row)

All of an engine's other passes may come between. What is of decoders alone is `_pass`: a model with an encoder brings
its states there. It knows tokens and slots, not how one is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_lora.bases.plain import HeadSpec
from ray_lora.engine.buffers import Resident
from ray_lora.engine.cached_attention import CachedPass, NewTokens
from ray_lora.engine.engine import AdapterEngine
from ray_lora.engine.kv_cache import KvCache, Pair, Place
from ray_lora.errors import AdapterError, CapacityError

_TRIED = (4, 1, 2, 1)  # tokens at a time of the row that is compared
_CLOSE = {torch.float64: 1e-6, torch.float32: 2e-4}  # of states of the size of 1; shorter numbers: 0.1


@dataclass(eq=False)
class Row:
    """A row in the making, which holds its adapter as it was when it entered."""

    slot: int
    place: Place
    capacity: int
    resident: Resident | None

    @property
    def length(self) -> int:
        """Tokens that are kept."""
        return self.place.length


class Decoding:
    """The rows in the making of one engine.

    Args:
        head: the plain class that says what follows, by the base's own head.

    Raises:
        AdapterError: the base's class does not give token by token what it gives at once.
    """

    def __init__(self, engine: AdapterEngine, head: HeadSpec) -> None:
        engine.reserve_head(head)
        self._engine, self._head = engine, engine.heads[head.architecture]
        self._cache = KvCache(engine.base.device)
        if not self._head.gives_tokens or engine.sharing_under(head).lengths != "joined":
            raise AdapterError(
                f"base {engine.base.id!r} cannot be read token by token under {head.architecture}: its class takes no "
                f"attention of ours ({engine.sharing.reason or engine.sharing.words})"
            )
        self._compare()

    @property
    def rows(self) -> int:
        """Rows in the making."""
        return self._cache.rows

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        return self._cache.bytes

    def enter(self, slot: int, capacity: int) -> Row:
        """A row of this slot's adapter with room for so many tokens; CapacityError where the slot is empty."""
        resident = self._engine.residents.get(slot)
        if slot and resident is None:
            raise CapacityError(f"slot {slot} holds no adapter; resident slots are {self._engine.resident_slots}")
        return Row(slot, self._cache.enter(capacity), capacity, resident)

    def fork(self, row: Row) -> Row:
        """Another row that has begun as this one."""
        return Row(row.slot, self._cache.fork(row.place), row.capacity, row.resident)

    def copy(self, row: Row) -> dict[int, Pair]:
        """What a row has kept, for `fill`."""
        return self._cache.copy(row.place)

    def fill(self, row: Row, kept: Mapping[int, Pair], length: int) -> None:
        """Have a fresh row begin with the first tokens of another of the same adapter, which had kept this."""
        self._cache.fill(row.place, kept, length)

    def leave(self, row: Row) -> None:
        """Forget a row; its place is another's at once."""
        self._cache.leave(row.place)

    def advance(self, work: Sequence[tuple[Row, Sequence[int]]]) -> Tensor:
        """Logits of what follows each row's last token, [rows, vocabulary], in the order given.

        Args:
            work: rows, each once, and the tokens that each goes on with, at least one.

        Raises:
            CapacityError: a row has no room, or its slot holds another adapter than when it entered.
        """
        for row, tokens in work:
            if self._engine.residents.get(row.slot) is not row.resident:
                raise CapacityError(f"slot {row.slot} holds another adapter than when the row began; the row is lost")
            if not tokens or row.length + len(tokens) > row.capacity:
                raise CapacityError(
                    f"a row of {row.length} tokens with room for {row.capacity} cannot go on with {len(tokens)}"
                )
        with torch.inference_mode():
            states, last = self._pass(work)
            return self._head.logits(states.index_select(1, last))[0]

    def _pass(self, work: Sequence[tuple[Row, Sequence[int]]]) -> tuple[Tensor, Tensor]:
        """The last hidden states of all new tokens, [1, tokens, hidden], and where each row's last one lies."""
        engine, owners = self._engine, [row.slot for row, _ in work]
        counts = torch.tensor([len(tokens) for _, tokens in work])
        joined = engine.joined(torch.arange(int(counts.max())) < counts[:, None], owners, writes=True)
        ids, past = torch.zeros(joined.count, dtype=torch.int64), torch.tensor([row.length for row, _ in work])
        new = []
        for (row, tokens), start in zip(work, joined.starts, strict=True):
            ids[start : start + len(tokens)] = torch.tensor(tokens)
            new.append(NewTokens(row.place, start, len(tokens)))
        device = engine.base.device
        positions = joined.positions + past.to(device)[joined.of_row]
        cached = CachedPass(new, joined.count, device)
        states = engine.advance(ids.to(device), positions.index_fill_(0, joined.idle, 0), owners, joined, cached)
        cached.done()
        return states, torch.tensor([one.start + one.count - 1 for one in new], device=device)

    def _compare(self) -> None:
        """AdapterError unless a row gets token by token what it gets at once."""
        ids = self._engine.base.examples([sum(_TRIED)])[0]["input_ids"].tolist()
        found = []
        for parts in ((len(ids),), _TRIED):
            row, at = self.enter(0, len(ids)), 0
            try:
                for count in parts:
                    found.append(self.advance([(row, ids[at : at + count])])[0].double())
                    at += count
            finally:
                self.leave(row)
        with torch.inference_mode():
            inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            plain = self._head.logits(self._engine.hidden(inputs, torch.zeros(1, dtype=torch.long)).last_hidden_state)
        close = _CLOSE.get(self._engine.base.dtype, 0.1) * max(1.0, float(plain.abs().max()))
        if not all(float((one - plain[0, -1].double()).abs().max()) <= close for one in (found[0], found[-1])):
            raise AdapterError(
                f"base {self._engine.base.id!r} cannot be read token by token: its class "
                f"{type(self._engine.base.backbone).__name__} answers otherwise than for the whole row"
            )
