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
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ray_lora.errors import AdapterError
from ray_lora.recipe import TaskSpec
from ray_lora.store.cache import ReadAhead, checked, is_sha256, local_copy
from ray_lora.store.files import (
    ALIASES,
    CARD,
    CLAIMS,
    CONFIG,
    PARTS,
    PICKLED,
    TRAFFIC,
    WEIGHTS,
    Files,
    Listing,
    Stat,
    claimed,
)
from ray_lora.store.refs import check_alias, check_name, choose, only_version, parse_ref, unknown, version_of
from ray_lora.store.steer import Change, Pointers, check_unused, steps
from ray_lora.store.store import Entry
from ray_lora.store.traffic import Traffic, parse_traffic

if TYPE_CHECKING:
    from ray_lora.adapters.adapter import Adapter

_logger = logging.getLogger(__name__)
_LARGEST_JSON = 4 * 2**20  # bytes; a card, a config or a safetensors header beyond this is not one


class FolderStore:
    """See `Store`. Safe to use from several threads and processes; changes by others are seen at the next call."""

    def __init__(self, files: Files, uri: str) -> None:
        self.uri = uri
        self._files = files
        self._known: dict[tuple[str, int], tuple[tuple[Stat | None, ...], Entry]] = {}  # by what the files were
        self._ahead = ReadAhead()

    def put(self, adapter: Adapter, name: str, aliases: Sequence[str] = ()) -> Entry:
        """See `Store.put`."""
        check_name(name)
        for alias in aliases:
            check_alias(alias)
        listing = self._files.scan(name)
        first = max([0, *_versions(listing), *claimed(listing)]) + 1
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
        listing = self._files.scan(name)
        if not _versions(listing):
            return None  # `resolve` looks for names that are like it
        pointers = self._pointers(name, listing)
        version = choose(ref, pointers.versions, pointers.aliases)
        entry = self._unchanged(name, version, _versions(listing)[version], listing)
        return _pointed(entry, pointers) if entry is not None and entry.sha256 else None

    def get(self, ref: str) -> tuple[Entry, Path]:
        """See `Store.get`. A folder of this machine is handed out as it lies; a bucket's is copied to the cache."""
        entry, prefix = self._resolve(ref)
        return entry, self._local(entry.name, prefix, entry.sha256)[0]

    def load(self, ref: str) -> tuple[Entry, Adapter]:
        """See `Store.load`."""
        entry, prefix = self._resolve(ref)
        read = self._ahead.take(entry.name, entry.version, entry.sha256)
        return entry, read or self._local(entry.name, prefix, entry.sha256)[1]

    def list(self) -> list[Entry]:
        """See `Store.list`."""
        entries = []
        for name, listing in self._files.scan_all().items():
            try:
                pointers = self._pointers(name, listing)
            except AdapterError as error:
                _logger.warning("left out: %s", error)
                continue
            for version, prefix in _versions(listing).items():
                try:
                    entries.append(_pointed(self._entry(name, version, prefix, listing), pointers))
                except AdapterError as error:
                    _logger.warning("left out: %s", error)
        return sorted(entries, key=lambda entry: (entry.name, entry.version))

    def alias(self, name: str, alias: str, version: int | None) -> None:
        """See `Store.alias`."""
        check_alias(alias)
        self.resolve(f"{name}@{version}" if version is not None else f"{name}@{alias}")
        self._move_aliases(name, {alias: version})

    def remove(self, ref: str) -> None:
        """See `Store.remove`."""
        name = parse_ref(ref)[0]
        listing, pointers = self._look(ref)
        only_version(ref, pointers.versions)
        version = choose(ref, pointers.versions, pointers.aliases)
        check_unused(pointers, version)
        self._files.write(name, f"{CLAIMS}/{version}-removed", b"")  # the number is never used again
        self._move_aliases(name, {alias: None for alias, held in pointers.aliases.items() if held == version})
        self._files.delete(name, _versions(listing)[version])
        self._known.pop((name, version), None)

    def point(self, name: str, change: Change) -> Pointers:
        """See `Store.point`."""
        self._look(name)  # a name that is not there gets no folder
        with self._files.lock(name):
            listing = self._files.scan(name)
            held = self._pointers(name, listing)
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
        listing = self._files.scan(name)
        if not _versions(listing):
            raise unknown(ref, (held for held, below in self._files.scan_all().items() if _versions(below)), self.uri)
        return listing, self._pointers(name, listing)

    def _local(self, name: str, prefix: str, sha256: str | None) -> tuple[Path, Adapter]:
        """A version's files on this machine; AdapterError when their content is not the one expected."""
        folder = self._files.local(name, prefix)
        if folder is None:
            return local_copy(sha256, lambda into: self._files.fetch(name, prefix, into))
        return folder, checked(folder, sha256)

    def _resolve(self, ref: str) -> tuple[Entry, str]:
        """The entry of a ref, its content hash known, and where its files lie below the name."""
        listing, pointers = self._look(ref)
        name, version = pointers.name, choose(ref, pointers.versions, pointers.aliases)
        prefix = _versions(listing)[version]
        entry = self._entry(name, version, prefix, listing)
        if not entry.sha256:  # plain PEFT wrote it: what it holds now is what it is
            adapter = self._local(name, prefix, None)[1]
            self._ahead.keep(name, version, adapter, entry.bytes)
            entry = replace(entry, sha256=adapter.sha256)
            self._known[name, version] = (_stats(listing, prefix), entry)
        return _pointed(entry, pointers), prefix

    def _entry(self, name: str, version: int, prefix: str, listing: Listing) -> Entry:
        """What the small files say; read again only when one of them changed."""
        known = self._unchanged(name, version, prefix, listing)
        if known is not None:
            return known
        ref = f"{name}@{version}"
        if f"{prefix}{WEIGHTS}" not in listing:
            found = f"{prefix}{PICKLED}" in listing
            pickled = f" ({PICKLED} is pickled and is never read)" if found else ""
            raise AdapterError(f"{ref} has no {WEIGHTS}{pickled}; save the adapter with safe_serialization=True")
        card: Mapping[str, Any] = {}
        if f"{prefix}{CARD}" in listing:
            card = self._json(name, f"{prefix}{CARD}", listing)
        base = card.get("base") or self._json(name, f"{prefix}{CONFIG}", listing).get("base_model_name_or_path")
        try:
            entry = Entry(
                name=name,
                version=version,
                aliases=(),
                sha256=str(card.get("sha256") or ""),
                task=TaskSpec.recall(card["task"]) if card.get("task") else None,
                base=str(base) if base else None,
                base_fingerprint=card.get("base_fingerprint"),
                metrics={str(key): float(value) for key, value in (card.get("metrics") or {}).items()},
                num_parameters=self._num_parameters(name, f"{prefix}{WEIGHTS}", listing),
                bytes=listing[f"{prefix}{WEIGHTS}"].size,
            )
        except (ValidationError, TypeError, ValueError, AttributeError) as error:
            raise AdapterError(f"{ref}: {CARD} is not a card of this library: {error}") from None
        if entry.sha256 and not is_sha256(entry.sha256):
            raise AdapterError(f"{ref}: {CARD} says sha256 {entry.sha256[:80]!r}, which is not a content hash")
        self._known[name, version] = (_stats(listing, prefix), entry)
        return entry

    def _unchanged(self, name: str, version: int, prefix: str, listing: Listing) -> Entry | None:
        """What was read of a version, if its files are still those."""
        stats, entry = self._known.get((name, version), ((), None))
        return entry if stats == _stats(listing, prefix) else None

    def _num_parameters(self, name: str, path: str, listing: Listing) -> int:
        """Counted from the safetensors header: 8 bytes of length, then JSON. No tensor is read."""
        try:
            size = int.from_bytes(self._files.read(name, path, 0, 8), "little")
            if not 2 <= size <= min(_LARGEST_JSON, listing[path].size):
                raise ValueError(f"its header is {size} bytes")
            header = json.loads(self._files.read(name, path, 8, size))
            return sum(math.prod(part["shape"]) for key, part in header.items() if key != "__metadata__")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise AdapterError(f"{name}/{path} is torn or not safetensors: {error}") from None

    def _json(self, name: str, path: str, listing: Listing) -> dict[str, Any]:
        try:
            if listing[path].size > _LARGEST_JSON:
                raise ValueError(f"it has {listing[path].size} bytes")
            value = json.loads(self._files.read(name, path))
        except (OSError, ValueError, RecursionError) as error:
            raise AdapterError(f"{name}/{path} cannot be read: {error}") from None
        if not isinstance(value, dict):
            raise AdapterError(f"{name}/{path} holds a {type(value).__name__}, not an object")
        return value

    def _pointers(self, name: str, listing: Listing) -> Pointers:
        """What the name points to; traffic is read before aliases, see `steer.steps`."""
        traffic = Traffic()
        if TRAFFIC in listing:
            try:
                traffic = parse_traffic(self._files.read(name, TRAFFIC), f"{name}/{TRAFFIC}")
            except OSError as error:
                raise AdapterError(f"{name}/{TRAFFIC} cannot be read: {error}") from None
        return Pointers(name, _versions(listing).keys(), self._aliases(name, listing), traffic)

    def _aliases(self, name: str, listing: Listing) -> dict[str, int]:
        if ALIASES not in listing:
            return {}
        aliases = self._json(name, ALIASES, listing)
        for alias, version in aliases.items():
            if type(version) is not int:
                raise AdapterError(f"{name}/{ALIASES}: {alias!r} points to {version!r}, which is not a version number")
        return aliases

    def _move_aliases(self, name: str, moves: Mapping[str, int | None]) -> None:
        if moves:
            with self._files.lock(name):
                aliases = {**self._aliases(name, self._files.scan(name)), **moves}
                held = {alias: version for alias, version in sorted(aliases.items()) if version is not None}
                self._files.write(name, ALIASES, json.dumps(held, indent=2).encode())


def _versions(listing: Listing) -> dict[int, str]:
    """version -> where its files lie below the name; a numbered folder 1 goes before files of the name itself."""
    versions = {1: ""} if CONFIG in listing else {}
    for path in listing:
        folder, _, last = path.partition("/")
        if last == CONFIG and (version := version_of(folder)) is not None:
            versions[version] = f"{folder}/"
    return versions


def _stats(listing: Listing, prefix: str) -> tuple[Stat | None, ...]:
    return tuple(listing.get(prefix + part) for part in PARTS)


def _pointed(entry: Entry, pointers: Pointers) -> Entry:
    held = tuple(sorted(alias for alias, version in pointers.aliases.items() if version == entry.version))
    return replace(entry, aliases=held, traffic=pointers.traffic)
