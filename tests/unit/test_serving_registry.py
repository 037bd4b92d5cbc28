"""Refs to entries, over a store that counts its questions."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ray_lora.errors import AdapterNotFoundError
from ray_lora.serving.registry import Registry
from ray_lora.store import Entry, StoreAwayError
from ray_lora.store.folder import FolderStore
from ray_lora.store.local import LocalFiles


@dataclass
class Counting:
    """A store that is asked only what a registry asks."""

    uri: str = "counting"
    versions: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    away: bool = False

    def resolve(self, ref: str) -> Entry:
        self.asked.append(ref)
        if self.away:
            raise StoreAwayError("nobody answers")
        if ref not in self.versions:
            raise AdapterNotFoundError(f"{ref!r} is not in the store")
        return Entry(ref, self.versions[ref], (), f"sha-{ref}-{self.versions[ref]}", None, None, None, {}, 1, 1)

    def list(self, name: str | None = None, people: bool = True) -> list[Entry]:
        return [self.resolve(held) for held in self.versions if name in (None, held)]

    def put(self, adapter: Any, name: str, aliases: Sequence[str] = ()) -> Entry:
        raise NotImplementedError

    def get(self, ref: str) -> tuple[Entry, Path]:
        raise NotImplementedError

    def load(self, ref: str) -> tuple[Entry, Any]:
        raise NotImplementedError

    def alias(self, name: str, alias: str, version: int | None) -> None:
        raise NotImplementedError

    def remove(self, ref: str) -> None:
        raise NotImplementedError


def test_a_folder_is_asked_every_time() -> None:
    async def main() -> None:
        store = Counting(versions={"a": 1})
        registry = Registry(store, fresh_s=0)
        assert (await registry.resolve("a")).version == 1
        store.versions["a"] = 2
        assert (await registry.resolve("a")).version == 2
        with pytest.raises(AdapterNotFoundError):
            await registry.resolve("b")
        store.versions["b"] = 1
        assert (await registry.resolve("b")).version == 1
        registry.close()

    asyncio.run(main())


class Clock:
    """Time that passes only where somebody waits."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Waits(FolderStore):
    """A folder on a disk that makes who asks wait, for as long as `waits` says, question by question."""

    clock: Clock
    waits: list[float]
    found = Entry("a", 1, (), "sha", None, None, None, {}, 1, 1)

    def recall(self, ref: str) -> Entry | None:
        self.clock.now += self.waits.pop(0)
        return self.found

    def resolve(self, ref: str) -> Entry:
        return self.found


@pytest.mark.parametrize(
    ("waits", "left"),
    [
        ([0.01, 0.01, 0, 0.01, 0.01, 0, 0], []),  # now and then may be another thread's turn
        ([0.01, 0.01, 0.01, 0], [0]),  # three on end are the disk's
        ([0.15, 0], [0]),  # and so is a long one
    ],
    ids=["now and then", "three on end", "a long one"],
)
def test_a_disk_that_keeps_the_loop_waiting_is_asked_by_threads(
    waits: list[float], left: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        store = Waits(LocalFiles(tmp_path), str(tmp_path))
        store.clock, store.waits = Clock(), list(waits)
        monkeypatch.setattr("ray_lora.serving.registry.time", store.clock)
        registry = Registry(store, fresh_s=0)
        for _ in waits:
            assert await registry.resolve("a") == store.found
        assert store.waits == left
        registry.close()

    asyncio.run(main())


def test_a_far_store_is_asked_once_in_a_while_and_after_a_refresh() -> None:
    async def main() -> None:
        store = Counting(versions={"a": 1})
        registry = Registry(store, fresh_s=60)
        await asyncio.gather(*(registry.resolve("a") for _ in range(20)))
        for _ in range(3):
            with pytest.raises(AdapterNotFoundError):
                await registry.resolve("missing")
        assert store.asked == ["a", "missing"]
        store.versions["a"] = 2
        assert (await registry.resolve("a")).version == 1
        registry.refresh()
        assert (await registry.resolve("a")).version == 2
        registry.close()

    asyncio.run(main())


def test_what_is_known_is_served_while_the_store_is_away(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        store = Counting(versions={"a": 1})
        registry = Registry(store, fresh_s=0)
        await registry.resolve("a")
        listed = await registry.list()
        store.away = True
        assert (await registry.resolve("a")).version == 1
        assert await registry.list() == listed
        assert registry.away
        with pytest.raises(StoreAwayError):
            await registry.resolve("b")
        store.away = False
        await registry.resolve("a")
        assert not registry.away
        registry.close()

    with caplog.at_level(logging.WARNING, "ray_lora"):
        asyncio.run(main())
    assert "is away" in caplog.text


def test_a_ref_that_cannot_be_one_never_reaches_the_store() -> None:
    async def main() -> None:
        store = Counting()
        registry = Registry(store, fresh_s=0)
        for ref in ("../../etc", "a/b", "", "a@@b", "a@0", "\ud800"):
            with pytest.raises(AdapterNotFoundError, match="not a ref"):
                await registry.resolve(ref)
        assert store.asked == []
        registry.close()

    asyncio.run(main())


class Hanging(Counting):
    """A far store that takes questions and does not answer them."""

    hanging: threading.Event | None = None  # until it is set

    def resolve(self, ref: str) -> Entry:
        if self.hanging is not None:
            self.hanging.wait()
        return super().resolve(ref)


def test_a_store_that_hangs_holds_up_nobody_who_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_lora.serving.registry.PATIENCE_S", 0.05)
    monkeypatch.setattr("ray_lora.serving.registry._WAIT_S", 0.05)

    async def main() -> None:
        store = Hanging(versions={"a": 1, "b": 1})
        registry = Registry(store, fresh_s=0.001)
        listed = await registry.list()
        first = {ref: await registry.resolve(ref) for ref in "ab"}
        store.hanging = threading.Event()
        store.versions["a"] = 2
        asked = len(store.asked)
        for _ in range(20):
            await asyncio.sleep(0.002)  # so that nothing is fresh
            for ref in "ab":
                assert await registry.resolve(ref) == first[ref]
            assert await registry.list() == listed
        assert registry.away
        with pytest.raises(StoreAwayError):
            await registry.resolve("c")
        store.hanging.set()
        while registry.away or (await registry.resolve("a")).version == 1:  # the question that hung is answered
            await asyncio.sleep(0.01)
        assert len(store.asked) - asked < 20
        registry.close()

    asyncio.run(main())
