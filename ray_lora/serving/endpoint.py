"""One base and the adapters of one store, answering. Knows refs, limits and tasks; no HTTP, no Ray.

choice = await endpoint.names.choose("tweets", user="user-7")     # one version, of which all that follows is
answer = await endpoint.predict(choice, ["what a day"], {})
answer.predictions        # [{"label": "positive", "score": 0.98}]
answer.entry.ref          # "tweets@3": which version answered
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from ray_lora.errors import AdapterError, AdapterNotFoundError
from ray_lora.inference.finite import NotFiniteError
from ray_lora.recipe import Json
from ray_lora.serving.args import AppArgs
from ray_lora.serving.batcher import Batcher
from ray_lora.serving.cache.slots import AdapterCache, Resident
from ray_lora.serving.gate import Gate, OverloadedError
from ray_lora.serving.http.keys import Keys
from ray_lora.serving.inputs import check_count, check_texts, rows_of
from ray_lora.serving.machine import Loaded, Machine
from ray_lora.serving.metrics.trace import current
from ray_lora.serving.names import BASE, Choice, Names
from ray_lora.serving.peers import Alone
from ray_lora.serving.registry import Registry, not_held
from ray_lora.serving.rows import Asked, Row
from ray_lora.serving.together import Member
from ray_lora.serving.trials.places import results_folder
from ray_lora.serving.trials.results import Results
from ray_lora.serving.trials.shadows import Shadows
from ray_lora.serving.trials.tally import Arm, did_it
from ray_lora.serving.writing.speaker import Speaker
from ray_lora.store import BeingWrittenError, Entry, Store
from ray_lora.tasks import Features, Task

_logger = logging.getLogger(__name__)
_LONG = 20_000  # characters of texts and files; more is encoded in a thread, so that the event loop stays free
_TRIES = 3  # to read what a ref means, while its files are changed
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What one adapter answered to one request."""

    entry: Entry
    task: Task
    predictions: list[Json]
    tokens: int  # that the base read


