"""The engine and the one thread that may touch it. Knows tensors, tasks and adapters' files; no limits, no HTTP.

machine = Machine(base, slots=32, max_rank=64)
slot = await machine.swap(await machine.read(entry), victim=None)
answers = machine.compute([Row(features, slot)])      # in machine.thread only
"""

from __future__ import annotations

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import Base
from ray_lora.bases.padding import pad
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import AdapterError, DataError
from ray_lora.inference.adopt import check_answers
from ray_lora.inference.decoder import Decoder
from ray_lora.inference.predict import embed, predict
from ray_lora.inference.prompts import Prompts
from ray_lora.recipe import TaskSpec
from ray_lora.serving.rows import Row
from ray_lora.store import BeingWrittenError, Entry, Store
from ray_lora.tasks import Features, Task, build_task, plain_spec

_TASKS = 1024  # kept ready: adapters come with options of their own, and go


class ChangedError(BeingWrittenError):
    """The adapter is no longer the content that its ref named a moment ago; resolve the ref again."""


@dataclass
class Loaded:
    """An adapter in RAM, hash checked."""

    adapter: Adapter
    bytes: int
    task: Task | None = None  # set when it is mounted; None: it has no task, so it answers nothing


class Machine:
    """A base with `slots` places, and one more so that an adapter is mounted before another leaves.

    Args:
        thread: that computes, one; the one in which the base was loaded, where that is not the caller's.
    """

    def __init__(
        self,
        base: Base,
        store: Store,
        *,
        slots: int,
        max_rank: int = 64,
        embeddings: bool = False,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self.base, self.store = base, store
        self.thread = thread or ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._engine = AdapterEngine(base, slots=slots + 1, max_rank=max_rank, embeddings=embeddings)
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="reader")
        self._task = lru_cache(_TASKS)(self._build)
        self._prompts: dict[bool, Prompts] = {}
        self._own_processor: Any = copy.deepcopy(base.processor)  # a tokenizer may not be used by two threads at once

    async def read(self, entry: Entry) -> Loaded:
        """The entry's adapter from the store; AdapterError when it cannot be used."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, entry)

    async def swap(self, loaded: Loaded, victim: int | None) -> int:
        """Mount an adapter, then empty the victim's slot; what does not fit leaves everything as it was."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._swap, loaded, victim)

    async def unmount(self, slot: int) -> None:
        """Empty a slot."""
        await asyncio.get_running_loop().run_in_executor(self.thread, self._engine.evict, slot)

    def task(self, spec: TaskSpec, own_processor: bool = False) -> Task:
        """The task of a spec on this base; with `own_processor` one that encodes in another thread than the others."""
        return self._task(spec, own_processor)

    def _build(self, spec: TaskSpec, own_processor: bool) -> Task:
        return build_task(spec, self._own_processor if own_processor else self.base.processor)

    def prompts(self, most: int, own_processor: bool = False) -> Prompts:
        """How this base reads prompts of at most so many tokens; see `task`. RecipeError when it has no tokenizer."""
        if own_processor not in self._prompts:
            processor = self._own_processor if own_processor else self.base.processor
            self._prompts[own_processor] = Prompts(processor, self.base.config, most)
        return self._prompts[own_processor]

    def decoder(self, capacity: int, piece: int, prefix_bytes: int = 0) -> Decoder:
        """What writes answers token by token; AdapterError when the base is none that does. Only ever in `thread`."""
        prompts = self.prompts(capacity)
        return Decoder(self._engine, prompts.head, capacity, prompts.longest, piece, prefix_bytes)

    def encode_texts(self, texts: list[str]) -> list[Features]:
        """Token ids for embeddings, for the thread of `own_processor`; DataError when the base takes no text."""
        tokenizer = self._own_processor
        if not hasattr(tokenizer, "pad"):
            raise DataError(f"base {self.base.id!r} has no tokenizer; it gives no embeddings of text")
        longest = min(tokenizer.model_max_length, getattr(self.base.config, "max_position_embeddings", 512))
        encoded = tokenizer(texts, truncation=True, max_length=longest, return_token_type_ids=False)
        return [{"input_ids": ids} for ids in encoded["input_ids"]]

    def compute(self, rows: list[Row]) -> list[Any]:
        """Every row's answer, rows of all adapters in one pass. Only ever in `thread`."""
        answers: list[Any] = [None] * len(rows)
        asked = [index for index, row in enumerate(rows) if row.task is not None]
        if asked:
            chosen = [rows[index] for index in asked]
            tasks = {row.slot: row.task for row in chosen if row.task is not None}
            found = predict(
                self._engine,
                tasks,
                [r.features for r in chosen],
                [r.slot for r in chosen],
                [r.parameters for r in chosen],
                pieces={at for at, row in enumerate(chosen) if row.piece},
            )
            for index, answer in zip(asked, found, strict=True):
                answers[index] = answer
        bare = [index for index, row in enumerate(rows) if row.task is None]
        if bare:
            batch = pad([rows[index].features["input_ids"] for index in bare], self.base.processor)
            for index, vector in zip(bare, embed(self._engine, batch).tolist(), strict=True):
                answers[index] = vector
        return answers

    def close(self) -> None:
        """Stop the threads."""
        self.thread.shutdown(wait=False, cancel_futures=True)
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _read(self, entry: Entry) -> Loaded:
        try:
            _, adapter = self.store.load(entry.ref)
        except BeingWrittenError:
            raise
        except AdapterError as error:  # it was whole a moment ago
            raise ChangedError(f"{entry.ref} changed while it was read ({error}); ask again") from error
        if adapter.sha256 != entry.sha256:
            raise ChangedError(f"{entry.ref} changed while it was read; ask again")
        return Loaded(adapter, sum(t.numel() * t.element_size() for t in adapter.tensors.values()))

    def _swap(self, loaded: Loaded, victim: int | None) -> int:
        before = set(self._engine.residents)
        try:
            slot = self._engine.load(loaded.adapter)
            loaded.task = self._task_of(loaded.adapter, self._engine.residents[slot].head)
        except Exception:
            for half in set(self._engine.residents) - before:
                self._engine.evict(half)
            raise
        if victim is not None:
            self._engine.evict(victim)
        return slot

    def _task_of(self, adapter: Adapter, head: HeadSpec | None) -> Task | None:
        """The card's task, or what the head that plain PEFT wrote stands for."""
        spec = adapter.card.task or plain_spec(head, self.base.labels)
        if spec is not None:
            check_answers(spec, head)
        return None if spec is None else self.task(spec)


def pick_device(device: str | None) -> str:
    """The device asked for, else cuda where there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
