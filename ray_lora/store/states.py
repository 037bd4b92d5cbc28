"""What is known of versions, by name and number, without growing for ever: of those that have gone a bounded rest.

    states = States[Entry]()
    states.put("tweets", 3, entry)
    states.keep("tweets", {3, 4})         # these are there now
    states.keep_names(["tweets"])         # and of these names

A rest is kept because a version that is gone may be one that somebody replaces at this moment, and what it was says
then how long its files must be left alone. For several threads. It knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Generic, TypeVar

T = TypeVar("T")
_VERSIONS = 64  # of a name, gone
_NAMES = 1024  # gone


class States(Generic[T]):
    """A state a version."""

    def __init__(self, versions: int = _VERSIONS, names: int = _NAMES) -> None:
        self._versions, self._names = versions, names
        self._held: dict[str, dict[int, T]] = {}

    def __len__(self) -> int:
        return sum(len(held) for held in list(self._held.values()))

    def get(self, name: str, version: int) -> T | None:
        """The state of a version, if there is one."""
        return self._held.get(name, {}).get(version)

    def put(self, name: str, version: int, state: T) -> None:
        """Know a version's state from here on."""
        self._held.setdefault(name, {})[version] = state

    def drop(self, name: str, version: int | None = None) -> list[int]:
        """Forget a version, or all of a name; which these were."""
        if version is None:
            return list(self._held.pop(name, {}))
        return [] if self._held.get(name, {}).pop(version, None) is None else [version]

    def only(self, is_kept: Callable[[T], bool]) -> None:
        """Forget all other states."""
        for held in list(self._held.values()):
            for version in [version for version, state in list(held.items()) if not is_kept(state)]:
                held.pop(version, None)

    def keep(self, name: str, versions: Collection[int]) -> None:
        """Forget versions that have gone, once there are many of them."""
        held = self._held.get(name)
        if held is not None and len(held) > len(versions) + self._versions:
            for version in [version for version in list(held) if version not in versions]:
                held.pop(version, None)

    def keep_names(self, names: Collection[str], of: Callable[[str], bool] = lambda _: True) -> None:
        """Forget names that have gone, of those that `names` lists all of, once there are many of them."""
        if len(self._held) > len(names) + self._names:
            there = set(names)
            for name in [name for name in list(self._held) if name not in there and of(name)]:
                self._held.pop(name, None)
