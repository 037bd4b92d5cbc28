"""What an endpoint says token by token: prompts in, texts out, with its limits, leases and counts. Knows adapters and
texts; no HTTP, no engine.

    async with endpoint.speaker.speak(choice, Wanted(texts=("The capital of Peru is",)), sampling) as reply:
        async for said in reply:
            said.number, said.text, said.reason
    reply.entry.ref                                  # which version answered
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from ray_lora.errors import DataError
from ray_lora.inference.finite import NotFiniteError
from ray_lora.inference.prompts import Prompts
from ray_lora.inference.sampling import Sampling
from ray_lora.recipe import Json, TaskSpec
from ray_lora.serving.gate import Gate
from ray_lora.serving.http.keys import EVERYONE, Key
from ray_lora.serving.inputs import check_count, check_size
from ray_lora.serving.metrics.trace import current
from ray_lora.serving.names import BASE, Choice
from ray_lora.serving.trials.results import Results
from ray_lora.serving.trials.tally import Arm
from ray_lora.serving.writing import copies
from ray_lora.serving.writing.copies import Copies
from ray_lora.serving.writing.limits import KeyLimits, timed
from ray_lora.serving.writing.reply import Reply
from ray_lora.serving.writing.streams import Ask
from ray_lora.serving.writing.writer import Writer
from ray_lora.store import Entry
from ray_lora.tasks.generation_options import TextGenerationSpec

_LONG = 20_000  # characters; more becomes tokens in a thread, so that the event loop stays free


@dataclass(frozen=True)
class Wanted:
    """What is to be answered: texts that go on, or the messages of one dialogue."""

    texts: tuple[Json, ...] = ()
    messages: Json = None

    @property
    def count(self) -> int:
        """Prompts."""
        return len(self.texts) if self.messages is None else 1

    def encode(self, prompts: Prompts) -> list[list[int]]:
        """The prompts' tokens; DataError, RecipeError as `Prompts` says."""
        if self.messages is not None:
            return [prompts.of_messages(self.messages)]
        return [prompts.of_text(text) for text in self.texts]

    def size(self) -> int:
        """About how many characters there are."""
        told = self.texts if self.messages is None else self.messages
        return sum(len(str(one)) for one in told) if isinstance(told, Sequence) else 0


class Host(copies.Host, Protocol):
    """The endpoint that a speaker speaks for."""

    gate: Gate
    results: Results
    encoder: Executor

    def failed(self, arm: Arm, error: Exception) -> None: ...


class Speaker:
    """Speaks for one endpoint. Use from one event loop."""

    def __init__(self, endpoint: Host) -> None:
        self._endpoint, args = endpoint, endpoint.args
        self.limits = KeyLimits()
        machine = endpoint.machine
        self.writer = Writer(
            lambda: machine.decoder(args.writing_tokens, args.prompt_tokens, args.prefix_bytes),
            machine.thread,
            args.writing_rows,
        )
        self.copies = Copies(endpoint, self.writer)

    @asynccontextmanager
    async def speak(
        self,
        choice: Choice | None,
        wanted: Wanted,
        sampling: Sampling,
        request_id: str | None = None,
        key: Key = EVERYONE,
    ) -> AsyncIterator[Reply]:
        """Have a version, or the bare base, answer for as long as the block runs.

        Args:
            key: for whom, within its limits.

        Raises (also from the reply):
            AdapterError: the base does not write texts.
            DataError, RecipeError: the adapter writes none, or a prompt is wrong.
            OverloadedError: too much waits, or a time limit passed.
        """
        endpoint, began = self._endpoint, time.perf_counter()
        name = BASE if choice is None else choice.entry.name
        check_count(wanted.count * sampling.n, endpoint.args.max_inputs)
        check_size(wanted.size(), endpoint.args.max_text_chars)
        trace = current()
        trace.adapter, trace.rows = "" if choice is None else choice.entry.ref, wanted.count * sampling.n
        try:
            with (
                self.limits.enter(key, wanted.count * sampling.n),
                endpoint.gate.enter(name, wanted.count * sampling.n),
            ):
                async with AsyncExitStack() as stack:
                    entry, slot = await endpoint.in_time(
                        self._ready(stack, choice), None if choice is None else choice.began
                    )
                    prompts, ids = await self._encode(wanted)
                    trace.encode_s = time.perf_counter() - began
                    ends = prompts.ends if wanted.messages is None else prompts.message_ends
                    self._check_room(ids, sampling, prompts.longest)
                    owner = endpoint.machine.base.fingerprint if entry is None else entry.sha256
                    asks = [Ask(slot, one, sampling, ends, owner) for one in ids]
                    stream = await stack.enter_async_context(self.writer.open(name, asks))
                    with timed(stream, began, endpoint.args, key):
                        try:
                            reply = Reply(entry, prompts, [len(one) for one in ids], stream)
                            yield reply
                        except NotFiniteError as error:
                            if entry is None:
                                raise
                            raise endpoint.set_aside(entry, error) from None
        except Exception as error:
            if choice is not None:
                endpoint.failed(choice.arm, error)
            raise
        trace.compute_s = time.perf_counter() - began
        if choice is not None:
            endpoint.results.answered(choice.arm_of(reply.entry or choice.entry), request_id, trace.compute_s, [])
            self.copies.start(choice, reply)

    async def writes(self, entry: Entry) -> bool:
        """Whether an adapter writes texts; one that says nothing of its task is looked at."""
        if entry.task is not None:
            return isinstance(entry.task, TextGenerationSpec)
        async with self._endpoint.lease(entry) as (_, resident):
            task = resident.loaded.task
            return task is not None and isinstance(task.spec, TextGenerationSpec)

    async def _ready(self, stack: AsyncExitStack, choice: Choice | None) -> tuple[Entry | None, int]:
        """The adapter in a slot, for as long as the stack is open."""
        if choice is None:
            return None, 0
        if choice.entry.task is not None:
            _check(choice.entry, choice.entry.task)
        entry, resident = await stack.enter_async_context(self._endpoint.lease(choice.entry, choice.exact))
        _check(entry, None if resident.loaded.task is None else resident.loaded.task.spec)
        return entry, resident.slot

    async def _encode(self, wanted: Wanted) -> tuple[Prompts, list[list[int]]]:
        endpoint = self._endpoint
        most = endpoint.args.writing_tokens
        prompts = endpoint.machine.prompts(most)
        if wanted.size() <= _LONG:
            return prompts, wanted.encode(prompts)
        slow = endpoint.machine.prompts(most, own_processor=True)
        return prompts, await asyncio.get_running_loop().run_in_executor(endpoint.encoder, wanted.encode, slow)

    def _check_room(self, ids: Sequence[Sequence[int]], sampling: Sampling, longest: int) -> None:
        """DataError where the answers to one prompt have no room even when there are no others."""
        room = self._endpoint.args.writing_tokens
        for one in ids:
            asked = sampling.n * min(len(one) + sampling.max_tokens, longest)
            if asked > room:
                raise DataError(
                    f"n {sampling.n} answers with their prompts have up to {asked} tokens, and there is room for "
                    f"{room}; lower n or max_tokens"
                )


def _check(entry: Entry, task: TaskSpec | None) -> None:
    """DataError unless the adapter writes texts."""
    if not isinstance(task, TextGenerationSpec):
        does = "carries no task" if task is None else f"does {task.type}"
        raise DataError(f"{entry.ref} {does} and writes no texts; ask /v1/predict")
