"""Which bases an endpoint serves. Imports no torch: it also runs where an endpoint is started from."""

from __future__ import annotations

from ray_lora.allowed import is_name
from ray_lora.bases.identity import place
from ray_lora.errors import RecipeError
from ray_lora.recipe import QuantisedDtype
from ray_lora.serving.args import AppArgs, BaseArgs
from ray_lora.store import Store


def choose_bases(args: AppArgs, store: Store) -> tuple[BaseArgs, ...]:
    """The bases asked for, else all that the store's adapters name; one that has several names counts once. A builder
    is code: it is served only when it is asked for.

    Raises:
        RecipeError: no base is given, and the store's adapters name none.
    """
    if args.bases:
        return args.bases
    if args.base is not None:
        return (BaseArgs(model=args.base),)
    named: dict[str, str] = {}  # by fingerprint, else by name
    dtypes: dict[str, set[QuantisedDtype | None]] = {}  # by place
    for entry in store.list(people=False):  # they are of their groups' base
        if entry.base and not is_name(entry.base):
            dtypes.setdefault(place(entry.base), set()).add(entry.base_dtype)
            if place(entry.base) not in map(place, named.values()):
                named.setdefault(entry.base_fingerprint or place(entry.base), entry.base)
    if not named:
        raise RecipeError(
            f"which base to serve is not clear from the store {args.store!r}: it holds no adapter that names one "
            "(builders do not count: they are code); give base=…"
        )
    return tuple(BaseArgs(model=model, dtype=_dtype(args, dtypes[place(model)])) for model in sorted(named.values()))


def _dtype(args: AppArgs, trained_on: set[QuantisedDtype | None]) -> QuantisedDtype | None:
    """The few bits that all adapters of a base were trained on, where no dtype is asked for."""
    return next(iter(trained_on)) if args.dtype == "auto" and len(trained_on) == 1 else None
