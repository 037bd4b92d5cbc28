"""What is put into a store for an endpoint, and which of its names are served: on every replica, at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import RayLoraError
from ray_lora.serving.names import Names
from ray_lora.store import steer
from ray_lora.store.expected import expecting, put_expecting
from ray_lora.store.known import entry_of


async def publish(names: Names, name: str, folder: Path, pinned: bool = False, if_version: int | None = None) -> str:
    """Put a PEFT folder of this machine into the store as a new version, and into a slot; returns its ref. One that
    cannot be served is not kept.

    Args:
        if_version: the newest version that there must be, 0 for none; None: whichever.

    Raises:
        VersionConflictError: another is the newest.
        AdapterError, BaseModelError: it cannot be read, is of no base here, or does not fit.
    """
    adapter = await asyncio.to_thread(Adapter.load, folder)
    home = await names.homed(entry_of(adapter, name, 0))
    store = names.registry.store
    if if_version is None:
        entry = await asyncio.to_thread(store.put, adapter, name)
    else:
        entry = await asyncio.to_thread(put_expecting, store, adapter, name, if_version)
    try:
        await withdraw(names, name, False)
        await names.peers.tell(home, "prewarm", entry.ref, pinned)
    except RayLoraError:
        await asyncio.to_thread(names.registry.store.remove, entry.ref)
        raise
    return entry.ref


async def withdraw(names: Names, name: str, withdrawn: bool, if_version: int | None = None) -> None:
    """Serve a name no longer, or again, on every replica; requests in flight end as they began.

    The store remembers it, so that a replica that starts later knows too.

    Raises:
        VersionConflictError: the bare name means another version than `if_version`.
    """
    change = steer.withdraw(withdrawn)
    if if_version is not None:
        change = expecting(if_version, change)
    await asyncio.to_thread(names.registry.store.point, name, change)
    await names.peers.tell(None, "renew", name if withdrawn else None)
