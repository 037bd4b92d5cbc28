"""Adapters in a folder of this machine (or of a shared file system).

A version appears by one `rename`: readers see all of it or nothing, and of two writers the kernel lets one have a
number. A link is followed only where it stays inside the store.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from ray_lora.errors import AdapterError
from ray_lora.store.files import CLAIMS, CONFIG, PARTS, PICKLED, Listing, Stat, matters
from ray_lora.store.left_out import LeftOut
from ray_lora.store.refs import is_name, is_person, version_of
from ray_lora.store.store import StoreAwayError

# of a file system that is far away and does not answer now
_AWAY = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENXIO)


class LocalFiles:
    """Files below one local folder, which is created by the first write.

    Once it was seen, or `expect`ed, a folder that is not there is away: a mount that comes back holds what it held.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self._expected = False
        self._left_out = LeftOut()
        self._held = False  # whether it was seen with anything in it

    def create(self) -> None:
        """See `Files.create`."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AdapterError(f"the store {str(self.root)!r} cannot be made: {error}") from None

    def expect(self) -> None:
        """See `Files.expect`."""
        self._expected = True

    def scan(self, name: str) -> Listing:
        """See `Files.scan`."""
        found: dict[str, Stat] = {}
        for entry in self._entries(self.root / name, f"{name!r}"):
            if entry.is_dir():
                if version_of(entry.name) is not None or entry.name == CLAIMS:
                    self._note_folder(found, entry)
                    for below in self._entries(Path(entry.path), f"{name}@{entry.name}"):
                        self._note(found, f"{entry.name}/{below.name}", below)
            else:
                self._note(found, entry.name, entry)
        return found

    def names(self) -> list[str]:
        """See `Files.names`."""
        entries = self._entries(self.root, "the store", check=False)
        return [entry.name for entry in entries if is_name(entry.name) and entry.is_dir()]

    def scan_all(self, people: bool = True) -> Mapping[str, Listing]:
        """See `Files.scan_all`."""
        listings: dict[str, Listing] = {}
        for name in self.names():
            if people or not is_person(name):
                try:
                    listings[name] = self.scan(name)
                except AdapterError as error:
                    self._left_out(error)
        return listings

    def read(self, name: str, path: str, start: int = 0, size: int | None = None) -> bytes:
        """See `Files.read`."""
        with (self.root / name / path).open("rb") as file:
            file.seek(start)
            return file.read(-1 if size is None else size)

    def publish(self, folder: Path, name: str, first: int) -> int:
        """See `Files.publish`."""
        home = self._home(name)
        with self._staging() as staging:
            ready = staging / "adapter"
            shutil.copytree(folder, ready)
            while True:
                try:
                    ready.rename(home / str(first))  # fails on a folder that holds anything
                    return first
                except (FileExistsError, NotADirectoryError):
                    first += 1
                except OSError as error:
                    if not (home / str(first)).exists():
                        raise AdapterError(f"the store {str(self.root)!r} cannot be written: {error}") from None
                    first += 1

    def write(self, name: str, path: str, data: bytes) -> None:
        """See `Files.write`."""
        target = self._home(name) / path
        target.parent.mkdir(exist_ok=True)
        with self._staging() as staging:
            (staging / "file").write_bytes(data)
            (staging / "file").replace(target)

    def delete(self, name: str, prefix: str) -> None:
        """See `Files.delete`."""
        folder = self.root / name / prefix
        if prefix:
            with self._staging() as staging:
                folder.rename(staging / "gone")
        else:
            for part in (CONFIG, *PARTS, PICKLED):
                (folder / part).unlink(missing_ok=True)

    def crowded(self, most: int) -> list[str]:
        """See `Files.crowded`. One look into each name's folder."""
        found = []
        for name in self.names():
            try:
                entries = self._entries(self.root / name, f"{name!r}", check=False)
            except AdapterError as error:
                self._left_out(error)
                continue
            if sum(version_of(entry.name) is not None for entry in entries) > most:
                found.append(name)
        return sorted(found)

    def forget(self, name: str) -> None:
        """See `Files.forget`. One `rename` takes it from readers; a link goes, not what it leads to."""
        home, gone = self.root / name, self.root / f".gone-{name}"
        try:
            if home.is_symlink():
                home.unlink()
            if gone.exists():
                shutil.rmtree(gone)
            if home.exists():
                home.rename(gone)
                shutil.rmtree(gone)
        except OSError as error:
            raise AdapterError(f"{name!r} cannot be taken out of the store {str(self.root)!r}: {error}") from None

    def local(self, name: str, prefix: str) -> Path:
        """See `Files.local`."""
        return self.root / name / prefix

    def fetch(self, name: str, prefix: str, folder: Path) -> None:
        """See `Files.fetch`."""
        for part in PARTS:
            if (self.local(name, prefix) / part).exists():
                shutil.copyfile(self.local(name, prefix) / part, folder / part)

    def lock(self, name: str) -> FileLock:
        """See `Files.lock`."""
        return FileLock(self._home(name) / ".lock")

    def _home(self, name: str) -> Path:
        """The name's folder, made where it is missing, inside the store."""
        home = self.root / name
        self._check(home, f"{name!r}")
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AdapterError(f"the store {str(self.root)!r} cannot be written: {error}") from None
        return home

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """A hidden folder on the store's own file system, gone afterwards."""
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=self.root))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _entries(self, folder: Path, what: str, check: bool = True) -> list[os.DirEntry[str]]:
        try:
            if check and folder.is_symlink():
                self._check(folder, what)
            with os.scandir(folder) as entries:
                found = list(entries)
        except (FileNotFoundError, NotADirectoryError):
            self._check_there()
            return []
        except OSError as error:
            if error.errno in _AWAY:
                raise StoreAwayError(f"the store {str(self.root)!r} does not answer: {error}") from None
            self._check_there()
            raise AdapterError(f"{what} cannot be read: {error}") from None
        self._expected = True
        self._held = self._held or bool(found)
        if not found and folder == self.root:
            self._check_there()
        if check:
            for entry in found:
                if entry.is_symlink():
                    self._check(Path(entry.path), what)
        return found

    def _check_there(self) -> None:
        """StoreAwayError when the store itself is gone, not one name of it."""
        if not self._expected:
            return
        try:
            with os.scandir(self.root) as entries:
                if any(True for _ in entries) or not self._held:
                    return
            gone = "it is empty, as a place where nothing is mounted"
        except OSError as error:
            gone = str(error.strerror)
        raise StoreAwayError(f"the store {str(self.root)!r} is away ({gone}); what is known goes on being used")

    def _check(self, path: Path, what: str) -> None:
        real = os.path.realpath(path)
        if os.path.commonpath([real, self.root]) != str(self.root):
            raise AdapterError(
                f"{what}: {path.name!r} is a link that leads out of the store {str(self.root)!r}; "
                "put the adapter itself there"
            )

    @staticmethod
    def _note_folder(found: dict[str, Stat], entry: os.DirEntry[str]) -> None:
        """A folder changes when a file of it goes, which leaves no time behind."""
        try:
            stat = entry.stat()
            found[f"{entry.name}/"] = Stat(0, stat.st_ctime_ns, stat.st_ino)
        except OSError:  # taken away meanwhile
            pass

    @staticmethod
    def _note(found: dict[str, Stat], path: str, entry: os.DirEntry[str]) -> None:
        if matters(path):
            try:
                if entry.is_file():
                    stat = entry.stat()
                    found[path] = Stat(stat.st_size, stat.st_ctime_ns, stat.st_ino)
            except OSError:  # taken away meanwhile
                pass
