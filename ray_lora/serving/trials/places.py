"""Folders that several processes must mean alike. Knows nothing of what lies in them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ray_lora.atomic import expanded
from ray_lora.store import Store
from ray_lora.store.cache import cache_root


def results_folder(address: str, store: Store, given: str | None) -> Path:
    """Where an endpoint on the store at `address` keeps its results, unless a folder is given."""
    if given is not None:
        return expanded(given).resolve()
    whole = str(getattr(store, "tracking_uri", "") or absolute(address))
    return cache_root() / "results" / hashlib.sha256(whole.encode()).hexdigest()[:16]


def absolute(place: str) -> str:
    """A relative folder means the one where this process runs, not where a replica does."""
    if place == "mlflow" or "://" in place:
        return place
    return str(expanded(place).resolve())
