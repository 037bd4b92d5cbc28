"""Old versions go: of each name the newest ones stay, and whatever an alias, a split or a shadow points to.

    expire(store, keep=3)                      # ["tweets@1", "tweets@2"]
    expire(store, keep=3, name="tweets")

Only names that have more are looked into. Knows no files and no MLflow.
"""

from __future__ import annotations

from ray_lora.errors import RecipeError
from ray_lora.store.refs import CHAMPION
from ray_lora.store.store import Store


def expire(store: Store, keep: int, name: str | None = None) -> list[str]:
    """Remove all but the newest `keep` versions of a name, or of every name; the refs that are gone.

    A version stays that an alias points to, that takes part in a split, is a shadow, or is what the bare name means.

    Raises:
        RecipeError: `keep` is less than 1. AdapterNotFoundError: there is no such name.
    """
    if keep < 1:
        raise RecipeError(f"keep is {keep}; at least 1 version of each stays")
    names = store.crowded(keep) if name is None else [name]
    return [ref for held in names for ref in _expire(store, held, keep)]


def _expire(store: Store, name: str, keep: int) -> list[str]:
    held = store.point(name, lambda held: held)
    old = sorted(held.versions)[:-keep]
    if not old:
        return []
    used = {*held.aliases.values(), *held.traffic.split, held.traffic.shadow}
    if CHAMPION not in held.aliases:
        used.add(store.resolve(name).version)  # the newest one that can be used, which may be older
    return [store.remove(f"{name}@{version}") for version in old if version not in used]
