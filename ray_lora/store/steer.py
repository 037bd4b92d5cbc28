"""Changes of what a name points to, each one taken by `Store.point` as a whole. Knows no files and no MLflow.

store.point("tweets", split({3: 90, 4: 10}))
store.point("tweets", shadow(5, share=0.2))
store.point("tweets", promote(4))               # ends the split
store.point("tweets", rollback)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from pydantic import ValidationError

from ray_lora.errors import AdapterError, RecipeError
from ray_lora.store.refs import CHAMPION, choose
from ray_lora.store.traffic import Traffic

_REMEMBERED = 20  # promotions that can be taken back


@dataclass(frozen=True)
class Pointers:
    """What a name points to."""

    name: str
    versions: Collection[int]
    aliases: Mapping[str, int]
    traffic: Traffic

    @property
    def champion(self) -> int:
        """What the bare name is without a split."""
        return choose(self.name, self.versions, self.aliases)


Change = Callable[[Pointers], Pointers]


def split(weights: Mapping[int, float]) -> Change:
    """Spread the bare name over versions by weights; no weights end the split.

    Raises (when applied):
        AdapterNotFoundError: the name has no such version.
        RecipeError: a weight is negative or not finite, or all are 0.
    """

    def change(held: Pointers) -> Pointers:
        for version in weights:
            _known(held, version)
        return _on_trial(held, split=dict(sorted(weights.items())))

    return change


def shadow(version: int | None, share: float = 1.0) -> Change:
    """Copy a share of the bare name's requests to a version whose answers are only recorded; None ends that."""

    def change(held: Pointers) -> Pointers:
        if version is not None:
            _known(held, version)
        return _on_trial(held, shadow=version, share=share)

    return change


def promote(version: int) -> Change:
    """Make a version the champion, end the split (and a shadow of that version), remember what answered before."""

    def change(held: Pointers) -> Pointers:
        _known(held, version)
        before = held.champion
        previous = held.traffic.previous if before == version else (*held.traffic.previous, before)
        return _crown(held, version, previous[-_REMEMBERED:])

    return change


def withdraw(withdrawn: bool) -> Change:
    """Have endpoints serve the name no longer, or again."""
    return lambda held: replace(held, traffic=held.traffic.model_copy(update={"withdrawn": withdrawn}))


def rollback(held: Pointers) -> Pointers:
    """Make that version the champion which answered before the last promotion, and end the split.

    Raises:
        AdapterError: nothing was promoted, or that version is gone.
    """
    previous = list(held.traffic.previous)
    while previous and previous[-1] == held.champion:
        previous.pop()
    if not previous:
        raise AdapterError(f"{held.name!r} has no champion to go back to: no promotion of it is known")
    if previous[-1] not in held.versions:
        raise AdapterError(
            f"{held.name!r} cannot go back to version {previous[-1]}, which is gone; promote another version"
        )
    return _crown(held, previous[-1], tuple(previous[:-1]))


def steps(before: Pointers, after: Pointers) -> list[Pointers]:
    """The single writes that lead from one to the other where aliases and traffic lie apart.

    Who reads traffic before aliases then never meets a version that neither end of the way names (a champion from
    before the split), and a promotion that is cut short is remembered.
    """
    longer = len(after.traffic.previous) >= len(before.traffic.previous)
    previous = (after if longer else before).traffic.previous
    remembered = before.traffic.model_copy(update={"previous": previous})
    return [replace(before, traffic=remembered), replace(after, traffic=remembered), after]


def check_unused(held: Pointers, version: int) -> None:
    """AdapterError when the version takes part in a split or is a shadow, so that it must not be removed."""
    if version in held.traffic.split or version == held.traffic.shadow:
        raise AdapterError(
            f"{held.name}@{version} is on trial; end that first (ray-lora adapters split|shadow {held.name} --off)"
        )


def _crown(held: Pointers, version: int, previous: tuple[int, ...]) -> Pointers:
    kept = None if held.traffic.shadow == version else held.traffic.shadow
    steered = _on_trial(held, split={}, shadow=kept, previous=previous)
    return replace(steered, aliases={**held.aliases, CHAMPION: version})


def _on_trial(held: Pointers, **changes: object) -> Pointers:
    """The pointers with other traffic; other versions on trial make it another trial."""
    before = held.traffic
    try:
        traffic = Traffic.model_validate(before.model_dump() | changes)
    except ValidationError as error:
        problems = "; ".join(f"{item['msg']} (given: {item['input']!r})" for item in error.errors())
        raise RecipeError(f"{held.name!r} cannot be steered so: {problems}") from None
    if not traffic.split and traffic.shadow is None:
        began = ""
    elif (traffic.split.keys(), traffic.shadow) == (before.split.keys(), before.shadow):
        began = before.began
    else:
        began = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    return replace(held, traffic=traffic.model_copy(update={"began": began}))


def _known(held: Pointers, version: int) -> None:
    choose(f"{held.name}@{version}", held.versions, held.aliases)
