"""A store of PEFT folders in one place: `NAME/VERSION/`, or `NAME/` alone as plain PEFT wrote it (then version 1).

    store/
      tweets/1/adapter_config.json  adapter_model.safetensors  ray_lora.json
      tweets/2/…
      tweets/aliases.json           {"champion": 2}
      tweets/traffic.json           {"split": {"1": 90, "2": 10}}
      movies/adapter_config.json    adapter_model.safetensors

It knows what an adapter's small files say; where they lie is `files.py`'s, what the tensors mean `adapter.py`'s.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ray_lora.bounds import short
from ray_lora.errors import AdapterError
from ray_lora.store.cache import Fetched, checked, forget_copies, local_copy
from ray_lora.store.described import Described, Stats, VanishedError, versions_of
from ray_lora.store.files import ALIASES, CLAIMS, TRAFFIC, Files, Listing, claimed
from ray_lora.store.left_out import LeftOut
from ray_lora.store.refs import (
    CHAMPION,
    check_alias,
    check_name,
    choose,
    is_alias,
    is_person,
    only_version,
    parse_ref,
    unknown,
)
from ray_lora.store.steer import Change, Pointers, check_unused, steps
from ray_lora.store.store import BeingWrittenError, Cleared, Entry
from ray_lora.store.traffic import Traffic, parse_traffic
from ray_lora.store.verified import Verified

if TYPE_CHECKING:
    from ray_lora.adapters.adapter import Adapter

_LARGEST_TRAFFIC = 1 << 20  # bytes
_GLANCES = 5  # at a name whose files go and come


class FolderStore:
    """See `Store`. Safe to use from several threads and processes; changes by others are seen at the next call."""

    def __init__(self, files: Files, uri: str) -> None:
        self.uri = uri
        self._files = files
        self._described = Described(files)
        self._verified = Verified(files, self._described, self._read)
        self._fetched = Fetched(uri)
        self._left_out = LeftOut()

    @property
    def files(self) -> Files:
        return self._files

    def create(self) -> None:
        """Make an empty place where there is none."""
        self._files.create()

    def expect(self) -> None:
        """From now on a place that is not there is away, not empty."""
        self._files.expect()

    def put(self, adapter: Adapter, name: str, aliases: Sequence[str] = ()) -> Entry:
        """See `Store.put`."""
        check_name(name)
        for alias in aliases:
            check_alias(alias)
        listing = self._files.scan(name)
        first = max([0, *versions_of(listing), *claimed(listing)]) + 1
        with tempfile.TemporaryDirectory(prefix="ray-lora-") as temporary:
            adapter.save(Path(temporary) / "adapter")
            version = self._files.publish(Path(temporary) / "adapter", name, first)
        self._move_aliases(name, dict.fromkeys(aliases, version))
        return self.resolve(f"{name}@{version}")

    def resolve(self, ref: str) -> Entry:
        """See `Store.resolve`."""
        return self._resolve(ref)[0]

    def recall(self, ref: str) -> Entry | None:
        """What the ref names now where only names and times of files need be looked at; None: ask `resolve`."""
        name = parse_ref(ref)[0]
        listing, pointers = self._glance(name)
        if not pointers.versions:
            return None  # `resolve` looks for names that are like it
        version = self._chosen(ref, pointers)
        if version is None:
            entry = self._verified.recall_newest(name, listing)
        else:
            found = self._verified.recall(name, version, listing)
            if isinstance(found, AdapterError):
                raise found.with_traceback(None)
            entry = found
        return _pointed(entry, pointers, version is None) if entry is not None else None

    def holds(self, name: str) -> bool:
        """Whether a name has versions; only its own folder is looked at."""
        check_name(name)
        return bool(self._glance(name)[1].versions)

    def get(self, ref: str) -> tuple[Entry, Path]:
        """See `Store.get`. A folder of this machine is handed out as it lies; a bucket's is copied to the cache."""
        entry, prefix = self._resolve(ref)
        return entry, self._local(entry.name, prefix, entry.sha256)[0]

    def load(self, ref: str) -> tuple[Entry, Adapter]:
        """See `Store.load`."""
        entry, prefix = self._resolve(ref)
        read = self._verified.ahead.take(entry.name, entry.version, entry.sha256)
        return entry, read or self._local(entry.name, prefix, entry.sha256)[1]

    def names(self) -> list[str]:
        """See `Store.names`."""
        return sorted(self._files.names())

    def list(self, name: str | None = None, people: bool = True) -> list[Entry]:
        """See `Store.list`."""
        entries = []
        listings = self._files.scan_all(people) if name is None else {name: self._files.scan(name)}
        if name is None:
            self._keep_names(listings, lambda held: people or not is_person(held))
        for held, listing in listings.items():
            try:
                listing, pointers = self._glance(held, listing)
            except AdapterError as error:
                self._left_out(error)
                continue
            for version in versions_of(listing):
                try:
                    known = self._verified.recall(held, version, listing)
                    if isinstance(known, AdapterError) and not isinstance(known, BeingWrittenError):
                        raise known.with_traceback(None)
                    told = known if isinstance(known, Entry) else self._described.entry(held, version, listing)
                    entries.append(_pointed(told, pointers))
                except AdapterError as error:
                    self._left_out(error)
        return sorted(entries, key=lambda entry: (entry.name, entry.version))

    def alias(self, name: str, alias: str, version: int | None) -> None:
        """See `Store.alias`."""
        check_alias(alias)
        self.resolve(f"{name}@{version}" if version is not None else f"{name}@{alias}")
        self._move_aliases(name, {alias: version})

    def remove(self, ref: str) -> str:
        """See `Store.remove`."""
        name = parse_ref(ref)[0]
        listing, pointers = self._look(ref)
        only_version(ref, pointers.versions)
        version = choose(ref, pointers.versions, pointers.aliases)
        check_unused(pointers, version)
        self._files.write(name, f"{CLAIMS}/{version}-removed", b"")  # the number is never used again
        self._move_aliases(name, {alias: None for alias, held in pointers.aliases.items() if held == version})
        self._files.delete(name, versions_of(listing)[version])
        self._verified.forget(name, version)
        return f"{name}@{version}"

    def crowded(self, most: int) -> Sequence[str]:
        """See `Store.crowded`."""
        return self._files.crowded(most)

    def forget(self, name: str) -> Sequence[Cleared]:
        """See `Store.forget`."""
        check_name(name)
        listing = {} if self._files.local(name, "") is not None else self._files.scan(name)
        contents, count = self._contents(name, listing), self._count(name)
        copies = forget_copies(contents)
        self._files.forget(name)
        copies += forget_copies(contents)  # one that was fetched meanwhile
        self._verified.forget_name(name)
        self._described.forget(name)
        self._fetched.forget(name)
        stays = "" if self._files.local(name, "") is not None else "earlier states, where the bucket keeps them"
        done = [Cleared(f"store {self.uri}", f"{name}, {count} versions" if count else "", stays)]
        return done + ([Cleared("copies on this machine", f"{copies} adapters")] if copies else [])

    def _count(self, name: str) -> int:
        try:
            return len(versions_of(self._files.scan(name)))
        except AdapterError:  # a link that leads out of the store
            return 0

    def _contents(self, name: str, listing: Listing) -> set[str]:
        """The hashes of a name's versions, as their cards claim."""
        found = set()
        for version in versions_of(listing):
            try:
                found.add(self._described.entry(name, version, listing).sha256)
            except AdapterError:  # torn: nothing of it was kept here
                continue
        return found

    def point(self, name: str, change: Change) -> Pointers:
        """See `Store.point`."""
        self._look(name)  # a name that is not there gets no folder
        with self._files.lock(name):
            _, held = self._glance(name)
            for step in steps(held, change(held)):
                if step.traffic != held.traffic:
                    self._files.write(name, TRAFFIC, step.traffic.dump().encode())
                if step.aliases != held.aliases:
                    self._files.write(name, ALIASES, json.dumps(dict(sorted(step.aliases.items())), indent=2).encode())
                held = step
        return held

    def _look(self, ref: str) -> tuple[Listing, Pointers]:
        """The listing of the name in a ref, and what it points to."""
        name = parse_ref(ref)[0]
        for _ in range(_GLANCES):
            listing, pointers = self._glance(name)
            if pointers.versions:
                return listing, pointers
            others = self._files.names()
            self._keep_names(others)
            if name not in others:  # else it came back just now, with its store or by itself
                break
        raise unknown(ref, others, self.uri)

    def _keep_names(self, names: Collection[str], of: Callable[[str], bool] = lambda _: True) -> None:
        """Let go of what was known of names that are not there any more."""
        self._verified.keep_names(names, of)
        self._described.keep_names(names, of)

    def _glance(self, name: str, listing: Listing | None = None) -> tuple[Listing, Pointers]:
        """What a name holds and points to at one moment: where a file goes after it was listed, listed again."""
        for _ in range(_GLANCES):
            listing = self._files.scan(name) if listing is None else listing
            try:
                return listing, self._pointers(name, listing)
            except VanishedError as error:
                vanished, listing = error, None
        raise vanished.with_traceback(None)

    def _local(self, name: str, prefix: str, sha256: str | None) -> tuple[Path, Adapter]:
        """A version's files on this machine; AdapterError when their content is not the one expected."""
        folder = self._files.local(name, prefix)
        if folder is None:
            return local_copy(sha256, lambda into: self._files.fetch(name, prefix, into))
        return folder, checked(folder, sha256)

    def set_aside(self, entry: Entry, why: AdapterError) -> None:
        """See `Store.set_aside`."""
        self._verified.set_aside(entry, why)

    def reconsider(self) -> None:
        """See `Store.reconsider`."""
        self._verified.forget()

    def _resolve(self, ref: str) -> tuple[Entry, str]:
        """The entry of a ref, verified, and where its files lie below the name."""
        listing, pointers = self._look(ref)
        name, version = pointers.name, self._chosen(ref, pointers)
        if version is None:
            entry = self._verified.newest(name, listing)
        else:
            entry = self._verified.entry(name, version, listing)
        return _pointed(entry, pointers, version is None), versions_of(listing)[entry.version]

    def _read(self, name: str, prefix: str, stats: Stats) -> Adapter:
        """What a version's files hold now; a bucket's are fetched, unless they were when they were the same."""
        if self._files.local(name, prefix) is not None:
            return self._local(name, prefix, None)[1]
        known = self._fetched.recall(name, prefix, stats)
        adapter = self._local(name, prefix, known)[1]
        if known is None:
            self._fetched.keep(name, prefix, stats, adapter.sha256)
        return adapter

    @staticmethod
    def _chosen(ref: str, pointers: Pointers) -> int | None:
        """The version that a ref names; None where it is the newest that is whole."""
        _, alias, version = parse_ref(ref)
        if alias is None and version is None and CHAMPION not in pointers.aliases:
            return None
        return choose(ref, pointers.versions, pointers.aliases)

    def _pointers(self, name: str, listing: Listing) -> Pointers:
        """What the name points to; traffic is read before aliases, see `steer.steps`."""
        traffic = Traffic()
        if TRAFFIC in listing:
            try:
                if listing[TRAFFIC].size > _LARGEST_TRAFFIC:
                    raise AdapterError(f"{name}/{TRAFFIC} has {listing[TRAFFIC].size:,} bytes, which is too much")
                traffic = parse_traffic(self._files.read(name, TRAFFIC), f"{name}/{TRAFFIC}")
            except FileNotFoundError as error:
                raise VanishedError(f"{name}/{TRAFFIC} was there and is gone: {error}") from None
            except OSError as error:
                raise AdapterError(f"{name}/{TRAFFIC} cannot be read: {error}") from None
        return Pointers(name, versions_of(listing).keys(), self._aliases(name, listing), traffic)

    def _aliases(self, name: str, listing: Listing) -> dict[str, int]:
        if ALIASES not in listing:
            return {}
        aliases = self._described.json(name, ALIASES, listing)
        for alias, version in aliases.items():
            if type(version) is not int or not 0 < version < 10**9:
                told = f"{short(alias)!r} points to {short(version)}"
                raise AdapterError(f"{name}/{ALIASES}: {told}, which is not a version number")
            if not is_alias(alias):
                raise AdapterError(f"{name}/{ALIASES}: {short(alias)!r} cannot be an alias")
        return aliases

    def _move_aliases(self, name: str, moves: Mapping[str, int | None]) -> None:
        if moves:
            with self._files.lock(name):
                aliases = {**self._aliases(name, self._files.scan(name)), **moves}
                held = {alias: version for alias, version in sorted(aliases.items()) if version is not None}
                self._files.write(name, ALIASES, json.dumps(held, indent=2).encode())


def _pointed(entry: Entry, pointers: Pointers, as_newest: bool = False) -> Entry:
    held = tuple(sorted(alias for alias, version in pointers.aliases.items() if version == entry.version))
    return replace(entry, aliases=held, traffic=pointers.traffic, as_newest=as_newest)
