"""Encoded rows kept on this machine's disk: `<folder>/<encoder>/<piece>.arrow`, below a bound.

    cache = RowCache()
    with cache.making(encoder, piece) as path:     # one process at a time; None: it is there
        if path is not None: write_rows(path, ...)
    cache.open(encoder, piece)                     # an EncodedFile

The folder is `$RAY_LORA_ROWS`, else `rows` in the cache; its bound is `$RAY_LORA_ROWS_GB` (20). What was not used for
longest goes first, never what was used since `begun`. It knows files, not what made their rows.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from ray_lora.atomic import expanded
from ray_lora.bases.packaged import cache_folder
from ray_lora.data.encoded import EncodedFile
from ray_lora.errors import DataError, RecipeError

FOLDER, BOUND = "RAY_LORA_ROWS", "RAY_LORA_ROWS_GB"
_GB = 20.0
_ABOUT = "about.json"  # in an encoder's folder: what it is, for people


@dataclass(frozen=True)
class Held:
    """What the cache has of one encoder."""

    encoder: str
    about: str
    pieces: int
    rows: int
    bytes: int
    used: float  # seconds since the epoch


@dataclass(frozen=True)
class RowCache:
    """The rows kept on this machine.

    Attributes:
        begun: what was used since then stays, whatever the bound; seconds since the epoch.
    """

    folder: Path = field(default_factory=lambda: rows_folder())
    begun: float = field(default_factory=time.time)

    def path(self, encoder: str, piece: str) -> Path:
        """Where a piece's rows are, or will be."""
        return self.folder / encoder / f"{piece}.arrow"

    def has(self, encoder: str, piece: str) -> bool:
        """Whether a piece's rows are there, and whole."""
        try:
            self.open(encoder, piece)
        except OSError:
            return False
        return True

    def open(self, encoder: str, piece: str) -> EncodedFile:
        """A piece's rows; OSError where they are not there, or not whole."""
        path = self.path(encoder, piece)
        found = EncodedFile(path)
        with contextlib.suppress(OSError):  # somebody else's cache, or one that cannot be written
            os.utime(path)
        return found

    @contextlib.contextmanager
    def making(self, encoder: str, piece: str, about: str = "") -> Iterator[Path | None]:
        """The path to write a piece's rows to, which nobody else does meanwhile; None where they are there.

        Raises:
            DataError: the cache cannot be written.
        """
        path = self.path(encoder, piece)
        with _writing(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            if about and not (path.parent / _ABOUT).exists():
                (path.parent / _ABOUT).write_text(json.dumps(about))
            with FileLock(path.with_suffix(".lock")):
                yield None if self.has(encoder, piece) else path
            path.with_suffix(".lock").unlink(missing_ok=True)

    def trim(self) -> int:
        """Remove what was not used for longest until the bound holds; returns the bytes that were removed."""
        removed, over = 0, self.over()
        for path, told in sorted(self._files(), key=lambda file: file[1].st_mtime):
            if removed >= over or told.st_mtime >= self.begun:
                break
            path.unlink(missing_ok=True)
            removed += told.st_size
        return removed

    def over(self) -> int:
        """Bytes beyond the bound; less than 0 where there is room."""
        return sum(told.st_size for _, told in self._files()) - bound()

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        return [(path, told) for path in self.folder.glob("*/*.arrow") if (told := _stat(path)) is not None]

    def held(self) -> list[Held]:
        """What is kept, what was used last first."""
        found = []
        for folder in {path.parent for path in self.folder.glob("*/*.arrow")}:
            files = [(path, told) for path in folder.glob("*.arrow") if (told := _stat(path)) is not None]
            rows = 0
            for path, _ in files:
                with contextlib.suppress(OSError):
                    rows += len(EncodedFile(path))
            used = max((told.st_mtime for _, told in files), default=0.0)
            size = sum(told.st_size for _, told in files)
            found.append(Held(folder.name, _about(folder), len(files), rows, size, used))
        return sorted(found, key=lambda one: -one.used)

    def clear(self, encoder: str | None = None) -> int:
        """Remove all, or what one encoder made; returns the bytes that were removed.

        Raises:
            RecipeError: no encoder has that name.
        """
        known = [one for one in self.held() if encoder is None or one.encoder.startswith(encoder)]
        if encoder is not None and not known:
            names = ", ".join(one.encoder for one in self.held()) or "nothing"
            raise RecipeError(f"the cache holds no {encoder!r}; it holds {names}")
        for one in known:
            shutil.rmtree(self.folder / one.encoder, ignore_errors=True)
        return sum(one.bytes for one in known)


def rows_folder() -> Path:
    """`$RAY_LORA_ROWS`, else `rows` in the cache."""
    given = os.environ.get(FOLDER)
    return expanded(given).absolute() if given else cache_folder() / "rows"


def bound() -> int:
    """Bytes that rows may take; RecipeError where what is set is no number."""
    given = os.environ.get(BOUND, str(_GB))
    try:
        return int(float(given) * 1e9)
    except (ValueError, OverflowError):
        raise RecipeError(f"{BOUND} is {given!r}; give the gigabytes that encoded rows may take, such as 20") from None


def _about(folder: Path) -> str:
    try:
        return str(json.loads((folder / _ABOUT).read_text()))
    except (OSError, ValueError):
        return ""


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None  # somebody has just removed it


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """DataError where the disk is full, or is not to be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"the disk of {str(folder)!r} is full; free some, lower {BOUND} and run `ray-lora cache trim`, or set "
                f"{FOLDER} to a folder on another disk"
            ) from None
        raise DataError(
            f"encoded rows cannot be written to {str(folder)!r}: {error.strerror}; set {FOLDER} to a folder that can "
            "be written"
        ) from None
