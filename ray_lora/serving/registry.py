"""Refs to entries, live: what the store says now, for as long as `fresh_s`. Knows stores, not engines or HTTP.

A local folder is asked for every request (`fresh_s=0`): when a move of an alias has returned, no later request is
answered by the version before. A bucket or MLflow is asked at most once in `fresh_s` for a ref, unless `refresh()`
comes between. While the store is away, or takes a question and does not answer, what is known goes on being answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ray_lora.errors import AdapterError, AdapterNotFoundError
from ray_lora.store import BeingWrittenError, Entry, Store, StoreAwayError, parse_ref
from ray_lora.store.folder import FolderStore
from ray_lora.store.refs import is_person
from ray_lora.store.verified import settle_s

_logger = logging.getLogger(__name__)
_KEPT = 4096  # refs remembered
PATIENCE_S = (
    1.0  # with a far store, where something is known; one question is given so much, and then none until it ends
)
_WAIT_S = 10.0  # where nothing is
_QUICK_S, _AT_ALL_S = 0.002, 0.1  # the event loop does not wait longer for a disk three times on end, or once at all
_SLOW_S = 10.0  # for which a disk that made it wait is asked by threads
_AGAIN_S, _MORE_S = 0.1, 1.0  # how often, and how much longer than it must rest, a version being written is waited for
T = TypeVar("T")
_Entries = list[Entry]  # a registry has a `list` of its own


def not_held(name: str, sha256: str) -> AdapterNotFoundError:
    """The error for a content that is not there."""
    return AdapterNotFoundError(
        f"no version of {name!r} has the content {sha256}; GET /v1/models/{name} says which are"
    )


class Registry:
    """A view of one store. Use from one event loop."""

    def __init__(self, store: Store, fresh_s: float) -> None:
        self.store, self.fresh_s = store, fresh_s
        self.away = False  # whether the store did not answer when it was last asked
        self._known: OrderedDict[str, tuple[Entry | AdapterNotFoundError | AdapterError, float]] = OrderedDict()
        self._exact: OrderedDict[tuple[str, str], str] = OrderedDict()  # (name, hash) -> the ref that had it
        self._asked: dict[str, asyncio.Task[Entry]] = {}
        self._listed: tuple[list[Entry], float] | None = None
        self._listing: asyncio.Task[_Entries] | None = None
        self._late: set[asyncio.Task[Any]] = set()  # questions that a far store has not answered in time
        self._slow, self._slow_until = 0, 0.0
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="store")

    async def resolve(self, ref: str) -> Entry:
        """The entry a ref names now.

        Raises:
            AdapterNotFoundError, AdapterError: the store says so, now or less than `fresh_s` ago.
            StoreAwayError: the store does not answer and the ref is not known from before.
        """
        parse_ref(ref)
        known = self._known.get(ref)
        if known is None or time.monotonic() - known[1] >= self.fresh_s:
            return await self._ask(ref)
        if isinstance(known[0], Exception):
            raise known[0].with_traceback(None)
        return known[0]

    async def exactly(self, name: str, sha256: str) -> Entry:
        """The newest version of a name whose content has this hash, read and compared.

        Raises:
            AdapterNotFoundError: there is none that can be used.
        """
        known = self._exact.get((name, sha256))
        if known is not None and (found := await self._with_hash(known, sha256)) is not None:
            return found
        held = [entry for entry in await self.versions(name) if entry.sha256 in ("", sha256)]
        for entry in sorted(held, key=lambda entry: -entry.version):
            if (found := await self._with_hash(entry.ref, sha256)) is not None:
                self._exact[name, sha256] = entry.ref
                while len(self._exact) > _KEPT:
                    self._exact.popitem(last=False)
                return found
        raise not_held(name, sha256)

    async def _with_hash(self, ref: str, sha256: str) -> Entry | None:
        try:
            entry = await self.resolve(ref)
        except (AdapterNotFoundError, AdapterError):
            return None
        return entry if entry.sha256 == sha256 else None

    async def holds(self, name: str) -> bool:
        """Whether the store has adapters of this name, which need be none it can use."""
        if isinstance(self.store, FolderStore):
            store = self.store
            return await self._in_thread(lambda: store.holds(name))
        try:
            await self.resolve(name)
        except AdapterNotFoundError:
            return False
        return True

    async def still_holds(self, name: str) -> bool:
        """As `holds`, asked of the store now.

        Raises:
            StoreAwayError: it does not answer.
        """
        return bool(await self._in_thread(lambda: self.store.list(name)))

    async def versions(self, name: str) -> list[Entry]:
        """The entries of one name."""
        if is_person(name):
            return await self._in_thread(lambda: self.store.list(name))
        return [entry for entry in await self.list() if entry.name == name]

    async def list(self) -> list[Entry]:
        """All entries but single persons'; what was listed last while the store is away."""
        known = self._listed
        if known is not None and time.monotonic() - known[1] < self.fresh_s:
            return known[0]
        if self.fresh_s == 0:
            return await self._list_now()
        if known is not None and self._late:
            return known[0]
        if self._listing is None or self._listing.done():
            self._listing = asyncio.create_task(self._list_now())
        return await self._within(self._listing, None if known is None else known[0])

    async def _list_now(self) -> _Entries:
        asked = time.monotonic()
        try:
            self._listed = (await self._in_thread(lambda: self.store.list(people=False)), asked)
            self.away = False
        except StoreAwayError:
            self.away = True
            if self._listed is None:
                raise
        return self._listed[0]

    def refresh(self) -> None:
        """Make every later request ask the store anew; what is known still helps when the store is away."""
        self._known = OrderedDict((ref, (entry, float("-inf"))) for ref, (entry, _) in self._known.items())
        self._asked.clear()
        if self._listed is not None:
            self._listed = (self._listed[0], float("-inf"))

    def forget(self, name: str) -> set[str]:
        """Know nothing of a name, also while the store is away; the contents that it was known to have."""
        mine = {ref for ref in self._known if ref.partition("@")[0] == name}
        known = [self._known.pop(ref)[0] for ref in mine]
        self._exact = OrderedDict((key, ref) for key, ref in self._exact.items() if key[0] != name)
        if self._listed is not None:
            self._listed = ([entry for entry in self._listed[0] if entry.name != name], float("-inf"))
        return {entry.sha256 for entry in known if isinstance(entry, Entry)}

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, ref: str) -> Entry:
        """Ask the store; where answers may be `fresh_s` old, requests that ask for the same ref share one question."""
        if self.fresh_s == 0:
            return await self._look(ref)
        task, known = self._asked.get(ref), self._known.get(ref)
        entry = known[0] if known is not None and isinstance(known[0], Entry) else None
        if entry is not None and self._late:
            return entry
        if task is None:
            task = self._asked[ref] = asyncio.create_task(self._look(ref))
            task.add_done_callback(lambda done: self._forget_task(ref, done))
        return await self._within(task, entry)

    async def _within(self, task: asyncio.Task[T], known: T | None) -> T:
        """What a question's answer is, or what is known where it does not come soon; it is waited for beside requests.

        Raises:
            StoreAwayError: nothing is known, and no answer came.
        """
        await asyncio.wait([task], timeout=_WAIT_S if known is None else PATIENCE_S)
        if task.done():
            return task.result()
        self.away = True
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        if known is None:
            raise StoreAwayError(f"the store {self.store.uri} has not answered within {_WAIT_S:g} s")
        return known

    def _forget_task(self, ref: str, task: asyncio.Task[Entry]) -> None:
        if self._asked.get(ref) is task:
            del self._asked[ref]
        if not task.cancelled():
            task.exception()  # seen, even when everyone who asked has left

    async def _look(self, ref: str) -> Entry:
        asked = time.monotonic()
        try:
            entry = await self._settled(ref, asked)
        except (AdapterNotFoundError, AdapterError) as error:
            self._remember(ref, error, asked)
            raise
        except StoreAwayError:
            self.away = True
            known = self._known.get(ref)
            if known is None or isinstance(known[0], Exception):
                raise
            _logger.warning("the store %s is away; %s stays %s", self.store.uri, ref, known[0].ref)
            self._known[ref] = (known[0], asked)
            return known[0]
        self.away = False
        self._remember(ref, entry, asked)
        return entry

    async def _settled(self, ref: str, asked: float) -> Entry:
        """What the store says, once a version that is being written is whole, or has been so for too long."""
        while True:
            try:
                entry = self._recall(ref)
                return await self._in_thread(lambda: self.store.resolve(ref)) if entry is None else entry
            except BeingWrittenError:
                if time.monotonic() - asked > settle_s() + _MORE_S:
                    raise
            await asyncio.sleep(_AGAIN_S)

    def _recall(self, ref: str) -> Entry | None:
        """What a local folder knows, without a thread, which costs more than the question; unless its disk is slow."""
        began = time.monotonic()
        if self.fresh_s > 0 or not isinstance(self.store, FolderStore) or began < self._slow_until:
            return None
        try:
            return self.store.recall(ref)
        finally:
            took = time.monotonic() - began
            self._slow = self._slow + 1 if took > _QUICK_S else 0  # once may be another thread's turn, not the disk's
            if self._slow >= 3 or took > _AT_ALL_S:
                self._slow, self._slow_until = 0, began + _SLOW_S

    def _remember(self, ref: str, answer: Entry | AdapterNotFoundError | AdapterError, asked: float) -> None:
        self._known[ref] = (answer, asked)
        self._known.move_to_end(ref)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
