"""Requests for a few adapters over one shared beginning: many at once, a third given up,
several answers to one prompt, names that move and are unloaded. Plain PEFT alone is the oracle, by the content hash of
what answered.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import AdapterNotFoundError
from ray_lora.inference.sampling import Sampling
from ray_lora.serving.args import AppArgs
from ray_lora.serving.changes import withdraw
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.writing.speaker import Wanted
from ray_lora.store import Store, open_store, steer
from tests.unit.writing_world import Alone, make_adapter, make_base

SHARED = "the capital of Peru is Lima , a old city . the capital of Mali is Bamako , a new city ."
ENDS = ("", " who", " what is the river", " says yes no")
NAMES = ("left", "right", "left", "right", "third", "moving", "gone")  # the first two alternate
MOST, CLIENTS = 10, 12


@dataclass
class Told:
    """What came of it."""

    asked: int = 0
    whole: int = 0
    given_up: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    by_ref: Counter[str] = field(default_factory=Counter)
    memory_mb: list[float] = field(default_factory=list)


class World:
    """A base, three contents and their texts: [content hash, prompt] to the tokens' texts, by how many there are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder, make_base(folder / "base")
        self.texts: dict[tuple[str, str], list[str]] = {}
        self.contents = []
        for seed in range(3):
            path = make_adapter(self.base, folder / str(seed), seed=seed, rank=2 + seed)
            self.contents.append(Adapter.load(path))
            alone = Alone(self.base, path)
            for end in ENDS:
                ids = alone.ids(SHARED + end, MOST)
                said = [alone.tokenizer.decode(ids[:count], skip_special_tokens=True) for count in range(MOST + 1)]
                self.texts[self.contents[-1].sha256, SHARED + end] = said

    def start(self, place: Path, **options: Any) -> tuple[Endpoint, Store]:
        """An endpoint with two slots for the three contents; its store is made in `place`."""
        store = open_store(str(place / "store"))
        for name, kept in {"left": [0], "right": [1], "third": [2], "moving": [0, 1], "gone": [1]}.items():
            for content in kept:
                store.put(self.contents[content], name)
        folders = {"store": str(place / "store"), "results": str(place / "results")}
        args = {"base": str(self.base), "dtype": "float32", "slots": 2, "max_rank": 4, "prefix_bytes": 60_000}
        return start_endpoint(AppArgs.model_validate({**folders, **args, **options})), store


async def churn(endpoint: Endpoint, store: Store, world: World, generations: int, every: int = 1000) -> Told:
    """So many requests, `CLIENTS` at a time; memory is looked at after each `every`."""
    dice, told = random.Random(7), Told()

    async def ask(name: str) -> None:
        end, most, n = dice.choice(ENDS), dice.randrange(1, MOST + 1), dice.choice((1, 1, 2, 3))
        leaves = dice.randrange(most) if dice.random() < 0.3 else None  # after so many tokens
        prompt, counts = SHARED + end, Counter[int]()
        choice = await endpoint.names.choose(name)
        held: dict[int, str] = dict.fromkeys(range(n), "")
        sampling = Sampling(max_tokens=most, n=n)
        async with endpoint.speaker.speak(choice, Wanted(texts=(prompt,)), sampling) as reply:
            assert reply.entry is not None
            if leaves != 0:
                async for said in reply:
                    held[said.number] += said.text
                    counts[said.number] += 1
                    if counts.total() == leaves:
                        break
        expected = world.texts[reply.entry.sha256, prompt]
        told.by_ref[reply.entry.ref] += 1
        for number, text in held.items():
            right = expected[most].startswith(text) if leaves is not None else text == expected[most]
            if not right or reply.entry.sha256 != choice.entry.sha256:
                told.wrong.append(f"{reply.entry.ref} {prompt!r} {number}: {text!r}, not {expected[most]!r}")
        told.whole += leaves is None
        told.given_up += leaves is not None

    async def client() -> None:
        while told.asked < generations:
            number = told.asked
            told.asked += 1
            if number % 25 == 0:
                await asyncio.to_thread(store.point, "moving", steer.promote(1 + number // 25 % 2))
                await withdraw(endpoint.names, "gone", bool(number // 25 % 2))
            if number % every == 0:
                told.memory_mb.append(psutil.Process().memory_info().rss / 2**20)
            task = asyncio.create_task(ask(NAMES[number % len(NAMES)]))
            try:
                if number % 9 == 4:  # goes away at any moment
                    await asyncio.wait([task], timeout=dice.random() / 20)
                    told.given_up += task.cancel()
                await task
            except AdapterNotFoundError:
                told.refused += 1
            except asyncio.CancelledError:
                if not task.cancelled():
                    raise

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    told.memory_mb.append(psutil.Process().memory_info().rss / 2**20)
    return told


async def left_over(endpoint: Endpoint) -> dict[str, int]:
    """All that is held for requests; nothing once they have ended."""
    await asyncio.wrap_future(endpoint.machine.thread.submit(int))  # what was given up has left
    writer, steps = endpoint.speaker.writer, endpoint.speaker.writer._turns._steps
    decoder: Any = steps
    return {
        "answers": writer.running + writer.waiting,
        "streams": len(writer._streams),
        "rows": len(decoder.rows) + decoder.kept + len(writer._turns._owners),
        "row_bytes": decoder._decoding.bytes,
        "leases": sum(resident.leases for resident in endpoint.cache.residents()),
        "inside": endpoint.gate.inside + sum(endpoint.speaker.limits.inside_of.values()),
    }
