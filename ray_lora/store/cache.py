"""Verified local copies of adapters that live elsewhere, keyed by content hash: `$RAY_LORA_CACHE/adapters/SHA256/`.

A copy appears by one rename and is checked whenever it is handed out; a spoilt one is fetched again.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ray_lora.errors import AdapterError


def cache_root() -> Path:
    """`$RAY_LORA_CACHE`, else `~/.cache/ray_lora`."""
    return Path(os.environ.get("RAY_LORA_CACHE") or "~/.cache/ray_lora").expanduser()


def is_sha256(text: str) -> bool:
    """Whether this is a content hash (and so safe as a folder's name)."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def checked(folder: Path, sha256: str | None) -> str:
    """The content hash of an adapter folder; AdapterError when it is not the one expected, or not an adapter at all."""
    from ray_lora.adapter import Adapter

    found = Adapter.load(folder).sha256
    if sha256 and found != sha256:
        raise AdapterError(
            f"{str(folder)!r}: content hash is {found[:12]}…, its store says {sha256[:12]}…; "
            "the files were changed or torn: put the adapter again"
        )
    return found


def local_copy(sha256: str | None, fetch: Callable[[Path], None]) -> Path:
    """The folder that holds this content; `fetch` fills an empty folder where it is not here yet, or not whole.

    `sha256=None` takes whatever is fetched. AdapterError when what came is not what was asked for.
    """
    if sha256 is not None and not is_sha256(sha256):
        raise AdapterError(f"{sha256[:80]!r} is not a content hash")
    home = cache_root() / "adapters"
    home.mkdir(parents=True, exist_ok=True)
    if sha256 is not None and (kept := _usable(home / sha256, sha256)):
        return kept
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=home))
    try:
        fetch(staging)
        found = checked(staging, sha256)
        if not _usable(home / found, found):
            _set_aside(home / found, staging / "spoilt")
            try:
                staging.rename(home / found)
            except OSError:  # another process was quicker
                checked(home / found, found)
        return home / found
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _usable(folder: Path, sha256: str) -> Path | None:
    try:
        return folder if folder.is_dir() and checked(folder, sha256) else None
    except AdapterError:
        return None


def _set_aside(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
        shutil.rmtree(target, ignore_errors=True)
    except FileNotFoundError:
        pass
