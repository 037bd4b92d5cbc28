"""What a name in a request means here: the bare base, or one version of an adapter, and which base answers for it.

Knows refs, splits and the bases behind this address; nothing of slots, batches or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ray_lora.bases.fingerprint import fingerprint_of
from ray_lora.bases.identity import means, not_its_base
from ray_lora.bases.quantised import use_own
from ray_lora.errors import AdapterError, AdapterNotFoundError, BaseModelError, DataError
from ray_lora.serving.http.relay import ElsewhereError
from ray_lora.serving.registry import Registry
from ray_lora.serving.trials.tally import Arm, Variant
from ray_lora.store import Entry
from ray_lora.store.refs import parse_exact

if TYPE_CHECKING:
    from ray_lora.serving.peers import Peers

_logger = logging.getLogger(__name__)
BASE = "base"  # names the bare base in every endpoint


@dataclass(frozen=True)
class Choice:
    """The one version that answers a request, and how it came to be that one."""

    entry: Entry
    variant: Variant
    shadow: int | None = None  # the version that is to answer a copy
    exact: bool = False  # whether its content was asked for by hash
    began: float = field(
        default_factory=time.monotonic, compare=False
    )  # when it was asked; the deadline counts from it

    @property
    def arm(self) -> Arm:
        """What its answer is counted under."""
        began = self.entry.traffic.began if self.variant in ("split", "shadow") else ""
        return Arm(self.entry.name, self.entry.version, self.variant, began)

    def arm_of(self, entry: Entry) -> Arm:
        """The same for the version that answered: another than was chosen, where that was changed meanwhile."""
        return self.arm._replace(version=entry.version)


class Names:
    """The names that one replica answers to.

    Args:
        base_id: the base's name, hub id or folder.
        fingerprint: of its weights.
        origin: of its float weights, where it is quantised; it answers their adapters too.
    """

    peers: Peers

    def __init__(self, registry: Registry, base_id: str, fingerprint: str, origin: str | None = None) -> None:
        self.registry, self.base_id, self.fingerprint, self.origin = registry, base_id, fingerprint, origin
        self.on_unusable: Callable[[Arm, Exception], None] = lambda arm, error: None  # told of a split's broken version
        self._gone: set[tuple[str, int]] = set()  # versions of splits that are not there any more, and it was said
        self._homes: dict[str, str] = {}  # a base's name as adapters spell it -> the id here
        self._fingerprints: dict[str, str] = {}  # of the other bases, once they were asked

    def is_base(self, ref: str) -> bool:
        """Whether this ref is the bare base."""
        return ref in (BASE, self.base_id)

    async def resolve(self, ref: str) -> Entry:
        """The entry a ref names now, of an adapter that this replica can serve.

        Raises:
            AdapterNotFoundError: the ref names nothing, or was unloaded.
            BaseModelError: the adapter belongs to a base that is not served.
            ElsewhereError: it belongs to another base of this address.
        """
        entry = await self.entry_of(ref)
        await self._check_home(entry)
        return entry

    async def entry_of(self, ref: str) -> Entry:
        """The entry a ref names now, of whichever base."""
        if self.is_base(ref) or ref in self.peers.bases:
            raise DataError(f"{ref!r} is a bare base, which has no task; name an adapter (or ask /v1/embeddings)")
        named = parse_exact(ref)
        entry = await (self.registry.resolve(ref) if named is None else self.registry.exactly(*named))
        if entry.traffic.withdrawn:
            raise AdapterNotFoundError(f"{entry.name!r} was unloaded; load it with /v1/load_lora_adapter")
        return entry

    async def home_of(self, entry: Entry) -> str | None:
        """The id of the base here that the entry's is, by its fingerprint, else by its name; None: it is not served.

        Raises:
            BaseAwayError: a base that may be the one does not answer.
        """
        mark = entry.base_fingerprint
        if mark is None:
            if entry.base is None:
                return None
            if (named := self._named(entry.base)) is not None:
                return named
            mark = await asyncio.to_thread(fingerprint_of, entry.base)  # where that folder is on this machine
        if mark is None:
            return None
        if mark in (self.fingerprint, self.origin):
            return self.base_id
        for base in self.peers.bases:
            if await self.fingerprint_of(base) == mark:
                return base
        return None

    def _named(self, base: str) -> str | None:
        """The id here of the base of this name, however it is spelt."""
        if base not in self._homes:
            here = (self.base_id, *self.peers.bases)
            found = next((known for known in here if means(base, known)), None)
            if found is None:
                return None
            self._homes[base] = found
        return self._homes[base]

    async def fingerprint_of(self, base: str) -> str:
        """The fingerprint of another base of this address."""
        if base not in self._fingerprints:
            self._fingerprints[base] = (await self.peers.tell(base, "describe"))[0]
        return self._fingerprints[base]

    async def choose(self, ref: str, user: str | None = None, version: int | None = None) -> Choice:
        """The version that answers this request: of a bare name by its split, the same one for the same user.

        `version` is what the split has chosen already, where another base's replica did so.

        Raises:
            AdapterNotFoundError, AdapterError, BaseModelError, ElsewhereError: see `resolve`.
        """
        began = time.monotonic()
        entry = await self.entry_of(ref)
        if "@" in ref:
            await self._check_home(entry)
            return Choice(entry, "explicit", exact=parse_exact(ref) is not None, began=began)
        traffic = entry.traffic
        shadow = traffic.shadow if traffic.shadow is not None and random.random() < traffic.share else None
        if version is None:
            entry, version = await self._picked(entry, user)
        elif version != entry.version:
            entry = await self._of_split(entry, version)
        await self._check_home(entry, version)
        if version is None:
            return Choice(entry, "default", shadow, began=began)
        return Choice(replace(entry, as_newest=False), "split", shadow, began=began)  # this version, or none

    async def _picked(self, entry: Entry, user: str | None) -> tuple[Entry, int | None]:
        """What the name's split chooses for this user, among the versions that are there; None: nothing."""
        traffic = entry.traffic
        while (version := traffic.pick(entry.name, user)) is not None and version != entry.version:
            try:
                return await self._of_split(entry, version), version
            except AdapterNotFoundError:
                if (entry.name, version) not in self._gone:
                    self._gone.add((entry.name, version))
                    _logger.warning("%s@%d is in a split and is gone; the others answer", entry.name, version)
                left = {held: weight for held, weight in traffic.split.items() if held != version}
                traffic = traffic.model_copy(update={"split": left if any(left.values()) else {}})
        return entry, version

    async def _of_split(self, entry: Entry, version: int) -> Entry:
        """Another version of a name, counted under the split that sends requests there."""
        try:
            chosen = await self.entry_of(f"{entry.name}@{version}")
        except AdapterError as error:
            self.on_unusable(Arm(entry.name, version, "split", entry.traffic.began), error)
            raise
        return replace(chosen, traffic=entry.traffic)

    async def homed(self, entry: Entry) -> str:
        """The id of the base here that the entry's is; BaseModelError when it is not served."""
        home = await self.home_of(entry)
        if home is not None:
            return home
        held = ", ".join(map(repr, (self.base_id, *self.peers.bases)))
        if entry.base_fingerprint is None:
            raise BaseModelError(f"{not_its_base(entry.ref, entry.base, self.base_id)}; this endpoint holds {held}")
        raise BaseModelError(
            f"{entry.ref} was trained on base {entry.base!r} ({entry.base_fingerprint[:12]}…), this endpoint "
            f"holds {held}; {use_own(entry.base_fingerprint, self.origin or self.fingerprint)}"
        )

    async def _check_home(self, entry: Entry, version: int | None = None) -> None:
        home = await self.homed(entry)
        if home != self.base_id:
            raise ElsewhereError(home, version)
