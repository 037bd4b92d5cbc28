"""A file or a folder written at once: whoever reads meanwhile, and whoever comes after a kill, finds the old one or the
new. And where a path leads."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_lora.errors import RecipeError


def expanded(path: str | Path) -> Path:
    """A path with `~` put in; as shells do it, `~somebody` stays where there is no such person."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file and the folders above it.

    Raises:
        OSError: the disk is full or not to be written; what stood there stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # several processes may write the same file
    try:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def check_free(folder: Path) -> None:
    """RecipeError for a folder that holds something, or is none."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{str(folder)!r} exists and is not empty; give another folder or remove it first")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A place of the same name and on the same disk in which the folder is to be made. What stands there at the end
    becomes the folder; of what ends in an error nothing is left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        fresh = Path(place) / folder.name
        yield fresh
        if folder.exists():
            folder.rmdir()
        shutil.move(str(fresh), str(folder))
