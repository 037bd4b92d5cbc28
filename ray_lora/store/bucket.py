"""Adapters in a bucket (`s3://`, `gs://`) or any other file system of pyarrow.

A bucket renames nothing and has no locks, so a version is written with `adapter_config.json` last, and a writer
first claims its number: it writes a claim, then looks; whoever sees another's claim takes a later number.
Listings of S3 and Google's buckets are consistent, so of two writers at least the later one sees the other.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pyarrow import ArrowException
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from ray_lora.bounds import public
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.store.described import versions_of
from ray_lora.store.files import CLAIMS, CONFIG, PARTS, PICKLED, Listing, Stat, claimed, matters
from ray_lora.store.refs import is_name, is_person, version_of
from ray_lora.store.store import StoreAwayError

_logger = logging.getLogger(__name__)


class BucketFiles:
    """Files below one path of a pyarrow file system."""

    def __init__(self, filesystem: FileSystem, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")

    @classmethod
    def open(cls, uri: str) -> BucketFiles:
        """The place at `s3://bucket/path` or another address that pyarrow knows; RecipeError otherwise."""
        try:
            return cls(*FileSystem.from_uri(uri))
        except (ArrowException, OSError, ValueError) as error:
            raise RecipeError(
                f"{public(uri)!r} cannot be a store: {error}; "
                "give a folder, s3://bucket/path, gs://bucket/path or mlflow"
            ) from None

    def create(self) -> None:
        """See `Files.create`. A bucket is made by its owner."""

    def expect(self) -> None:
        """See `Files.expect`. A bucket that is away says so."""

    def scan(self, name: str) -> Listing:
        """See `Files.scan`."""
        return {path: stat for info in self._list(name) if (path := self._below(info, name)) and (stat := _stat(info))}

    def names(self) -> list[str]:
        """See `Files.names`."""
        return list(self.scan_all())

    def scan_all(self, people: bool = True) -> Mapping[str, Listing]:
        """See `Files.scan_all`. One listing of the whole bucket path."""
        listings: dict[str, dict[str, Stat]] = {}
        for info in self._list(""):
            name, _, path = info.path[len(self._root) + 1 :].partition("/")
            if is_name(name) and (people or not is_person(name)) and _wanted(path) and (stat := _stat(info)):
                listings.setdefault(name, {})[path] = stat
        return listings

    def read(self, name: str, path: str, start: int = 0, size: int | None = None) -> bytes:
        """See `Files.read`."""
        with self._fs.open_input_file(self._at(name, path)) as file:
            length = file.size() - start if size is None else size
            return bytes(file.read_at(max(length, 0), start))

    def publish(self, folder: Path, name: str, first: int) -> int:
        """See `Files.publish`."""
        version = self._claim(name, first)
        written = []
        try:
            for part in PARTS:
                if (folder / part).exists():
                    written.append(f"{version}/{part}")
                    self.write(name, written[-1], (folder / part).read_bytes())
        except BaseException:
            for path in reversed(written):
                self._forget(self._at(name, path))
            raise
        return version

    def write(self, name: str, path: str, data: bytes) -> None:
        """See `Files.write`. An object appears whole when its stream is closed."""
        target = self._at(name, path)
        try:
            self._fs.create_dir(target.rpartition("/")[0], recursive=True)
            with self._fs.open_output_stream(target) as stream:
                stream.write(data)
        except OSError as error:
            raise StoreAwayError(f"{target!r} cannot be written: {error}") from None

    def delete(self, name: str, prefix: str) -> None:
        """See `Files.delete`."""
        for part in (CONFIG, *PARTS, PICKLED):
            self._forget(self._at(name, prefix + part))

    def crowded(self, most: int) -> list[str]:
        """See `Files.crowded`. One listing of the whole bucket path."""
        return sorted(name for name, listing in self.scan_all().items() if len(versions_of(listing)) > most)

    def forget(self, name: str) -> None:
        """See `Files.forget`. Configs first, so that each version vanishes whole."""
        listed = [info.path for info in self._list(name) if info.type == FileType.File]
        for path in sorted(listed, key=lambda path: not path.endswith(f"/{CONFIG}")):
            self._forget(path)
        try:
            self._fs.delete_dir(self._at(name, ""))
        except FileNotFoundError:  # a bucket has no folders
            pass
        except OSError as error:
            raise StoreAwayError(f"{self._at(name, '')!r} cannot be taken away: {error}") from None

    def local(self, name: str, prefix: str) -> None:
        """See `Files.local`."""
        return None

    def fetch(self, name: str, prefix: str, folder: Path) -> None:
        """See `Files.fetch`."""
        for part in PARTS:
            if self._fs.get_file_info(self._at(name, prefix + part)).type == FileType.File:
                (folder / part).write_bytes(self.read(name, prefix + part))

    def lock(self, name: str) -> AbstractContextManager[object]:
        """See `Files.lock`."""
        return nullcontext()

    def _claim(self, name: str, version: int) -> int:
        """A number that no other writer has or will have."""
        mine = uuid.uuid4().hex
        while True:
            claim = f"{CLAIMS}/{version}-{mine}"
            self.write(name, claim, b"")
            listing = self.scan(name)
            others = [path for path in listing if path.startswith(f"{CLAIMS}/{version}-") and path != claim]
            if not others and not any(path.startswith(f"{version}/") for path in listing):
                return version
            self._forget(self._at(name, claim))
            time.sleep(random.uniform(0, 0.2))  # two writers that met do not meet again
            listing = self.scan(name)
            versions = (version_of(path.partition("/")[0]) or 0 for path in listing)
            version = max([version, *versions, *claimed(listing)]) + 1

    def _list(self, name: str) -> list[FileInfo]:
        try:
            return list(self._fs.get_file_info(FileSelector(self._at(name, ""), allow_not_found=True, recursive=True)))
        except OSError as error:
            raise StoreAwayError(f"{self._root!r} cannot be listed: {error}") from None

    def _below(self, info: FileInfo, name: str) -> str:
        path = info.path[len(self._at(name, "")) + 1 :]
        return path if _wanted(path) else ""

    def _at(self, name: str, path: str) -> str:
        return "/".join(part for part in (self._root, name, path) if part)

    def _forget(self, path: str) -> None:
        try:
            self._fs.delete_file(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            if self._fs.get_file_info(path).type != FileType.NotFound:
                raise AdapterError(f"{path!r} cannot be taken away: {error}") from None


def _wanted(path: str) -> bool:
    """Like a local store's scan: files of the name and of its numbered folders."""
    folder, _, last = path.rpartition("/")
    return matters(path) and bool(last) and (not folder or folder == CLAIMS or version_of(folder) is not None)


def _stat(info: FileInfo) -> Stat | None:
    return Stat(info.size, info.mtime_ns or 0) if info.type == FileType.File else None
