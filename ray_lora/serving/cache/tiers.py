"""What an adapter cache remembers beside its slots: adapters in RAM within a byte budget, and what failed a moment ago.

ram = RamTier(budget=1 << 30)
ram.hold("sha256", loaded, "tweets")
ram.trim(keep={"sha256"})
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Container
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What a loaded adapter tells the RAM tier."""

    @property
    def bytes(self) -> int: ...


L = TypeVar("L", bound=Sized)


class RamTier(Generic[L]):
    """Loaded adapters by content hash, the least recently used first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._held: OrderedDict[str, L] = OrderedDict()
        self._read_for: dict[str, str] = {}  # the name of which each was read

    @property
    def used(self) -> int:
        """Bytes held."""
        return sum(loaded.bytes for loaded in self._held.values())

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def hold(self, key: str, loaded: L, name: str) -> None:
        """Keep an adapter that was read for a name."""
        self._held[key] = loaded
        self._read_for[key] = name

    def of(self, name: str) -> list[str]:
        """The adapters that were read for a name."""
        return [key for key, held in self._read_for.items() if held == name]

    def use(self, key: str) -> L:
        """The adapter, which is now the most recently used."""
        self._held.move_to_end(key)
        return self._held[key]

    def drop(self, key: str) -> bool:
        """Forget an adapter; False: it was not here."""
        self._read_for.pop(key, None)
        return self._held.pop(key, None) is not None

    def trim(self, keep: Container[str]) -> None:
        """Drop the least recently used beyond the budget; what is in `keep` stays."""
        used = self.used
        for key in [key for key in self._held if key not in keep]:
            if used <= self.budget:
                return
            used -= self._held[key].bytes
            self.drop(key)


class Failures:
    """Errors that are given again for `seconds`, so that what is broken is not read for every request."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._known: dict[str, tuple[Exception, float]] = {}

    def check(self, key: str) -> None:
        """Raise what failed a moment ago."""
        error, until = self._known.get(key, (None, 0.0))
        if error is None:
            return
        if time.monotonic() < until:
            raise error.with_traceback(None)
        del self._known[key]

    def remember(self, key: str, error: Exception) -> None:
        """Keep an error, and let go of the old ones."""
        now = time.monotonic()
        self._known = {other: known for other, known in self._known.items() if known[1] > now}
        self._known[key] = (error, now + self.seconds)

    def forget(self, key: str | None = None) -> None:
        """Give an adapter another chance; None: all of them."""
        if key is None:
            self._known.clear()
        else:
            self._known.pop(key, None)
