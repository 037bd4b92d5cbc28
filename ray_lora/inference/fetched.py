"""Adapters of a store in RAM, read by one thread ahead of the rows that need them.

    fetched = Fetched(store, ram_bytes=1 << 30)
    fetched.expect(entries)               # in the order in which they will be taken
    adapter = fetched.take(entries[0])    # waits only where the thread is not there yet

It knows entries and bytes, no engines and no rows. Use it from one thread.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import AdapterError
from ray_lora.store import Entry, Store, StoreAwayError

_AHEAD = 0.25  # of the bytes in RAM, for adapters that nobody has taken yet
_WAITS_S = (1.0, 4.0, 15.0)  # for a store that does not answer


class Fetched:
    """See the module.

    Args:
        ram_bytes: the adapters that were taken are kept up to so many bytes, the least recently taken go first.
    """

    def __init__(self, store: Store, ram_bytes: int) -> None:
        self._store, self._budget = store, ram_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        self._held: OrderedDict[str, tuple[Adapter, int]] = OrderedDict()
        self._reading: dict[str, tuple[Future[Adapter], int]] = {}
        self._coming: deque[Entry] = deque()
        self._given: dict[str, Adapter] = {}

    def __contains__(self, entry: Entry) -> bool:
        return entry.sha256 in self._held or entry.sha256 in self._given

    def give(self, entry: Entry, adapter: Adapter) -> None:
        """An adapter that is in no store, kept until the end."""
        self._given[entry.sha256] = adapter

    def expect(self, entries: Iterable[Entry]) -> None:
        """Begin to read what will be taken; what was expected before is no longer."""
        self._coming = deque(entries)
        self._read_on()

    def take(self, entry: Entry) -> Adapter:
        """The entry's adapter, of exactly its content.

        Raises:
            AdapterError, AdapterNotFoundError: it cannot be used, is gone, or holds something else by now.
            StoreAwayError: the store does not answer, for twenty seconds.
        """
        key = entry.sha256
        if key in self._given:
            return self._given[key]
        if key in self._held:
            self._held.move_to_end(key)
        else:
            if key not in self._reading:
                self._reading[key] = (self._thread.submit(self._read, entry), entry.bytes)
            future, _ = self._reading.pop(key)
            self._held[key] = (future.result(), entry.bytes)
            while len(self._held) > 1 and sum(size for _, size in self._held.values()) > self._budget:
                self._held.popitem(last=False)
        self._read_on()
        return self._held[key][0]

    def close(self) -> None:
        """Stop reading."""
        self._coming.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _read_on(self) -> None:
        ahead = sum(size for _, size in self._reading.values())
        while self._coming and (not self._reading or ahead + self._coming[0].bytes <= _AHEAD * self._budget):
            entry = self._coming.popleft()
            if entry not in self and entry.sha256 not in self._reading:
                self._reading[entry.sha256] = (self._thread.submit(self._read, entry), entry.bytes)
                ahead += entry.bytes

    def _read(self, entry: Entry) -> Adapter:
        for wait in (*_WAITS_S, None):
            try:
                _, adapter = self._store.load(entry.ref)
                break
            except StoreAwayError:
                if wait is None:
                    raise
                time.sleep(wait)
        if adapter.sha256 != entry.sha256:
            raise AdapterError(
                f"{entry.ref} is no longer what it was when this run began ({entry.sha256[:12]}…); put what is there "
                "now into the store as a new version"
            )
        return adapter
