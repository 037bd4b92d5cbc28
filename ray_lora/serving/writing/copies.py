"""Written answers again, by a version whose answers are only recorded.

A copy is written when the answer that counts is there, in steps of its own, only while no answer that counts is in the
making, within a part of their room and the time of other answers. It takes the likeliest tokens; where those were asked
for, it is counted as one that `agrees`, to the letter, or `differs`. Knows no HTTP and no engine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Protocol

from ray_lora.errors import AdapterError, CapacityError
from ray_lora.inference.finite import NotFiniteError
from ray_lora.recipe import Json
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cache.slots import Resident
from ray_lora.serving.gate import OverloadedError
from ray_lora.serving.machine import Loaded, Machine
from ray_lora.serving.names import Choice, Names
from ray_lora.serving.trials.shadows import Shadows
from ray_lora.serving.trials.tally import Arm
from ray_lora.serving.writing.reply import Reply
from ray_lora.serving.writing.turns import SPARE
from ray_lora.serving.writing.writer import Writer
from ray_lora.store import Entry
from ray_lora.tasks.generation_options import TextGenerationSpec


class Host(Protocol):
    """The endpoint whose shadows write."""

    args: AppArgs
    machine: Machine
    names: Names
    shadows: Shadows

    def lease(
        self, entry: Entry, exact: bool = False
    ) -> AbstractAsyncContextManager[tuple[Entry, Resident[Loaded]]]: ...

    async def in_time(self, work: Awaitable[Any], began: float | None = None) -> Any: ...

    def set_aside(self, entry: Entry, error: NotFiniteError) -> AdapterError: ...


class Copies:
    """Writes copies for one endpoint.

    Args:
        before: writes the answers that count.
    """

    def __init__(self, endpoint: Host, before: Writer) -> None:
        self._endpoint, args, machine = endpoint, endpoint.args, endpoint.machine
        self.writer = Writer(
            lambda: machine.decoder(max(2, args.writing_tokens // SPARE), args.prompt_tokens),
            machine.thread,
            max(1, args.writing_rows // SPARE),
            after=before,
        )

    def start(self, choice: Choice, reply: Reply) -> None:
        """Have the shadow, if there is one, answer for the record what was answered in full."""
        if choice.shadow is None:
            return
        name, version = choice.entry.name, choice.shadow

        async def answer() -> Sequence[Json]:
            found: Sequence[Json] = await self._endpoint.in_time(self._answer(f"{name}@{version}", reply))
            return found

        arm = Arm(name, version, "shadow", choice.entry.traffic.began)
        self._endpoint.shadows.start(arm, len(reply.stream.parts), answer)

    async def _answer(self, ref: str, reply: Reply) -> list[Json]:
        """Whether each prompt's answer is the one that was given, where the likeliest tokens were asked for."""
        parts, texts = reply.stream.parts, reply.texts
        async with self._endpoint.lease(await self._endpoint.names.resolve(ref)) as (entry, resident):
            task = resident.loaded.task
            if task is None or not isinstance(task.spec, TextGenerationSpec):
                raise AdapterError(f"{entry.ref} writes no texts")
            asks = [
                replace(part.ask, slot=resident.slot, owner=None, sampling=part.ask.sampling.likeliest)
                for part in parts
            ]
            async with self.writer.open(entry.name, asks) as stream:
                copy = Reply(entry, reply.prompts, reply.counts, stream)
                try:
                    async for _ in copy:
                        pass
                except NotFiniteError as error:
                    raise self._endpoint.set_aside(entry, error) from None
                except CapacityError as error:  # there is less room for copies
                    raise OverloadedError(str(error)) from None
        return [
            {"label": "agrees" if text == texts[part.first] else "differs"}
            for part, text in zip(parts, copy.texts, strict=True)
            if part.ask.sampling.temperature == 0
        ]
