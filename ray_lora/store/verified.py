"""What the versions of a place hold, read whole and verified when they are first seen, by every process.

    verified = Verified(files, described)
    verified.entry("tweets", 3, listing).sha256    # of the content that was read, whatever its card says
    verified.newest("tweets", listing)             # the newest version that is whole

A card is a claim: a folder that was copied with its card and other weights says the old hash. So a version is one of

- whole: its tensors were read, and its card, if it has one, names their hash;
- being written: it is not whole, or has no card, and its files changed less than `settle_s` ago, or while being read;
- broken: it is not whole and nobody is writing it; or its answers were no numbers, and it was set aside.

What was found is known for as long as the files are the same, so that a request costs a look at names and times.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ray_lora.errors import AdapterError
from ray_lora.store.cache import ReadAhead
from ray_lora.store.described import Described, Stats, stats_of, versions_of
from ray_lora.store.files import CARD, PARTS, Files, Listing
from ray_lora.store.states import States
from ray_lora.store.store import BeingWrittenError, Entry

if TYPE_CHECKING:
    from ray_lora.adapters.adapter import Adapter

_logger = logging.getLogger(__name__)
_AGAIN_S = 0.1  # between two looks at a version that is being written


def settle_s() -> float:
    """For how long a folder without a card must have been left alone: `$RAY_LORA_SETTLE_S`, else 2 seconds."""
    return float(os.environ.get("RAY_LORA_SETTLE_S") or 2.0)


@dataclass(frozen=True)
class _Found:
    """What a version was when its files were these.

    Attributes (monotonic seconds):
        since: when its files were first seen like this.
        until: where it is being written, when to look again though its files are the same; soon: and when at the
            earliest where they are not.
    """

    stats: Stats
    what: Entry | AdapterError
    since: float
    until: float = 0.0
    soon: float = 0.0


class Verified:
    """The states of versions. For several threads.

    Args:
        read: the adapter of a version, from its name, where its files lie below it, and what they are.
    """

    def __init__(self, files: Files, described: Described, read: Callable[[str, str, Stats], Adapter]) -> None:
        self._files, self._described, self._read = files, described, read
        self.ahead = ReadAhead()
        self._known, self._said = States[_Found](), States[str]()

    def recall(self, name: str, version: int, listing: Listing) -> Entry | AdapterError | None:
        """What is known of these files without reading them; None: they have to be read."""
        known = self._known.get(name, version)
        if known is None:
            return None
        same, now = known.stats == stats_of(listing, versions_of(listing)[version]), time.monotonic()
        if isinstance(known.what, BeingWrittenError):  # a large file that grows is not read for every request
            return known.what if now < (known.until if same else known.soon) else None
        return known.what if same else None

    def entry(self, name: str, version: int, listing: Listing) -> Entry:
        """What a version holds, without its aliases.

        Raises:
            BeingWrittenError: it is not whole yet. AdapterError: it is broken.
            StoreAwayError: its files were there a moment ago and cannot be reached.
        """
        found = self.recall(name, version, listing)
        if found is None:
            found = self._look(name, version, listing)
            for states in (self._known, self._said):
                states.keep(name, versions_of(listing))
        if isinstance(found, AdapterError):
            raise found.with_traceback(None)
        return found

    def newest(self, name: str, listing: Listing) -> Entry:
        """The newest version that is whole; raises as `entry` for the newest of all where none is."""
        first: AdapterError | None = None
        for version in sorted(versions_of(listing), reverse=True):
            try:
                return self.entry(name, version, listing)
            except AdapterError as error:
                first = first or error
                self._say(name, version, error)
        assert first is not None
        raise first

    def recall_newest(self, name: str, listing: Listing) -> Entry | None:
        """The same from what is known; None: something has to be read."""
        for version in sorted(versions_of(listing), reverse=True):
            known = self.recall(name, version, listing)
            if not isinstance(known, AdapterError):
                return known
        return None

    def set_aside(self, entry: Entry, why: AdapterError) -> None:
        """Take a version for broken until its files change."""
        known = self._known.get(entry.name, entry.version)
        if known is not None and isinstance(known.what, Entry) and known.what.sha256 == entry.sha256:
            self._known.put(entry.name, entry.version, replace(known, what=why))

    def forget(self, name: str | None = None, version: int = 0) -> None:
        """Read a version anew when it is asked for next; None: all that are not whole."""
        if name is not None:
            self._known.drop(name, version)
        else:
            self._known.only(lambda known: isinstance(known.what, Entry))

    def forget_name(self, name: str) -> None:
        """Hold nothing of a name."""
        self._said.drop(name)
        for version in self._known.drop(name):
            self.ahead.drop(name, version)

    def keep_names(self, names: Collection[str], of: Callable[[str], bool] = lambda _: True) -> None:
        """See `States.keep_names`."""
        for states in (self._known, self._said):
            states.keep_names(names, of)

    def _look(self, name: str, version: int, listing: Listing) -> Entry | AdapterError:
        prefix = versions_of(listing)[version]
        stats, left = stats_of(listing, prefix), self._left(name, version, listing)
        ref = f"{name}@{version}"
        if left > 0 and f"{prefix}{CARD}" not in listing:
            return self._note(name, version, stats, _writing(ref, "it has no card yet"), left, was_read=False)
        found: Entry | AdapterError
        try:
            told = self._described.entry(name, version, listing)
            adapter = self._read(name, prefix, stats)
            found = replace(told, sha256=adapter.sha256)
        except AdapterError as error:
            adapter, found = None, error
        # raises where the whole store has gone; then nothing is learnt of this version
        if stats_of(self._files.scan(name), prefix) != stats:
            return self._note(name, version, stats, _writing(ref, "its files changed while they were read"), _AGAIN_S)
        if isinstance(found, AdapterError):
            writing = _writing(ref, str(found)) if left > 0 else None
            return self._note(name, version, stats, writing or found, min(left, _AGAIN_S))
        assert adapter is not None
        self.ahead.keep(name, version, adapter, found.bytes)
        return self._note(name, version, stats, found)

    def _left(self, name: str, version: int, listing: Listing) -> float:
        """Seconds until a version's files have been left alone for long enough; at most those since they were first
        seen like this, so that a file system's clock may be wrong. A card that is gone leaves no time behind: whoever
        replaces it takes it away first."""
        prefix = versions_of(listing)[version]
        stats = stats_of(listing, prefix)
        changed = max((stat.changed for stat in stats if stat is not None), default=0) / 1e9
        left = min(changed + settle_s() - time.time(), settle_s())
        known = self._known.get(name, version)
        if known is not None and known.stats == stats:
            return min(left, known.since + settle_s() - time.monotonic())
        card = PARTS.index(CARD)
        return settle_s() if known is not None and known.stats[card] is not None and stats[card] is None else left

    def _note(
        self,
        name: str,
        version: int,
        stats: Stats,
        what: Entry | AdapterError,
        left: float = 0.0,
        was_read: bool = True,
    ) -> Entry | AdapterError:
        known, now = self._known.get(name, version), time.monotonic()
        since = known.since if known is not None and known.stats == stats else now
        found = _Found(stats, what, since, now + left, now + _AGAIN_S if was_read else now)
        self._known.put(name, version, found)
        return what

    def _say(self, name: str, version: int, error: AdapterError) -> None:
        """Once for each reason."""
        if self._said.get(name, version) != str(error):
            self._said.put(name, version, str(error))
            _logger.warning("%s@%d is not what %s means: %s", name, version, name, error)


def _writing(ref: str, why: str) -> BeingWrittenError:
    return BeingWrittenError(f"{ref} is being written ({why}); ask again in a moment")
