"""What the engine's thread does for answers in the making: some join, all go on by a token, some are given up. Knows no
event loop, no texts and no adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ray_lora.inference.decoder import Written
from ray_lora.inference.sampling import Sampling
from ray_lora.serving.writing.streams import Part, Stream

SPARE = 4  # of all room one part in so many is for keys that have no rows


class Reuse(Protocol):
    """What was not read again, since the start; `inference.prefixes.Prefixes` counts it."""

    hits: int
    reused: int


class Steps(Protocol):
    """What writes; `inference.decoder.Decoder` does."""

    @property
    def capacity(self) -> int: ...

    @property
    def free(self) -> int: ...

    prompt_tokens: int

    @property
    def prefixes(self) -> Reuse: ...

    @property
    def lost(self) -> Mapping[int, Exception]: ...

    def needs(self, prompt: int, sampling: Sampling) -> int: ...

    def join(
        self, slot: int, ids: Sequence[int], sampling: Sampling, ends: Collection[int], owner: str | None
    ) -> list[int]: ...

    def leave(self, row: int) -> None: ...

    def step(self, only: Collection[int] | None = None) -> Mapping[int, Written]: ...

    def forget(self, owners: Collection[str]) -> int: ...


@dataclass
class Turn:
    """What one turn brought; `seconds` is what it took, `prompt_tokens` what was read in it."""

    joined: list[Part] = field(default_factory=list)
    written: list[tuple[Stream, int, Written]] = field(default_factory=list)
    failed: list[tuple[Stream, Exception]] = field(default_factory=list)
    seconds: float = 0.0
    prompt_tokens: int = 0
    prefix_hits: int = 0
    prefix_tokens: int = 0


class Turns:
    """Turns of what `make` gives, once it is needed; what that raises, those hear who want to join."""

    def __init__(self, make: Callable[[], Steps]) -> None:
        self._make = make
        self._steps: Steps | None = None
        self._owners: dict[int, tuple[Part, int]] = {}  # row -> its ask and number

    def take(self, candidates: Sequence[Part]) -> Turn:
        """Let those join that have room, in order, and write the next token of all."""
        turn, began = Turn(), time.monotonic()
        try:
            self._steps = steps = self._steps or self._make()
        except Exception as error:
            turn.failed += [(part.stream, error) for part in candidates]
            return turn
        before = _counts(steps)
        self._join(steps, candidates, turn)
        try:
            self._write(steps, None, turn)
        except Exception:
            self._each(steps, turn)
        turn.prompt_tokens, turn.prefix_hits, turn.prefix_tokens = (
            now - then for now, then in zip(_counts(steps), before, strict=True)
        )
        turn.seconds = time.monotonic() - began
        return turn

    def drop(self, part: Part, numbers: Collection[int]) -> None:
        """Give up answers, of an ask that may have joined, may join yet, or has ended."""
        part.unwanted.update(numbers)
        for number, row in zip(part.numbers, part.rows, strict=False):
            if number in numbers:
                self._forget(row)

    def forget(self, owners: Collection[str]) -> int:
        """Keep nothing of the prompts of some contents; of how many something was kept."""
        return 0 if self._steps is None else self._steps.forget(owners)

    def _join(self, steps: Steps, candidates: Sequence[Part], turn: Turn) -> None:
        blocked: set[str] = set()
        for part in candidates:
            ask, key = part.ask, part.stream.key
            if key in blocked:
                continue
            try:
                left = steps.free - steps.needs(len(ask.ids), ask.sampling)
                alone = steps.free == steps.capacity
                if left < (0 if part.is_first or alone else steps.capacity // SPARE):
                    if part.is_first:
                        return  # it waits for room, and nobody overtakes it
                    blocked.add(key)
                    continue
                part.rows = steps.join(ask.slot, ask.ids, ask.sampling, ask.ends, ask.owner)
            except Exception as error:
                turn.failed.append((part.stream, error))
                continue
            turn.joined.append(part)
            self._owners |= {row: (part, number) for row, number in zip(part.rows, part.numbers, strict=True)}
            self.drop(part, list(part.unwanted))

    def _write(self, steps: Steps, only: Collection[int] | None, turn: Turn) -> None:
        for row, written in steps.step(only).items():
            part, number = self._owners[row]
            turn.written.append((part.stream, number, written))
            if written.reason is not None:
                del self._owners[row]
        for row, error in steps.lost.items():
            turn.failed.append((self._owners.pop(row)[0].stream, error))

    def _each(self, steps: Steps, turn: Turn) -> None:
        """Each ask by itself, so that one that cannot go on stops no other."""
        for part in dict.fromkeys(part for part, _ in self._owners.values()):
            try:
                self._write(steps, part.rows, turn)
            except Exception as error:
                turn.failed.append((part.stream, error))
                for row in part.rows:
                    self._forget(row)

    def _forget(self, row: int) -> None:
        self._owners.pop(row, None)
        if self._steps is not None:
            self._steps.leave(row)


def _counts(steps: Steps) -> tuple[int, int, int]:
    return steps.prompt_tokens, steps.prefixes.hits, steps.prefixes.reused
