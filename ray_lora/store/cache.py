"""Verified local copies of adapters that live elsewhere, keyed by content hash: `$RAY_LORA_CACHE/adapters/SHA256/`.

A copy appears by one rename and is checked whenever it is handed out; a spoilt one is fetched again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_lora.errors import AdapterError
from ray_lora.store.files import Stat

if TYPE_CHECKING:
    from ray_lora.adapters.adapter import Adapter


_AHEAD = 64 << 20  # bytes
_AHEAD_S = 30.0  # a request that chose a version loads it at once
_RACY_S = 3.0  # a bucket's times are whole seconds


def cache_root() -> Path:
    """`$RAY_LORA_CACHE`, else `~/.cache/ray_lora`."""
    return Path(os.environ.get("RAY_LORA_CACHE") or "~/.cache/ray_lora").expanduser()


def is_sha256(text: str) -> bool:
    """Whether this is a content hash (and so safe as a folder's name)."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def checked(folder: Path, sha256: str | None) -> Adapter:
    """The adapter in a folder; AdapterError when its content is not the one expected, or no adapter at all."""
    from ray_lora.adapters.adapter import Adapter

    adapter = Adapter.load(folder)
    if sha256 and adapter.sha256 != sha256:
        raise AdapterError(
            f"{str(folder)!r}: content hash is {adapter.sha256[:12]}…, its store says {sha256[:12]}…; "
            "the files were changed or torn: put the adapter again"
        )
    return adapter


def local_copy(sha256: str | None, fetch: Callable[[Path], None]) -> tuple[Path, Adapter]:
    """The folder that holds this content, and what is in it; `fetch` fills an empty folder where it is not here yet, or
    not whole.

    `sha256=None` takes whatever is fetched. AdapterError when what came is not what was asked for.
    """
    if sha256 is not None and not is_sha256(sha256):
        raise AdapterError(f"{sha256[:80]!r} is not a content hash")
    home = cache_root() / "adapters"
    home.mkdir(parents=True, exist_ok=True)
    if sha256 is not None and (kept := _usable(home / sha256, sha256)):
        return home / sha256, kept
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=home))
    try:
        fetch(staging)
        adapter = checked(staging, sha256)
        folder = home / adapter.sha256
        if not _usable(folder, adapter.sha256):
            _set_aside(folder, staging / "spoilt")
            try:
                staging.rename(folder)
            except OSError:  # another process was quicker
                checked(folder, adapter.sha256)
        return folder, adapter
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def forget_copies(contents: Collection[str]) -> int:
    """Remove this machine's copies of contents; how many there were. Whoever else needs one fetches it again."""
    count = 0
    for sha256 in filter(is_sha256, contents):
        folder = cache_root() / "adapters" / sha256
        if folder.is_dir():
            shutil.rmtree(folder)
            count += 1
    return count


def _usable(folder: Path, sha256: str) -> Adapter | None:
    try:
        return checked(folder, sha256) if folder.is_dir() else None
    except AdapterError:
        return None


def _set_aside(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
        shutil.rmtree(target, ignore_errors=True)
    except FileNotFoundError:
        pass


class Fetched:
    """Which content the files of a far store held when they were fetched, in `$RAY_LORA_CACHE/fetched/`, so that a
    process that starts does not fetch all of them again."""

    def __init__(self, uri: str) -> None:
        self._folder = cache_root() / "fetched" / hashlib.sha256(uri.encode()).hexdigest()[:16]

    def recall(self, name: str, prefix: str, stats: Sequence[Stat | None]) -> str | None:
        """The content hash of a version whose files are these; None: it must be fetched."""
        try:
            told = json.loads(self._file(name, prefix).read_text())
            return str(told["sha256"]) if told["files"] == _plain(stats) and is_sha256(told["sha256"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, name: str, prefix: str, stats: Sequence[Stat | None], sha256: str) -> None:
        """Remember it, unless the files are so new that a change in the same moment could not be seen."""
        newest = max((stat.changed for stat in stats if stat is not None), default=0) / 1e9
        if time.time() - newest < _RACY_S:
            return
        file = self._file(name, prefix)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            fresh = file.with_suffix(f".{os.getpid()}.tmp")
            fresh.write_text(json.dumps({"files": _plain(stats), "sha256": sha256}))
            fresh.replace(file)
        except OSError:  # a full disk costs another fetch
            return

    def forget(self, name: str) -> None:
        """Know nothing of a name any more."""
        shutil.rmtree(self._folder / name, ignore_errors=True)

    def _file(self, name: str, prefix: str) -> Path:
        return self._folder / name / f"{prefix.rstrip('/') or 'plain'}.json"


def _plain(stats: Sequence[Stat | None]) -> list[list[int] | None]:
    return [None if stat is None else list(stat) for stat in stats]


class ReadAhead:
    """Adapters that were read to learn their content hash, kept for whoever loads them next. For several threads.

    Nobody may: a replica that holds the content already, or whose version is deleted at once, does not load it.
    """

    def __init__(self, most: int = _AHEAD, within_s: float = _AHEAD_S) -> None:
        self.most, self.within_s = most, within_s  # bytes; seconds
        self._held: OrderedDict[tuple[str, int], tuple[Adapter, int, float]] = OrderedDict()  # and since when
        self._lock = threading.Lock()

    def keep(self, name: str, version: int, adapter: Adapter, size: int) -> None:
        """Keep an adapter of `size` bytes until it is taken, or newer ones come after its time or need its place."""
        now = time.monotonic()
        with self._lock:
            for late in [key for key, (_, _, since) in self._held.items() if now - since >= self.within_s]:
                del self._held[late]
            self._held[name, version] = (adapter, size, now)
            while sum(size for _, size, _ in self._held.values()) > self.most:
                self._held.popitem(last=False)

    def take(self, name: str, version: int, sha256: str) -> Adapter | None:
        """The adapter, if it is here and of this content; it is kept no longer."""
        with self._lock:
            held, _, _ = self._held.pop((name, version), (None, 0, 0.0))
        return held if held is not None and held.sha256 == sha256 else None

    def drop(self, name: str, version: int) -> None:
        """Hold it no longer."""
        with self._lock:
            self._held.pop((name, version), None)
