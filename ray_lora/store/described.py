"""What the small files of a version say of it: its card, its config, the header of its weights. No tensor is read.

    described = Described(files)
    described.entry("tweets", 3, listing).sha256      # what its card claims: `verified.py` says what is true

It knows JSON and where a version's files lie; nothing of what tensors hold, of refs or of aliases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast, get_args

from pydantic import ValidationError

from ray_lora.errors import AdapterError
from ray_lora.recipe import QuantisedDtype, TaskSpec
from ray_lora.store.cache import is_sha256
from ray_lora.store.files import CARD, CONFIG, PARTS, PICKLED, WEIGHTS, Files, Listing, Stat
from ray_lora.store.refs import version_of
from ray_lora.store.store import Entry

_LARGEST_JSON = 4 * 2**20  # bytes; a card, a config or a safetensors header beyond this is not one
Stats = tuple[Stat | None, ...]  # of a version's files; another tuple is another state


class VanishedError(AdapterError):
    """A file that was listed is not there any more: what was listed is no longer so."""


class Described:
    """Entries by what the files were when they were read. For several threads."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._known: dict[tuple[str, int], tuple[Stats, Entry]] = {}

    def entry(self, name: str, version: int, listing: Listing) -> Entry:
        """What the small files say; read again only when one of them changed.

        Raises:
            AdapterError: a file is missing or spoilt.
        """
        prefix = versions_of(listing)[version]
        stats, known = self._known.get((name, version), ((), None))
        if known is not None and stats == stats_of(listing, prefix):
            return known
        ref = f"{name}@{version}"
        if f"{prefix}{WEIGHTS}" not in listing:
            found = f"{prefix}{PICKLED}" in listing
            pickled = f" ({PICKLED} is pickled and is never read)" if found else ""
            raise AdapterError(f"{ref} has no {WEIGHTS}{pickled}; save the adapter with safe_serialization=True")
        card: Mapping[str, Any] = {}
        if f"{prefix}{CARD}" in listing:
            card = self.json(name, f"{prefix}{CARD}", listing)
        base = card.get("base") or self.json(name, f"{prefix}{CONFIG}", listing).get("base_model_name_or_path")
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
                base_dtype=_dtype(card.get("base_dtype")),
            )
        except (ValidationError, TypeError, ValueError, AttributeError) as error:
            raise AdapterError(f"{ref}: {CARD} is not a card of this library: {error}") from None
        if entry.sha256 and not is_sha256(entry.sha256):
            raise AdapterError(f"{ref}: {CARD} says sha256 {entry.sha256[:80]!r}, which is not a content hash")
        self._known[name, version] = (stats_of(listing, prefix), entry)
        return entry

    def forget(self, name: str) -> None:
        """Hold nothing of a name."""
        for key in [key for key in self._known if key[0] == name]:
            self._known.pop(key, None)

    def json(self, name: str, path: str, listing: Listing) -> dict[str, Any]:
        """The object in a small file of a name.

        Raises:
            VanishedError: it is gone. AdapterError: it holds something else.
        """
        try:
            if listing[path].size > _LARGEST_JSON:
                raise ValueError(f"it has {listing[path].size} bytes")
            value = json.loads(self._files.read(name, path))
        except FileNotFoundError as error:
            raise VanishedError(f"{name}/{path} was there and is gone: {error}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise AdapterError(f"{name}/{path} cannot be read: {error}") from None
        if not isinstance(value, dict):
            raise AdapterError(f"{name}/{path} holds a {type(value).__name__}, not an object")
        return value

    def _num_parameters(self, name: str, path: str, listing: Listing) -> int:
        """Counted from the safetensors header: 8 bytes of length, then JSON."""
        try:
            size = int.from_bytes(self._files.read(name, path, 0, 8), "little")
            if not 2 <= size <= min(_LARGEST_JSON, listing[path].size):
                raise ValueError(f"its header is {size} bytes")
            header = json.loads(self._files.read(name, path, 8, size))
            return sum(math.prod(part["shape"]) for key, part in header.items() if key != "__metadata__")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise AdapterError(f"{name}/{path} is torn or not safetensors: {error}") from None


def versions_of(listing: Listing) -> dict[int, str]:
    """version -> where its files lie below the name; a numbered folder 1 goes before files of the name itself."""
    versions = {1: ""} if CONFIG in listing else {}
    for path in listing:
        folder, _, last = path.partition("/")
        if last == CONFIG and (version := version_of(folder)) is not None:
            versions[version] = f"{folder}/"
    return versions


def stats_of(listing: Listing, prefix: str) -> Stats:
    """What changes when a version's files do, or its own folder."""
    return (*(listing.get(prefix + part) for part in PARTS), listing.get(prefix) if prefix else None)


def _dtype(told: Any) -> QuantisedDtype | None:
    """ValueError for a dtype that no base in few bits has."""
    known = get_args(QuantisedDtype)
    if told is not None and told not in known:
        raise ValueError(f"base_dtype is {str(told)[:40]!r}; it is one of {', '.join(known)}")
    return cast("QuantisedDtype | None", told)
