"""Which version each ref means, decided once for a whole run: it answers with one version of each name.

    pinned = pin(open_store("./store"), ["tweets", "moveis@champion"])
    pinned.entries["tweets"].ref          # "tweets@3"
    pinned.missing["moveis@champion"]     # "'moveis' is not in the store './store'; did you mean 'movies'? ..."

It knows refs and what a store says of them, no rows and no engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ray_lora.errors import AdapterError, AdapterNotFoundError, RecipeError
from ray_lora.store import Entry, Store
from ray_lora.tasks import TASKS, task_class, task_of

SLOTS = 32  # adapters in memory at once, which answer rows, unless a run is told otherwise
_AT_ONCE = 4  # versions that are read for their hash at a time


@dataclass(frozen=True)
class Pinned:
    """What a run's refs mean.

    Attributes:
        entries: the version of each ref, its content read and hashed.
        missing: why a ref means none.
        pipelines: the Hugging Face pipelines whose answers these adapters give, each once.
    """

    entries: Mapping[str, Entry]
    missing: Mapping[str, str]
    pipelines: tuple[str, ...]

    def more(self, other: Pinned) -> Pinned:
        """With what other refs mean beside; the pipelines stay."""
        return Pinned({**other.entries, **self.entries}, {**other.missing, **self.missing}, self.pipelines)


def pin(store: Store, refs: Iterable[str]) -> Pinned:
    """The version of each ref, now. One that names nothing, or nothing that can be used, stops nothing: it is missing.

    Raises:
        StoreAwayError: the store does not answer.
    """
    wanted = list(dict.fromkeys(refs))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = dict(zip(wanted, pool.map(lambda ref: _resolve(store, ref), wanted), strict=True))
    entries = {ref: entry for ref, entry in found.items() if isinstance(entry, Entry)}
    missing = {ref: why for ref, why in found.items() if isinstance(why, str)}
    return Pinned(entries, missing, pipelines(store, entries.values()))


def pin_all(store: Store, refs: Sequence[str]) -> Pinned:
    """`pin`, of refs that are all there, each named once.

    Raises:
        RecipeError: one is named twice. AdapterNotFoundError: one names nothing.
    """
    if len(set(refs)) < len(refs):
        raise RecipeError(f"an adapter is named twice among {', '.join(refs)}; name each once")
    pinned = pin(store, refs)
    if pinned.missing:
        raise AdapterNotFoundError("\n".join(pinned.missing.values()))
    return pinned


def pipelines(store: Store, entries: Iterable[Entry]) -> tuple[str, ...]:
    """The pipelines whose answers these adapters give, each once."""
    kinds = {pipeline for entry in entries if (pipeline := _pipeline(store, entry)) is not None}
    return tuple(sorted(kinds))


def _resolve(store: Store, ref: str) -> Entry | str:
    try:
        return store.resolve(ref)
    except (AdapterNotFoundError, AdapterError) as error:
        return str(error)


def _pipeline(store: Store, entry: Entry) -> str | None:
    """The pipeline of its card's task, or of the task that PEFT's `task_type` names; None: its rows get an error."""
    if entry.task is not None:
        try:
            return task_of(entry.task).pipeline
        except RecipeError:  # somebody's own task, which is not allowed here
            return None
    try:
        written = store.load(entry.ref)[1].peft_type
    except (AdapterError, AdapterNotFoundError):
        return None
    of_type = {task_class(name).peft_type: task_class(name).pipeline for name in reversed(TASKS)}
    return of_type.get(written) if written is not None else None
