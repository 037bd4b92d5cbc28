"""What the small files of a version say of it: its card, its config, the header of its weights. No tensor is read.

    described = Described(files)
    described.entry("tweets", 3, listing).sha256      # what its card claims: `verified.py` says what is true

It knows JSON and where a version's files lie; nothing of what tensors hold, of refs or of aliases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ray_lora.adapters.card import CARD, Card
from ray_lora.bounds import Place, reason, short
from ray_lora.errors import AdapterError
from ray_lora.store.cache import is_sha256
from ray_lora.store.files import CONFIG, PARTS, PICKLED, WEIGHTS, Files, Listing, Stat
from ray_lora.store.refs import version_of
from ray_lora.store.states import States
from ray_lora.store.store import Entry

_LARGEST_JSON = 4 * 2**20  # bytes; a card, a config or a safetensors header beyond this is not one
_PLACE: TypeAdapter[str | None] = TypeAdapter(Place | None, config={"strict": True})
_MOST_AXES = 16  # of a tensor
Stats = tuple[Stat | None, ...]  # of a version's files; another tuple is another state


class VanishedError(AdapterError):
    """A file that was listed is not there any more: what was listed is no longer so."""


class Described:
    """Entries by what the files were when they were read. For several threads."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._known = States[tuple[Stats, Entry]]()

    def entry(self, name: str, version: int, listing: Listing) -> Entry:
        """What the small files say; read again only when one of them changed.

        Raises:
            AdapterError: a file is missing or spoilt.
        """
        prefix = versions_of(listing)[version]
        stats, known = self._known.get(name, version) or ((), None)
        if known is not None and stats == stats_of(listing, prefix):
            return known
        ref = f"{name}@{version}"
        if f"{prefix}{WEIGHTS}" not in listing:
            found = f"{prefix}{PICKLED}" in listing
            pickled = f" ({PICKLED} is pickled and is never read)" if found else ""
            raise AdapterError(f"{ref} has no {WEIGHTS}{pickled}; save the adapter with safe_serialization=True")
        card = self._card(name, f"{prefix}{CARD}", listing, ref)
        base = card.base or self.json(name, f"{prefix}{CONFIG}", listing).get("base_model_name_or_path")
        try:
            _PLACE.validate_python(base)
        except ValidationError:
            raise AdapterError(
                f"{ref}: {CONFIG} says base_model_name_or_path {short(base)!r}, which is no name"
            ) from None
        entry = Entry(
            name=name,
            version=version,
            aliases=(),
            sha256=card.sha256 or "",
            task=card.task,
            base=base or None,
            base_fingerprint=card.base_fingerprint,
            metrics=card.metrics,
            num_parameters=self._num_parameters(name, f"{prefix}{WEIGHTS}", listing),
            bytes=listing[f"{prefix}{WEIGHTS}"].size,
            base_dtype=card.base_dtype,
        )
        if entry.sha256 and not is_sha256(entry.sha256):
            raise AdapterError(f"{ref}: {CARD} says sha256 {entry.sha256[:80]!r}, which is not a content hash")
        self._known.put(name, version, (stats_of(listing, prefix), entry))
        self._known.keep(name, versions_of(listing))
        return entry

    def _card(self, name: str, path: str, listing: Listing, ref: str) -> Card:
        """The card at a path; an empty one where there is none."""
        if path not in listing:
            return Card()
        told = self.json(name, path, listing)
        try:
            return Card.model_validate(told)
        except ValidationError as error:
            raise AdapterError(f"{ref}: {CARD} is not a card of this library: {reason(error)}") from None

    def forget(self, name: str) -> None:
        """Hold nothing of a name."""
        self._known.drop(name)

    def keep_names(self, names: Collection[str], of: Callable[[str], bool] = lambda _: True) -> None:
        """See `States.keep_names`."""
        self._known.keep_names(names, of)

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
            raise AdapterError(f"{name}/{path} cannot be read: {short(str(error), 200)}") from None
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
            shapes = [part["shape"] for key, part in header.items() if key != "__metadata__"]
            if any(len(shape) > _MOST_AXES for shape in shapes):
                raise ValueError(f"a shape has more than {_MOST_AXES} axes")
            if any(type(length) is not int or length < 0 for shape in shapes for length in shape):
                raise ValueError("a shape is no list of whole numbers")
            count: int = sum(math.prod(shape) for shape in shapes)
            if count > listing[path].size:  # a number has a byte at least
                raise ValueError("it has room for fewer numbers than its header says")
            return count
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise AdapterError(f"{name}/{path} is torn or not safetensors: {short(str(error), 200)}") from None


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
