"""Where a path leads: a local path or an address in a bucket, as a file system of pyarrow and a path in it.

    place = Place.of("s3://rows/tweets/?region=eu-west-1")
    place.info().type                              # FileType.Directory
    place.below("part-0.parquet").name             # "s3://rows/tweets/part-0.parquet"

It knows file systems; it knows nothing of what files hold.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from ray_lora.bounds import public
from ray_lora.errors import DataError

_URI = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://[^/?]*)([^?]*)(\?.*)?", re.DOTALL)
_SECRET = re.compile(r"(://[^/@:\s]*):[^/@\s]*@")
_KEPT = "/%=:@!$&'()*+,;~"  # what a path in an address may hold as it is; what is quoted already stays quoted


@dataclass(frozen=True)
class Place:
    """A path and the file system it is on.

    Attributes:
        name: the path as people know it, without keys and passwords.
        address: what finds it again from any folder: an absolute path, or an address with all its options.
    """

    name: str
    address: str

    @classmethod
    def of(cls, given: str) -> Place:
        """What a person's path or address means."""
        if (parts := _URI.fullmatch(given)) is None:
            return cls(given, str(Path(given).absolute()))
        head, path, options = parts.groups()
        return cls(public(head + path), head + quote(path, safe=_KEPT) + (options or ""))

    @property
    def local(self) -> Path | None:
        """The local path, where it is one."""
        if (parts := _URI.fullmatch(self.address)) is None:
            return Path(self.address)
        return Path(unquote(parts[2])) if parts[1].lower() == "file://" else None

    @property
    def plain(self) -> str:
        """The path as it is on its file system, as far as it was given; nothing in it is quoted."""
        parts = _URI.fullmatch(self.address)
        return self.name if parts is None else unquote(parts[2])

    @property
    def identity(self) -> str:
        """What two paths of one file have in common."""
        if (local := self.local) is not None:
            seen = local.stat()
            return f"{seen.st_dev}-{seen.st_ino}"
        head, _, path = self.address.partition("?")[0].partition("://")
        return f"{head}://{unquote(path.rpartition('@')[2])}"

    def below(self, rest: str) -> Place:
        """A path below this one."""
        name = f"{self.name.rstrip('/')}/{rest}" if self.name != "." else rest
        if (parts := _URI.fullmatch(self.address)) is None:
            return Place(name, f"{self.address.rstrip('/')}/{rest}")
        head, path, options = parts.groups()
        return Place(name, f"{head}{path.rstrip('/')}/{quote(rest, safe='/')}{options or ''}")

    @property
    def above(self) -> Place:
        """The folder that it lies in; of a bucket itself, the bucket."""
        head, slash, _ = self.name.rpartition("/")
        if self.local is not None:
            return Place(head or ("/" if slash else "."), str(self.local.parent))
        if not self.plain.strip("/"):
            return self
        address, asks, options = self.address.partition("?")
        return Place(head, address.rstrip("/").rpartition("/")[0] + asks + options)

    def at(self, path: str) -> Place:
        """Where a path leads that begins at this folder; `..` leads up.

        Raises:
            DataError: it begins at a disk's root, and this folder is in a bucket.
        """
        if self.local is not None:
            return Place.of(str(self.local / path))
        if path.startswith("/"):
            raise DataError(f"{path!r} begins at a disk's root, and {self.name!r} is in a bucket; give it from there")
        found = self
        for step in path.split("/"):
            if step == "..":
                found = found.above
            elif step not in ("", "."):
                found = found.below(step)
        return found

    def from_folder(self, folder: Place) -> str:
        """The path that leads here from a folder of the same file system, for `at`."""
        if self.local is not None and folder.local is not None:
            return os.path.relpath(self.local, folder.local)
        return posixpath.relpath(self.plain or "/", folder.plain or "/")

    def info(self) -> FileInfo:
        """What is there. DataError where that cannot be asked."""
        filesystem, path = self._found()
        try:
            return filesystem.get_file_info(path)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self.away(error) from None

    def list(self, recursive: bool = True) -> list[tuple[str, FileInfo]]:
        """(path below this one, what is there) of what lies in a folder, sorted; also links that lead nowhere.
        DataError where that cannot be asked."""
        filesystem, path = self._found()
        local = isinstance(filesystem, LocalFileSystem)
        begin = len(str(Path(path)) if local else path.rstrip("/")) + 1
        try:
            if local:  # pyarrow's lists leave out links that lead nowhere
                found = list(_walk(Path(path), recursive))
            else:
                found = filesystem.get_file_info(FileSelector(path, recursive=recursive))
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self.away(error) from None
        return sorted(((info.path[begin:], info) for info in found), key=lambda one: one[0])

    def open(self) -> Any:
        """The file, as a pyarrow.NativeFile that can be read at any place; OSError where it cannot be opened."""
        filesystem, path = self._found()
        return filesystem.open_input_file(path)

    def away(self, error: Exception) -> DataError:
        """The DataError that says that it cannot be reached, and why."""
        return DataError(f"data file {self.name!r} cannot be reached: {self.why(error)}")

    def why(self, error: Exception) -> str:
        """An error's first line, without keys and passwords."""
        lines = str(error).replace(self.address, self.name).splitlines() or [type(error).__name__]
        return _SECRET.sub(r"\1:***@", lines[0])

    def _found(self) -> tuple[FileSystem, str]:
        if (parts := _URI.fullmatch(self.address)) is None:
            return LocalFileSystem(), self.address
        head, path, options = parts.groups()
        try:
            filesystem, root = _filesystem(head, options or "")
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self.away(error) from None
        return filesystem, root + unquote(path).rstrip("/")


def _walk(folder: Path, recursive: bool, above: tuple[tuple[int, int], ...] = ()) -> Iterator[FileInfo]:
    """What lies in a local folder, through links. OSError for a link to a folder in which it lies."""
    seen = folder.stat()
    if (seen.st_dev, seen.st_ino) in above:
        raise OSError(f"{str(folder)!r} is a link to a folder in which it lies")
    for entry in folder.iterdir():
        kind = FileType.Directory if entry.is_dir() else FileType.File if entry.is_file() else FileType.NotFound
        yield FileInfo(str(entry), kind)
        if recursive and kind == FileType.Directory:
            yield from _walk(entry, True, (*above, (seen.st_dev, seen.st_ino)))


@lru_cache(maxsize=64)
def _filesystem(head: str, options: str) -> tuple[FileSystem, str]:
    """The file system of an address, and what comes before a path in it."""
    filesystem, inner = FileSystem.from_uri(f"{head}/x{options}")
    return filesystem, inner.removesuffix("/x")
