"""What an MLflow registry says of adapters: an entry as a tag, tags for people, and what was said last, kept on disk.

Knows no MLflow: tags are words, notes are JSON files under the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from ray_lora.adapters.card import Card
from ray_lora.bounds import reason, short
from ray_lora.errors import AdapterError
from ray_lora.store.cache import cache_root, is_sha256
from ray_lora.store.refs import is_name
from ray_lora.store.store import Entry
from ray_lora.store.traffic import Traffic, parse_traffic

if TYPE_CHECKING:
    from ray_lora.adapters.adapter import Adapter

TAG = "ray_lora"  # marks a version as an adapter and holds its entry
TRAFFIC = "ray_lora.traffic"  # of a registered model: how requests for the bare name are spread

_LARGEST = 4 * 2**20  # letters of an entry
_NOT_HELD = ("name", "version", "aliases", "traffic", "as_newest")  # the registry's own, and how it was asked for
_logger = logging.getLogger(__name__)


class _Held(Card):
    """An entry as a tag holds it: of the card what lists show, and what was counted."""

    num_parameters: int = Field(ge=0, lt=2**63)
    bytes: int = Field(ge=0, lt=2**63)


@dataclass(frozen=True)
class Known:
    """What the registry said of one name; entries without aliases."""

    versions: dict[int, Entry]
    aliases: dict[str, int]
    traffic: Traffic = field(default_factory=Traffic)

    def entry(self, version: int) -> Entry:
        """One version with its aliases."""
        held = tuple(sorted(alias for alias, at in self.aliases.items() if at == version))
        return replace(self.versions[version], aliases=held, traffic=self.traffic)


class Notes:
    """What the registry at an address said last, one JSON file a name; for the time while it is away."""

    def __init__(self, uri: str) -> None:
        self._folder = cache_root() / "mlflow" / hashlib.sha256(uri.encode()).hexdigest()[:16]

    def keep(self, name: str, known: Known) -> None:
        """Write down what is known of a name, if it changed."""
        file = self._folder / f"{name}.json"
        versions = {version: json.loads(pack(entry)) for version, entry in known.versions.items()}
        text = json.dumps({"aliases": known.aliases, "versions": versions, "traffic": known.traffic.dump()})
        try:
            if not file.exists() or file.read_text() != text:
                self._folder.mkdir(parents=True, exist_ok=True)
                with tempfile.NamedTemporaryFile("w", dir=self._folder, delete=False) as temporary:
                    temporary.write(text)
                Path(temporary.name).replace(file)
        except OSError as error:
            _logger.warning("the cache %s cannot be written: %s", self._folder, error)

    def forget(self, name: str) -> None:
        """Know nothing of a name any more."""
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def recall(self) -> dict[str, Known]:
        """All names written down."""
        found = {}
        for file in sorted(self._folder.glob("*.json")):
            name = file.stem
            if is_name(name):
                try:
                    told = json.loads(file.read_text())
                    versions = {int(v): unpack(name, int(v), json.dumps(e)) for v, e in told["versions"].items()}
                    aliases = {str(alias): int(at) for alias, at in told["aliases"].items()}
                    found[name] = Known(versions, aliases, parse_traffic(told["traffic"], str(file)))
                except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                    _logger.warning("left out: %s: %s", file, error)
        return found


def entry_of(adapter: Adapter, name: str, size: int) -> Entry:
    """The entry of an adapter that the registry is about to number; `size`: bytes of its weights file."""
    card = adapter.card
    return Entry(
        name=name,
        version=0,  # the registry gives it
        aliases=(),
        sha256=adapter.sha256,
        task=card.task,
        base=card.base,
        base_fingerprint=card.base_fingerprint,
        metrics=dict(card.metrics),
        num_parameters=adapter.num_parameters,
        bytes=size,
        base_dtype=card.base_dtype,
    )


def tags_of(adapter: Adapter, entry: Entry) -> dict[str, str]:
    """What a person looks for in the registry's table, and the entry for `list`."""
    tags = {
        TAG: pack(entry),
        "sha256": entry.sha256,
        "rank": str(adapter.config.r),
        "lora_alpha": f"{adapter.config.lora_alpha:g}",
        "num_parameters": str(entry.num_parameters),
    }
    if entry.task is not None:
        tags["task"] = entry.task.type
    if entry.base:
        tags["base"] = entry.base
    if entry.base_fingerprint:
        tags["base_fingerprint"] = entry.base_fingerprint
    for metric, value in entry.metrics.items():
        if "score" not in tags:
            tags |= {"score": repr(value), "metric": metric}
        tags[f"metric.{metric}"] = repr(value)
    shown = entry.task.describe() if entry.task is not None else {}
    return {key: json.dumps(value) for key, value in shown.items()} | tags


def pack(entry: Entry) -> str:
    """The tag that holds an entry."""
    held = asdict(replace(entry, task=None)) | {"task": entry.task.recorded() if entry.task else None}
    return json.dumps({key: held[key] for key in sorted(held) if key not in _NOT_HELD})


def unpack(name: str, version: int, text: str) -> Entry:
    """The entry in a tag; AdapterError when it is not one."""
    try:
        if len(text) > _LARGEST:
            raise ValueError(f"it has {len(text):,} letters")
        held = _Held.model_validate(json.loads(text))
        if held.sha256 is None or not is_sha256(held.sha256):
            raise ValueError(f"sha256 is {short(held.sha256 or '')!r}")
    except (ValueError, TypeError, RecursionError) as error:
        why = reason(error) if isinstance(error, ValidationError) else short(str(error), 200)
        raise AdapterError(f"{name}@{version}: tag {TAG!r} is not an entry of this library: {why}") from None
    return Entry(
        name=name,
        version=version,
        aliases=(),
        sha256=held.sha256,
        task=held.task,
        base=held.base,
        base_fingerprint=held.base_fingerprint,
        metrics=held.metrics,
        num_parameters=held.num_parameters,
        bytes=held.bytes,
        base_dtype=held.base_dtype,
    )
