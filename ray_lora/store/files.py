"""What FolderStore needs from a place that keeps files; `local.py` and `bucket.py` are the two places there are.

A place holds one folder a name. Paths are relative to that folder and use "/": "2/adapter_config.json". A place knows
which files an adapter has; it knows nothing of refs, cards or hashes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

CONFIG = "adapter_config.json"  # written last: a version without it does not exist
WEIGHTS = "adapter_model.safetensors"
CARD = "ray_lora.json"
PICKLED = "adapter_model.bin"  # what old PEFT wrote; only ever named in a message
ALIASES = "aliases.json"
TRAFFIC = "traffic.json"
PARTS = (WEIGHTS, CARD, CONFIG)
CLAIMS = ".claims"  # NAME/.claims/3-…: the number 3 is or was in use
_CLAIM = re.compile(r"\.claims/([1-9][0-9]{0,8})-.*")


class Stat(NamedTuple):
    """What changes when a file does."""

    size: int
    changed: int  # ns since the epoch, by the clock of who keeps the file; a copy that keeps its source's time is new
    inode: int = 0


Listing = Mapping[str, Stat]  # the files of one name that matter; its numbered folders ("2/") where a place has them


class Files(Protocol):
    """A place that keeps files."""

    def create(self) -> None:
        """Make an empty place where there is none."""
        ...

    def expect(self) -> None:
        """From now on a place that is not there is away, not empty."""
        ...

    def scan(self, name: str) -> Listing:
        """The files of one name, if there is such a name.

        Raises:
            AdapterError: a link leads out of the store. StoreAwayError: the place does not answer.
        """
        ...

    def names(self) -> list[str]:
        """All names; no name's own files are looked at where that takes longer."""
        ...

    def scan_all(self, people: bool = True) -> Mapping[str, Listing]:
        """The files of all names, or of all but single persons'; what leads out of the store is left out with a
        warning."""
        ...

    def read(self, name: str, path: str, start: int = 0, size: int | None = None) -> bytes:
        """A file's bytes from `start`. FileNotFoundError or OSError when it cannot be read."""
        ...

    def publish(self, folder: Path, name: str, first: int) -> int:
        """Copy an adapter folder to the first free version from `first` on, all or nothing; returns that version."""
        ...

    def write(self, name: str, path: str, data: bytes) -> None:
        """Write one small file, all or nothing."""
        ...

    def delete(self, name: str, prefix: str) -> None:
        """Take away the adapter files at "" or "2/", its config first."""
        ...

    def crowded(self, most: int) -> list[str]:
        """The names with more than so many numbered versions; no version's own files are looked at where that takes
        longer."""
        ...

    def forget(self, name: str) -> None:
        """Take away all that a name has, and what an earlier call that was cut short left of it."""
        ...

    def local(self, name: str, prefix: str) -> Path | None:
        """The folder itself where it lies on this machine, else None."""
        ...

    def fetch(self, name: str, prefix: str, folder: Path) -> None:
        """Copy the adapter files at "" or "2/" into an empty local folder."""
        ...

    def lock(self, name: str) -> AbstractContextManager[object]:
        """Held while what a name points to is changed. A bucket has none: there the last writer wins."""
        ...


def claimed(listing: Listing) -> set[int]:
    """The numbers that were ever given away under a name."""
    return {int(found[1]) for path in listing if (found := _CLAIM.fullmatch(path))}


def matters(path: str) -> bool:
    """Whether a file of a name's folder is one that a listing keeps."""
    folder, _, last = path.rpartition("/")
    if folder == CLAIMS:
        return True
    return last in PARTS or last == PICKLED or (not folder and last in (ALIASES, TRAFFIC))
