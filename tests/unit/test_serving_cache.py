"""Slots and leases, with adapters that are only names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from ray_lora.errors import AdapterError, AdapterNotFoundError, CapacityError
from ray_lora.serving.cache.slots import AdapterCache
from ray_lora.serving.machine import ChangedError
from ray_lora.store import BeingWrittenError, Entry, StoreAwayError


@dataclass
class Thing:
    name: str
    bytes: int = 10


@dataclass
class Engine:
    """Slots that hold names, and doors that keep loads waiting."""

    size: int
    slots: dict[int, str] = field(default_factory=dict)
    doors: dict[str, asyncio.Event] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    misfits: set[str] = field(default_factory=set)
    fullest: int = 0

    async def read(self, entry: Entry) -> Thing:
        self.reads.append(entry.name)
        if entry.name in self.doors:
            await self.doors[entry.name].wait()
        if entry.name in self.broken:
            raise AdapterError(f"{entry.name} is broken")
        return Thing(entry.name)

    async def swap(self, thing: Thing, victim: int | None) -> int:
        await asyncio.sleep(0)
        if thing.name in self.misfits:
            raise AdapterError(f"{thing.name} does not fit")
        slot = next(slot for slot in range(1, self.size + 2) if slot not in self.slots)
        self.slots[slot] = thing.name
        if victim is not None:
            del self.slots[victim]
        self.fullest = max(self.fullest, len(self.slots))
        return slot

    async def unmount(self, slot: int) -> None:
        await asyncio.sleep(0)
        del self.slots[slot]

    def cache(self, **options: Any) -> AdapterCache[Thing]:
        return AdapterCache(self.size, self.read, self.swap, self.unmount, **options)


def entry(name: str) -> Entry:
    return Entry(name, 1, (), f"sha-{name}", None, None, None, {}, 1, 10)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


async def settle(work: Awaitable[Any] | None = None) -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def use(cache: AdapterCache[Thing], engine: Engine, name: str) -> None:
    async with cache.lease(entry(name)) as resident:
        assert engine.slots[resident.slot] == name
        await asyncio.sleep(0)
        assert engine.slots[resident.slot] == name


def test_an_adapter_in_use_is_never_evicted() -> None:
    async def main() -> None:
        engine = Engine(2)
        cache = engine.cache()
        async with AsyncExitStack() as held:
            for name in ("a", "b"):
                await held.enter_async_context(cache.lease(entry(name)))
            late = asyncio.create_task(use(cache, engine, "c"))
            await settle()
            assert not late.done()
            assert set(engine.slots.values()) == {"a", "b"}
        await late
        assert "c" in engine.slots.values()
        assert cache.stats.evictions == 1

    run(main)


def test_the_least_recently_used_goes_first() -> None:
    async def main() -> None:
        engine = Engine(2)
        cache = engine.cache()
        for name in ("a", "b", "a", "c"):
            await use(cache, engine, name)
        assert set(engine.slots.values()) == {"a", "c"}
        await use(cache, engine, "b")
        assert engine.reads == ["a", "b", "c"]  # b came back from RAM

    run(main)


@pytest.mark.parametrize("fault", ["broken", "misfits"])
def test_a_bad_adapter_evicts_nothing_and_is_remembered(fault: str) -> None:
    async def main() -> None:
        engine = Engine(2)
        getattr(engine, fault).add("bad")
        cache = engine.cache(negative_s=60)
        await use(cache, engine, "a")
        await use(cache, engine, "b")
        for _ in range(3):
            with pytest.raises(AdapterError, match="bad"):
                await use(cache, engine, "bad")
        assert set(engine.slots.values()) == {"a", "b"}
        assert engine.reads.count("bad") == 1
        assert cache.stats.evictions == 0
        getattr(engine, fault).clear()
        cache.forget_failures()
        await use(cache, engine, "bad")

    run(main)


@pytest.mark.parametrize("error", [StoreAwayError, BeingWrittenError, ChangedError, AdapterNotFoundError])
def test_what_was_wrong_with_the_place_is_not_remembered_of_the_content(error: type[Exception]) -> None:
    async def main() -> None:
        engine = Engine(2)
        reads = iter([error("not now"), Thing("a")])

        async def read(entry: Entry) -> Thing:
            got = next(reads)
            if isinstance(got, Exception):
                raise got
            return got

        cache = AdapterCache(2, read, engine.swap, engine.unmount, negative_s=60)
        with pytest.raises(error, match="not now"):
            async with cache.lease(entry("a")):
                pass
        async with cache.lease(entry("a")) as lease:  # the store is back, or the same content lies elsewhere
            assert lease.loaded.name == "a"

    run(main)


def test_requests_for_one_adapter_share_one_load_and_different_ones_load_at_once() -> None:
    async def main() -> None:
        engine = Engine(4, doors={name: asyncio.Event() for name in "abc"})
        cache = engine.cache()
        tasks = [asyncio.create_task(use(cache, engine, name)) for name in "aabbcc"]
        await settle()
        assert sorted(engine.reads) == ["a", "b", "c"]
        engine.doors["c"].set()
        await asyncio.gather(*tasks[4:])
        assert not tasks[0].done()
        engine.doors["a"].set()
        engine.doors["b"].set()
        await asyncio.gather(*tasks)
        assert sorted(engine.reads) == ["a", "b", "c"]

    run(main)


def test_a_cancelled_waiter_holds_nothing() -> None:
    async def main() -> None:
        engine = Engine(1, doors={"b": asyncio.Event()})
        cache = engine.cache()
        await use(cache, engine, "a")
        gone = asyncio.create_task(use(cache, engine, "b"))
        await settle()
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        engine.doors["b"].set()
        await settle()
        for name in ("c", "a", "b"):
            await use(cache, engine, name)
        assert all(resident.leases == 0 for resident in cache.residents())

    run(main)


def test_one_who_waits_for_a_slot_is_not_starved_by_a_busy_adapter() -> None:
    async def main() -> None:
        engine = Engine(1)
        cache = engine.cache(patience_s=0)
        served: list[str] = []

        async def client(name: str, rounds: int) -> None:
            for _ in range(rounds):
                async with cache.lease(entry(name)):
                    await asyncio.sleep(0.001)
                served.append(name)

        busy = [asyncio.create_task(client("hot", 50)) for _ in range(4)]
        await asyncio.sleep(0.005)
        await client("cold", 1)
        assert served.index("cold") < 100  # of 201; the hot ones never all pause by themselves
        await asyncio.gather(*busy)

    run(main)


def test_a_pinned_adapter_stays_and_one_slot_stays_free() -> None:
    async def main() -> None:
        engine = Engine(2)
        cache = engine.cache()
        await cache.pin(entry("a"))
        with pytest.raises(CapacityError, match="1 pinned"):
            await cache.pin(entry("b"))
        for name in "bcd":
            await use(cache, engine, name)
        assert "a" in engine.slots.values()
        cache.unpin(entry("a"))
        await use(cache, engine, "e")
        await use(cache, engine, "f")
        assert "a" not in engine.slots.values()

    run(main)


def test_dropping_waits_for_the_last_lease() -> None:
    async def main() -> None:
        engine = Engine(2)
        cache = engine.cache()
        async with cache.lease(entry("a")):
            assert cache.drop(entry("a"))
            await settle()
            assert "a" in engine.slots.values()
        await settle()
        assert engine.slots == {}
        assert not cache.drop(entry("a"))
        await use(cache, engine, "a")
        assert engine.reads == ["a", "a"]

    run(main)


def test_the_ram_tier_keeps_to_its_budget() -> None:
    async def main() -> None:
        engine = Engine(2)
        cache = engine.cache(ram_bytes=25)
        for name in "abcd":
            await use(cache, engine, name)
            assert cache.ram_used <= 25
        await use(cache, engine, "c")
        assert engine.reads == ["a", "b", "c", "d"]
        await use(cache, engine, "a")
        assert engine.reads == ["a", "b", "c", "d", "a"]

    run(main)


def test_many_clients_on_few_slots_never_meet_another_adapter() -> None:
    async def main() -> None:
        engine = Engine(3)
        cache = engine.cache(ram_bytes=30, patience_s=0.001)
        names = [f"n{number % 17}" for number in range(600)]
        await asyncio.gather(*(use(cache, engine, name) for name in names))
        assert engine.fullest <= 4  # the slots and the spare one
        assert len(cache.residents()) == 3

    run(main)
