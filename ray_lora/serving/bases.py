"""Which base an endpoint serves. Imports no torch: it also runs where an endpoint is started from."""

from __future__ import annotations

from ray_lora.errors import RecipeError
from ray_lora.serving.args import AppArgs
from ray_lora.store import Store


def choose_base(args: AppArgs, store: Store) -> str:
    """The base asked for, else the only one that the store's adapters name."""
    if args.base is not None:
        return args.base
    named = sorted({entry.base for entry in store.list() if entry.base})
    if len(named) == 1:
        return named[0]
    found = (
        f"its adapters name {len(named)} bases ({', '.join(named)})" if named else "it holds no adapter that names one"
    )
    raise RecipeError(f"which base to serve is not clear from the store {args.store!r}: {found}; give base=…")
