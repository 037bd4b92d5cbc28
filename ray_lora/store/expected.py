"""Changes that are made only where nobody came between: compare and swap, over any store.

    store.point("tweets", expecting(3, promote(4)))        # VersionConflictError: the bare name is not version 3
    put_expecting(store, adapter, "tweets", 3)             # VersionConflictError: version 3 is not the newest

Knows no files and no MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_lora.errors import AdapterNotFoundError, RayLoraError
from ray_lora.store.refs import check_name
from ray_lora.store.steer import Change, Pointers

if TYPE_CHECKING:
    from ray_lora.adapters.adapter import Adapter
    from ray_lora.store.store import Entry, Store


class VersionConflictError(RayLoraError, ValueError):
    """Something else is there than was expected; `ref` is what is, None for nothing."""

    def __init__(self, message: str, ref: str | None = None) -> None:
        super().__init__(message, ref)  # both, so that it pickles
        self.ref = ref

    def __str__(self) -> str:
        return str(self.args[0])


def _conflict(name: str, expected: int, version: int, what: str) -> VersionConflictError:
    ref = f"{name}@{version}" if version else None
    there = f"{what} is {ref}" if ref else "there is none"
    return VersionConflictError(
        f"{name!r} was expected at version {expected}, and {there}; look at it and decide anew", ref
    )


def expecting(version: int, change: Change) -> Change:
    """The change, where the bare name, without a split, means this version.

    Raises (when applied):
        VersionConflictError: it means another.
    """

    def compared(held: Pointers) -> Pointers:
        if held.champion != version:
            raise _conflict(held.name, version, held.champion, "what the bare name means")
        return change(held)

    return compared


def put_expecting(store: Store, adapter: Adapter, name: str, version: int) -> Entry:
    """Keep the adapter as a new version where `version` is the newest; 0: where there is none.

    Of several at once no more than one is kept.

    Raises:
        VersionConflictError: another version is the newest, or became so meanwhile; then nothing is kept.
    """
    check_name(name)
    _compare(store, name, version, None)
    entry = store.put(adapter, name)
    try:
        _compare(store, name, version, entry.version)
    except VersionConflictError:
        store.remove(entry.ref)
        raise
    return entry


def _compare(store: Store, name: str, version: int, own: int | None) -> None:
    try:
        held = store.point(name, lambda held: held).versions
    except AdapterNotFoundError:
        held = ()
    newest = max((other for other in held if other != own), default=0)
    if newest != version:
        raise _conflict(name, version, newest, "the newest")
