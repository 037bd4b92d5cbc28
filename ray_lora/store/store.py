"""What every store does, and what it says of one version. Knows no files, no MLflow, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ray_lora.errors import AdapterError, RayLoraError
from ray_lora.recipe import QuantisedDtype, TaskSpec
from ray_lora.store.steer import Change, Pointers
from ray_lora.store.traffic import Traffic

if TYPE_CHECKING:
    from ray_lora.adapters.adapter import Adapter


class StoreAwayError(RayLoraError, ConnectionError):
    """The store does not answer, and what was asked for is not known here. Trying again later may help."""


class BeingWrittenError(AdapterError):
    """A version is not whole yet: its files were changed a moment ago. Asking again in a moment helps."""


@dataclass(frozen=True)
class Entry:
    """One version of one adapter, as its store describes it."""

    name: str
    version: int
    aliases: tuple[str, ...]
    sha256: str  # content hash; in `list()` what the card claims, empty where plain PEFT wrote the folder
    task: TaskSpec | None
    base: str | None
    base_fingerprint: str | None
    metrics: dict[str, float]
    num_parameters: int
    bytes: int  # of the weights file
    base_dtype: QuantisedDtype | None = None  # "int8" or "nf4", where its base was in few bits
    traffic: Traffic = field(default_factory=Traffic)  # of the name: the same for all its versions
    as_newest: bool = field(default=False, compare=False)  # its name was asked for, and it is the newest that is whole

    @property
    def ref(self) -> str:
        """`name@version`, which names this content for ever."""
        return f"{self.name}@{self.version}"

    @property
    def again(self) -> str:
        """What to ask for where this version is no longer what it was when it was found."""
        return self.name if self.as_newest else self.ref


@dataclass(frozen=True)
class Cleared:
    """What a deletion did in one place.

    Attributes:
        where: the place. removed: what was taken away there, "" for nothing. stays: what could not be, and how it goes.
    """

    where: str
    removed: str
    stays: str = ""


class Store(Protocol):
    """Where adapters live. Versions are immutable and their numbers are never used again; aliases move.

    All methods raise AdapterNotFoundError for a ref that names nothing, AdapterError for an adapter that cannot be
    used, BeingWrittenError for one that is not whole yet, and StoreAwayError when the store does not answer.
    """

    uri: str

    def put(self, adapter: Adapter, name: str, aliases: Sequence[str] = ()) -> Entry:
        """Keep the adapter as a new version of `name`; never overwrites one."""
        ...

    def resolve(self, ref: str) -> Entry:
        """What the ref names now: its hash is of content that was read when it was first seen. A bare name without a
        champion is the newest version that can be used."""
        ...

    def get(self, ref: str) -> tuple[Entry, Path]:
        """A local folder of what the ref names now, its content hash checked; it belongs to the store: only read it."""
        ...

    def load(self, ref: str) -> tuple[Entry, Adapter]:
        """What the ref names now, read into memory once, its content hash checked."""
        ...

    def names(self) -> list[str]:
        """The names there are, without a look at what they hold: some may hold nothing that can be used."""
        ...

    def list(self, name: str | None = None, people: bool = True) -> list[Entry]:
        """All versions, by name and version, as their cards describe them: no tensor is read. What has no readable
        files is left out with a warning; `resolve` says why.

        Args:
            name: only of this one. people: with those of single persons (`store.people`), who may be very many.
        """
        ...

    def set_aside(self, entry: Entry, why: AdapterError) -> None:
        """Take a version for unusable, for the reason given, until its files change or `reconsider`."""
        ...

    def reconsider(self) -> None:
        """Look anew at what could not be used."""
        ...

    def alias(self, name: str, alias: str, version: int | None) -> None:
        """Point `name@alias` at a version, or take the alias away (None)."""
        ...

    def point(self, name: str, change: Change) -> Pointers:
        """Replace what a name points to by what `change` makes of it (`steer.py` has them), one change at a time.

        Whoever asks meanwhile gets what was before or what is after; once this has returned, only what is after.
        """
        ...

    def remove(self, ref: str) -> str:
        """Forget one version and the aliases on it, broken or not; returns it as name@3. A bare name is refused while
        it has several versions."""
        ...

    def crowded(self, most: int) -> Sequence[str]:
        """The names that have more than so many versions; nothing is read of any of them."""
        ...

    def forget(self, name: str) -> Sequence[Cleared]:
        """Take a name away with all its versions, whatever points to them, and this machine's copies of them: what was
        done in each place.

        A name that is not there is no error, so that the same call finishes one that was cut short. Versions of whoever
        is called so later begin at 1 where a place keeps no number without the name.
        """
        ...