class Endpoint:
    """Answers requests for any adapter of `store` on the base that `machine` holds. Use from one event loop."""

    def __init__(self, machine: Machine, store: Store, args: AppArgs) -> None:
        self.machine, self.args = machine, args
        self.registry = Registry(store, args.freshness_s)
        self.names = Names(self.registry, machine.base.id, machine.base.fingerprint, machine.base.origin)
        self.names.peers = Alone(self)
        self.names.on_unusable = self.failed
        self.gate = Gate(args.max_waiting, args.max_waiting_per_adapter)
        self.cache: AdapterCache[Loaded] = AdapterCache(
            args.slots, machine.read, machine.swap, machine.unmount, ram_bytes=args.ram_bytes
        )
        self.batcher: Batcher[Row, Any] = Batcher(machine.compute, machine.thread, args.max_batch_rows)
        self.speaker = Speaker(self)
        self.keys = Keys.load(args.keys)
        self.results = Results(results_folder(args.store, store, args.results))
        self.shadows = Shadows(self.results, args.max_batch_rows)
        self.created = int(time.time())
        self.encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")

    @property
    def base_id(self) -> str:
        """The base's name, hub id or folder."""
        return self.machine.base.id

    async def describe(self) -> str:
        """The base's fingerprint."""
        return self.machine.base.fingerprint

    async def predict(
        self,
        choice: Choice,
        inputs: Sequence[Json],
        parameters: Mapping[str, Json],
        request_id: str | None = None,
        member: Member | None = None,
    ) -> Answer:
        """The chosen version's answers to `inputs`, in order; `request_id` is what feedback will name, and `member` is
        of the adapters that answer the same inputs.

        Raises:
            AdapterNotFoundError, AdapterError, BaseModelError: what the ref names cannot be served.
            DataError, RecipeError: an input or a parameter is wrong.
            OverloadedError: too much waits, or the deadline passed.
        """
        check_count(len(inputs), self.args.max_inputs)
        trace = current()
        trace.adapter = ", ".join(filter(None, (trace.adapter, choice.entry.ref)))
        trace.rows += len(inputs)
        began = time.perf_counter()
        try:
            with self.gate.enter(choice.entry.name, len(inputs)):
                work = self._predict(choice.entry, inputs, parameters, member=member, exact=choice.exact)
                answer = await self.in_time(work, choice.began)
        except Exception as error:
            self.failed(choice.arm, error)
            self._copy(choice, inputs, parameters)
            raise
        self.results.answered(choice.arm_of(answer.entry), request_id, time.perf_counter() - began, answer.predictions)
        self._copy(choice, inputs, parameters)
        return answer

    async def embed(self, texts: Sequence[Json]) -> tuple[list[list[float]], int]:
        """The bare base's mean-pooled states of texts, and how many tokens it read."""
        check_count(len(texts), self.args.max_inputs)
        check_texts(texts, self.args.max_text_chars)
        with self.gate.enter(BASE, len(texts)):
            return await self.in_time(self._embed(list(texts)))

    async def prewarm(self, ref: str, pinned: bool = False) -> None:
        """Bring an adapter into a slot (and keep it there) before anyone asks for it."""
        entry = await self.names.resolve(ref)
        if pinned:
            await self.cache.pin(entry)
        else:
            async with self.lease(entry):
                pass

    async def renew(self, gone: str | None = None) -> None:
        """Ask the store anew from here on, give what failed another chance, and let go of a name that is gone."""
        self.registry.store.reconsider()
        self.registry.refresh()
        self.cache.forget_failures()
        for resident in self.cache.residents():
            if resident.entry.name == gone:
                self.cache.drop(resident.entry)

    async def forget(self, name: str) -> dict[str, Json]:
        """Hold nothing of a name that the store does not have any more; how much of it there was."""
        contents = self.registry.forget(name)
        adapters = self.cache.forget(name)
        prompts = await self.speaker.writer.forget(contents | adapters)
        answers = await self.results.forget(name)
        return {"adapters": len(adapters), "prompts": prompts, "answers": answers}

    async def status(self) -> dict[str, Json]:
        """What is in the slots, what waits, and counters since the start."""
        residents = [
            {"adapter": r.entry.ref, "slot": r.slot, "leases": r.leases, "pinned": r.pinned}
            for r in self.cache.residents()
        ]
        return {
            "replica": self.results.replica,
            "base": self.base_id,
            "slots": self.args.slots,
            "residents": residents,
            "ram_bytes": self.cache.ram_used,
            "rows_inside": self.gate.inside,
            "rows_waiting": self.batcher.waiting,
            "cache": asdict(self.cache.stats),
            "batches": asdict(self.batcher.stats),
            "answers_written": self.speaker.writer.running,
            "answers_waiting": self.speaker.writer.waiting,
            "writing": asdict(self.speaker.writer.stats),
            "store_away": self.registry.away,
        }

    def check(self) -> None:
        """Raise unless the endpoint can compute."""
        if self.machine.thread._shutdown:
            raise RuntimeError("the engine's thread has stopped")

    async def close(self) -> None:
        """Stop everything; requests still waiting are cancelled."""
        await self.shadows.close()
        await self.batcher.close()
        await self.speaker.copies.writer.close()
        await self.speaker.writer.close()
        await self.cache.close()
        await self.results.close()
        self.registry.close()
        self.machine.close()
        self.encoder.shutdown(wait=False, cancel_futures=True)

    def failed(self, arm: Arm, error: Exception) -> None:
        """Count what a version did."""
        if did_it(error):
            self.results.failed(arm)

    def _copy(self, choice: Choice, inputs: Sequence[Json], parameters: Mapping[str, Json]) -> None:
        """Have the shadow, if there is one, answer the same for the record."""
        if choice.shadow is None:
            return
        name, version = choice.entry.name, choice.shadow

        async def answer() -> list[Json]:
            entry = await self.names.resolve(f"{name}@{version}")
            return (await self.in_time(self._predict(entry, inputs, parameters, background=True))).predictions

        self.shadows.start(Arm(name, version, "shadow", choice.entry.traffic.began), len(inputs), answer)

    async def _predict(
        self,
        entry: Entry,
        inputs: Sequence[Json],
        parameters: Mapping[str, Json],
        background: bool = False,
        member: Member | None = None,
        exact: bool = False,
    ) -> Answer:
        ready: tuple[Task, list[Features]] | None = None
        if member is not None:  # without a slot while it waits: others may need it to come so far
            async with self.lease(entry, exact) as resident:
                task = _task_of(*resident)
                ready = task, await self._encode(task, inputs, parameters)
            await member.meet()
        async with self.lease(entry, exact) as resident:
            entry, task = resident[0], _task_of(*resident)
            same = ready is not None and ready[0] is task
            features = ready[1] if ready is not None and same else await self._encode(task, inputs, parameters)
            asked = Asked(features, resident[1].slot, task, parameters)
            try:
                found = await self.batcher.submit(entry.name, asked.rows, background)
            except NotFiniteError as error:
                raise self.set_aside(entry, error) from None
        tokens = sum(task.size(feature) for feature in features)
        return Answer(entry, task, asked.answers(found), tokens)

    def set_aside(self, entry: Entry, error: NotFiniteError) -> AdapterError:
        """Serve a version no longer whose answers are no numbers; it is read anew when its files change."""
        why = AdapterError(f"{entry.ref}: {error}; it is set aside until its files change or /v1/refresh")
        _logger.warning("%s", why)
        self.registry.store.set_aside(entry, why)
        self.registry.refresh()
        self.cache.drop(entry)
        return why

    @asynccontextmanager
    async def lease(self, entry: Entry, exact: bool = False) -> AsyncIterator[tuple[Entry, Resident[Loaded]]]:
        """The adapter in a slot; what was asked for is resolved again when its files changed between resolving and
        reading, so that a name is answered by an older version while its newest is being written.

        Args:
            exact: whether no other content will do; AdapterNotFoundError where it has become another.
        """
        async with AsyncExitStack() as stack:
            for left in reversed(range(_TRIES)):
                try:
                    resident = await stack.enter_async_context(self.cache.lease(entry))
                    break
                except (BeingWrittenError, AdapterNotFoundError):
                    if not left:
                        raise
                self.registry.refresh()
                asked, entry = entry, await self.names.resolve(entry.ref if exact else entry.again)
                if exact and entry.sha256 != asked.sha256:
                    raise not_held(asked.name, asked.sha256)
            yield entry, resident

    async def _embed(self, texts: list[str]) -> tuple[list[list[float]], int]:
        features = await asyncio.get_running_loop().run_in_executor(self.encoder, self.machine.encode_texts, texts)
        vectors = await self.batcher.submit(BASE, [Row(feature) for feature in features])
        return vectors, sum(len(feature["input_ids"]) for feature in features)

    async def _encode(self, task: Task, inputs: Sequence[Json], parameters: Mapping[str, Json]) -> list[Features]:
        """Model inputs of each input; RecipeError when the task takes no such parameters."""
        task.check_parameters(parameters)  # a row that fails in the batch would make its neighbours run again
        began = time.perf_counter()
        rows, size = rows_of(task, inputs, self.args.max_text_chars)
        if size <= _LONG:
            features = task.encode(rows)
        else:
            slow = self.machine.task(task.spec, own_processor=True)
            features = await asyncio.get_running_loop().run_in_executor(self.encoder, slow.encode, rows)
        current().encode_s = time.perf_counter() - began
        return features

    async def in_time(self, work: Awaitable[T], began: float | None = None) -> T:
        """Its result; OverloadedError once the deadline has passed since `began` (of `time.monotonic`; None: now)."""
        spent = 0.0 if began is None else time.monotonic() - began
        try:
            return await asyncio.wait_for(work, max(0.0, self.args.deadline_s - spent))
        except asyncio.TimeoutError:
            raise OverloadedError(f"no answer within {self.args.deadline_s:g} s; try again later") from None


def _task_of(entry: Entry, resident: Resident[Loaded]) -> Task:
    """AdapterError when nothing says what the adapter does."""
    if resident.loaded.task is None:
        raise AdapterError(f"{entry.ref} carries no task; give it a card, or a head with task_type SEQ_CLS")
    return resident.loaded.task
