"""What an endpoint says token by token: prompts in, texts out, with its limits, leases and counts. Knows adapters and
texts; no HTTP, no engine.

    async with endpoint.speaker.speak(choice, Wanted(texts=("The capital of Peru is",)), sampling) as speech:
        async for said in speech:
            said.number, said.text, said.reason
    speech.entry.ref                                  # which version answered
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ray_lora.errors import AdapterError, DataError
from ray_lora.inference.decoder import Reason
from ray_lora.inference.finite import NotFiniteError
from ray_lora.inference.prompts import Prompts
from ray_lora.inference.sampling import Choice as Token
from ray_lora.inference.sampling import Sampling
from ray_lora.inference.spoken import Spoken
from ray_lora.recipe import Json, TaskSpec
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cache.slots import Resident
from ray_lora.serving.gate import Gate, OverloadedError
from ray_lora.serving.inputs import check_count
from ray_lora.serving.machine import Loaded, Machine
from ray_lora.serving.metrics.trace import current
from ray_lora.serving.names import BASE, Choice
from ray_lora.serving.trials.results import Results
from ray_lora.serving.trials.tally import Arm
from ray_lora.serving.writing.streams import Ask, Stream
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


@dataclass(frozen=True)
class Said:
    """What a token adds to an answer.

    Attributes:
        number: of the answer, in the order of prompts and their `n`.
        text: that can be said now, which may be none yet, or several tokens'.
        reason: why the answer has ended, where it has; by_text: whether one of the stop texts ended it.
    """

    number: int
    text: str
    token: Token
    reason: Reason | None
    by_text: bool = False


class Speech:
    """The answers to one request as they come.

    Attributes:
        entry: the version that answers; None for the bare base.
        prompt_tokens: read, of all prompts; tokens: written up to now, of all answers.
        counts: prompts' tokens, by prompt.
    """

    def __init__(self, entry: Entry | None, prompts: Prompts, counts: Sequence[int], stream: Stream) -> None:
        self.entry, self.prompts, self.counts, self.tokens = entry, prompts, counts, 0
        self._stream = stream
        stops = [part.ask.sampling.stop for part in stream.parts for _ in part.numbers]
        self._spoken = [prompts.spoken(stop) for stop in stops]

    @property
    def prompt_tokens(self) -> int:
        return sum(self.counts)

    def __aiter__(self) -> AsyncIterator[Said]:
        return self

    async def __anext__(self) -> Said:
        number, written = await self._stream.__anext__()
        self.tokens += 1
        spoken: Spoken = self._spoken[number]
        text = "" if written.reason == "stop" else spoken.add(written.token)
        if written.reason is not None:
            text += spoken.rest()
        if spoken.stopped and number in self._stream.open:
            self._stream.stop(number)
        reason: Reason | None = "stop" if spoken.stopped else written.reason
        return Said(number, text, written.choice, reason, spoken.stopped)


class Host(Protocol):
    """The endpoint that a speaker speaks for."""

    args: AppArgs
    machine: Machine
    gate: Gate
    results: Results
    encoder: Executor

    def lease(
        self, entry: Entry, exact: bool = False
    ) -> AbstractAsyncContextManager[tuple[Entry, Resident[Loaded]]]: ...

    async def in_time(self, work: Awaitable[Any]) -> Any: ...

    def failed(self, arm: Arm, error: Exception) -> None: ...

    def set_aside(self, entry: Entry, error: NotFiniteError) -> AdapterError: ...


class Speaker:
    """Speaks for one endpoint. Use from one event loop."""

    def __init__(self, endpoint: Host) -> None:
        self._endpoint, args = endpoint, endpoint.args
        machine = endpoint.machine
        self.writer = Writer(
            lambda: machine.decoder(args.writing_tokens, args.prompt_tokens, args.prefix_bytes),
            machine.thread,
            args.writing_rows,
        )

    @asynccontextmanager
    async def speak(
        self, choice: Choice | None, wanted: Wanted, sampling: Sampling, request_id: str | None = None
    ) -> AsyncIterator[Speech]:
        """Have a version, or the bare base, answer for as long as the block runs.

        Raises (also from the speech):
            AdapterError: the base does not write texts.
            DataError, RecipeError: the adapter writes none, or a prompt is wrong.
            OverloadedError: too much waits, or a time limit passed.
        """
        endpoint, began = self._endpoint, time.perf_counter()
        name = BASE if choice is None else choice.entry.name
        check_count(wanted.count * sampling.n, endpoint.args.max_inputs)
        trace = current()
        trace.adapter, trace.rows = "" if choice is None else choice.entry.ref, wanted.count * sampling.n
        try:
            with endpoint.gate.enter(name, wanted.count * sampling.n):
                async with AsyncExitStack() as stack:
                    entry, slot = await endpoint.in_time(self._ready(stack, choice))
                    prompts, ids = await self._encode(wanted)
                    trace.encode_s = time.perf_counter() - began
                    ends = prompts.ends if wanted.messages is None else prompts.message_ends
                    self._check_room(ids, sampling, prompts.longest)
                    owner = endpoint.machine.base.fingerprint if entry is None else entry.sha256
                    asks = [Ask(slot, one, sampling, ends, owner) for one in ids]
                    stream = await stack.enter_async_context(self.writer.open(name, asks))
                    with self._limited(stream, began):
                        try:
                            yield Speech(entry, prompts, [len(one) for one in ids], stream)
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
            endpoint.results.answered(choice.arm, request_id, trace.compute_s, [])

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

    @contextmanager
    def _limited(self, stream: Stream, began: float) -> Iterator[None]:
        """Give an answer up whose first token, or last, does not come in time."""
        args, loop = self._endpoint.args, asyncio.get_running_loop()

        def first() -> None:
            if not stream.begun:
                stream.fail(OverloadedError(f"no token within {args.deadline_s:g} s; try again later"))

        def last() -> None:
            stream.fail(OverloadedError(f"the answer did not end within {args.writing_s:g} s; lower max_tokens"))

        passed = time.perf_counter() - began
        timers = [loop.call_later(args.deadline_s - passed, first), loop.call_later(args.writing_s - passed, last)]
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()


def _check(entry: Entry, task: TaskSpec | None) -> None:
    """DataError unless the adapter writes texts."""
    if not isinstance(task, TextGenerationSpec):
        does = "carries no task" if task is None else f"does {task.type}"
        raise DataError(f"{entry.ref} {does} and writes no texts; ask /v1/predict")
