"""Which adapters sit in the engine's slots, and who is using them.

The cache owns slots and a RAM tier and knows nothing of tensors, stores or HTTP. It is given functions: `load(entry)`
reads and verifies an adapter (several run at once), `swap(loaded, victim)` mounts it and then frees the victim's slot
(one after another, where the engine computes), `unmount(slot)` frees a slot.

    async with cache.lease(entry) as lease:
        ... lease.slot stays this adapter's until the block ends ...

Rules: a slot with a lease is never evicted; an adapter is read, checked and mounted before its victim goes, so one that
fails costs nobody a slot and is remembered for `negative_s`; leases on resident adapters may overtake a request that
waits for a slot for `patience_s`, no longer; an adapter is identified by its content hash alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, Literal

from ray_lora.errors import AdapterNotFoundError, CapacityError
from ray_lora.serving.cache.tiers import Failures, L, RamTier
from ray_lora.store import BeingWrittenError, Entry, StoreAwayError


@dataclass
class Resident(Generic[L]):
    """An adapter in a slot."""

    entry: Entry
    loaded: L
    slot: int
    leases: int = 0
    used: float = 0.0
    pinned: bool = False
    doomed: bool = False  # leaves its slot as soon as nobody uses it


# These say where it was looked for, and when, not what this content is, which may lie elsewhere or be back at once.
_OF_THE_PLACE = (StoreAwayError, BeingWrittenError, AdapterNotFoundError)
Event = Literal["hits", "misses", "loads", "evictions", "failures"]


@dataclass
class CacheStats:
    """Counters since the start."""

    hits: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0
    failures: int = 0


@dataclass
class _Line(Generic[L]):
    """The requests that wait for one adapter."""

    entry: Entry
    since: float
    waiters: deque[asyncio.Future[Resident[L]]] = field(default_factory=deque)


class AdapterCache(Generic[L]):
    """Slots with leases over a RAM tier with a byte budget. Use from one event loop."""

    def __init__(
        self,
        slots: int,
        load: Callable[[Entry], Awaitable[L]],
        swap: Callable[[L, int | None], Awaitable[int]],
        unmount: Callable[[int], Awaitable[None]],
        *,
        ram_bytes: int = 1 << 30,
        negative_s: float = 2.0,
        patience_s: float = 0.05,
    ) -> None:
        self.slots, self.patience_s = slots, patience_s
        self.stats = CacheStats()
        self.on_event: Callable[[Event, str], None] = lambda event, name: None  # told of every count in `stats`
        self._load, self._swap, self._unmount = load, swap, unmount
        self._resident: OrderedDict[str, Resident[L]] = OrderedDict()  # least recently used first
        self._ram: RamTier[L] = RamTier(ram_bytes)
        self._lines: OrderedDict[str, _Line[L]] = OrderedDict()  # longest waiting first
        self._loading: set[str] = set()
        self._mounting: set[str] = set()  # each has taken a free slot or marked a victim
        self._leaving: set[str] = set()  # victims and the unloaded, still in their slots
        self._failures = Failures(negative_s)
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def lease(self, entry: Entry) -> AsyncIterator[Resident[L]]:
        """Hold the adapter in a slot for as long as the block runs.

        Raises:
            RayLoraError: what `load` or `swap` raised for this adapter, now or a moment ago.
        """
        resident = await self._acquire(entry)
        try:
            yield resident
        finally:
            self._release(resident)

    async def pin(self, entry: Entry) -> None:
        """Load the adapter and keep it in its slot until `unpin`. One slot always stays unpinned."""
        async with self.lease(entry) as resident:
            if not resident.pinned and 1 + sum(other.pinned for other in self._resident.values()) >= self.slots:
                raise CapacityError(f"{self.slots} slots allow {self.slots - 1} pinned adapters; unpin one first")
            resident.pinned = True

    def unpin(self, entry: Entry) -> None:
        """Let the adapter be evicted again."""
        resident = self._resident.get(entry.sha256)
        if resident is None:
            raise AdapterNotFoundError(f"adapter '{entry.name}@{entry.version}' is not resident")
        resident.pinned = False
        self._pump()

    def drop(self, entry: Entry) -> bool:
        """Forget the adapter: out of RAM now, out of its slot when its last lease ends. False: it was not here."""
        return self._drop(entry.sha256)

    def forget(self, name: str) -> set[str]:
        """Drop what was read for a name; the contents."""
        mine = {key for key, resident in self._resident.items() if resident.entry.name == name}
        mine.update(self._ram.of(name))
        for key in mine:
            self._drop(key)
        return mine

    def _drop(self, key: str) -> bool:
        known = self._ram.drop(key)
        self._failures.forget(key)
        resident = self._resident.get(key)
        if resident is not None:
            resident.doomed, resident.pinned = True, False
            if resident.leases == 0:
                self._evict_doomed(resident)
        return known or resident is not None

    def forget_failures(self) -> None:
        """Give every adapter that failed another chance."""
        self._failures.forget()

    @property
    def ram_used(self) -> int:
        """Bytes of the adapters in the RAM tier."""
        return self._ram.used

    def residents(self) -> list[Resident[L]]:
        """What sits in slots, least recently used first."""
        return list(self._resident.values())

    async def close(self) -> None:
        """Cancel what still loads."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _acquire(self, entry: Entry) -> Resident[L]:
        key = entry.sha256
        self._failures.check(key)
        resident = self._resident.get(key)
        if resident is not None and self._free_to_use(key) and key not in self._lines and not self._someone_starves():
            self._count("hits", entry)
            return self._grant(resident)
        self._count("misses" if resident is None else "hits", entry)
        line = self._lines.setdefault(key, _Line(entry, time.monotonic()))
        waiter: asyncio.Future[Resident[L]] = asyncio.get_running_loop().create_future()
        line.waiters.append(waiter)
        self._pump()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._release(waiter.result())
            else:
                self._leave_line(key, waiter)
            raise

    def _grant(self, resident: Resident[L]) -> Resident[L]:
        resident.leases += 1
        resident.used = time.monotonic()
        self._resident.move_to_end(resident.entry.sha256)
        return resident

    def _release(self, resident: Resident[L]) -> None:
        resident.leases -= 1
        if resident.leases == 0 and resident.doomed:
            self._evict_doomed(resident)
        elif resident.leases == 0 and self._lines:
            self._pump()

    def _leave_line(self, key: str, waiter: asyncio.Future[Resident[L]]) -> None:
        line = self._lines.get(key)
        if line is not None and waiter in line.waiters:
            line.waiters.remove(waiter)
            if not line.waiters:
                del self._lines[key]
        self._pump()

    def _free_to_use(self, key: str) -> bool:
        resident = self._resident.get(key)
        return resident is not None and key not in self._leaving and not resident.doomed

    def _someone_starves(self) -> bool:
        """Whether the longest waiting line that only lacks a slot has waited longer than `patience_s`."""
        for key, line in self._lines.items():
            if key in self._ram and key not in self._mounting:
                return time.monotonic() - line.since > self.patience_s
        return False

    def _pump(self) -> None:
        """Serve the lines, longest waiting first: grant what is resident, mount what is read, read the rest."""
        for key, line in list(self._lines.items()):
            if self._free_to_use(key):
                del self._lines[key]
                for waiter in line.waiters:
                    if not waiter.done():
                        waiter.set_result(self._grant(self._resident[key]))
            elif key in self._resident or key in self._mounting:
                continue  # it is leaving or coming; this runs again when it has
            elif key in self._ram:
                if not self._mount(line) and time.monotonic() - line.since > self.patience_s:
                    return  # nobody may take a slot, or prolong a lease, before this line
            elif key not in self._loading:
                self._loading.add(key)
                self._start(self._read(line.entry))

    def _mount(self, line: _Line[L]) -> bool:
        """Begin to mount a line's adapter if a slot is free or can be freed."""
        key = line.entry.sha256
        victim: Resident[L] | None = None
        if len(self._resident) + len(self._mounting) - len(self._leaving) >= self.slots:
            idle = [
                resident
                for other, resident in self._resident.items()
                if resident.leases == 0 and not resident.pinned and other not in self._leaving
            ]
            if not idle:
                return False
            victim = min(idle, key=lambda resident: (resident.entry.sha256 in self._lines, resident.used))
            self._leaving.add(victim.entry.sha256)
        self._mounting.add(key)
        self._start(self._exchange(line.entry, self._ram.use(key), victim))
        return True

    async def _exchange(self, entry: Entry, loaded: L, victim: Resident[L] | None) -> None:
        key = entry.sha256
        try:
            slot = await self._swap(loaded, victim.slot if victim else None)
        except Exception as error:
            self._ram.drop(key)
            self._fail(entry, error)
        else:
            if victim is not None:
                self._resident.pop(victim.entry.sha256)
                self._count("evictions", victim.entry)
            self._resident[key] = Resident(entry, loaded, slot, used=time.monotonic())
        finally:
            self._mounting.discard(key)
            if victim is not None:
                self._leaving.discard(victim.entry.sha256)
        self._pump()

    async def _read(self, entry: Entry) -> None:
        key = entry.sha256
        try:
            self._ram.hold(key, await self._load(entry), entry.name)
            self._count("loads", entry)
            self._ram.trim(keep=self._lines)
        except Exception as error:
            self._fail(entry, error)
        finally:
            self._loading.discard(key)
        self._pump()

    def _fail(self, entry: Entry, error: Exception) -> None:
        if not isinstance(error, _OF_THE_PLACE):
            self._failures.remember(entry.sha256, error)
        self._count("failures", entry)
        line = self._lines.pop(entry.sha256, None)
        for waiter in line.waiters if line else ():
            if not waiter.done():
                waiter.set_exception(error)

    def _evict_doomed(self, resident: Resident[L]) -> None:
        key = resident.entry.sha256
        if key not in self._leaving:
            self._leaving.add(key)
            self._start(self._remove(resident))

    async def _remove(self, resident: Resident[L]) -> None:
        key = resident.entry.sha256
        try:
            await self._unmount(resident.slot)
        finally:
            self._resident.pop(key, None)
            self._leaving.discard(key)
        self._count("evictions", resident.entry)
        self._pump()

    def _count(self, event: Event, entry: Entry) -> None:
        setattr(self.stats, event, getattr(self.stats, event) + 1)
        self.on_event(event, entry.name)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
