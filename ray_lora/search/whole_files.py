"""The file system that Ray Tune keeps a search's state on: each file whole, or as it was.

    tune.RunConfig(storage_path=folder, storage_filesystem=whole_files())

Tune writes the state of a search into a folder of Ray's own and copies it, every ten seconds and more, over the files
that a search goes on from. A kill or a full disk in the middle of a copy would leave a part of one. Here a copy is made
beside its place and takes it when it is whole. It knows nothing of what Tune writes but that `.json` is JSON.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem
from pyarrow import NativeFile, PythonFile
from pyarrow.fs import FSSpecHandler, PyFileSystem
from pyarrow.fs import LocalFileSystem as Local
from ray.train import Checkpoint

_UNFINISHED = ".unfinished-"


def whole_files() -> PyFileSystem:
    """This machine's files, of which each is written whole or not at all."""
    return PyFileSystem(WholeFiles())


def tidy(folder: Path) -> None:
    """Remove what a kill left unfinished below a search's folder, before the search goes on."""
    for left in folder.rglob(f"{_UNFINISHED}*"):
        left.unlink(missing_ok=True)


def in_place(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint on such files, to be read where it lies.

    Ray copies a checkpoint of a file system that it does not know to a folder that its readers on a machine share, and
    the first to end may remove that folder while the next one comes: trials that a scheduler clones from one.
    """
    ours = isinstance(checkpoint.filesystem, PyFileSystem) and isinstance(checkpoint.filesystem.handler, WholeFiles)
    return type(checkpoint)(checkpoint.path, Local()) if ours else checkpoint


class WholeFiles(FSSpecHandler):  # type: ignore[misc]  # pyarrow comes without types
    """pyarrow's way to local files, but for how they are written."""

    def __init__(self) -> None:
        super().__init__(LocalFileSystem())

    def open_output_stream(self, path: str, metadata: object) -> NativeFile:
        """A file that takes its place when it is closed after all was written."""
        return PythonFile(_Beside(Path(path)), mode="w")


class _Beside:
    """A file that is being written. No `io` class: those close what nobody closes, and a copy that was given up would
    take its place."""

    mode = "wb"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fresh = path.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")  # no name that Tune looks for
        self._file = self._fresh.open("wb")
        self._whole = True

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except BaseException:
            self._whole = False
            raise

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self._file.close()  # what is still to be written may not fit
            if self._whole and _reads(self._fresh, self._path.suffix):
                self._fresh.replace(self._path)
        finally:
            self._fresh.unlink(missing_ok=True)

    def __del__(self) -> None:
        if not self.closed:  # given up: the copy's source could not be read
            self._file.close()
            self._fresh.unlink(missing_ok=True)


def _reads(path: Path, suffix: str) -> bool:
    """Whether a `.json` file is JSON: Tune may write one anew while its copy is made, and the next copy is whole."""
    if suffix != ".json":
        return True
    content = path.read_bytes()
    if content[:1] == b"\x80":  # Tune gives some of its pickles that ending, and replaces those at once
        return True
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
