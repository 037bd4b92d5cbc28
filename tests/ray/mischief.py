"""What people, programs and machines do to a live store, step by step and from a seed; each step is in the ledger.

Versions are copied file by file, rewritten in place, cut, rescaled, swapped and taken away; aliases move; names and the
whole store go and come back. Between two steps requests are answered: `pause(n)` waits for n of them.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load, save

from tests.ray.ledger import CARD, CONFIG, PARTS, WEIGHTS, Away, Content, Held, Ledger

_MOST = 4  # versions of a name
_LONG_AGO = (1e9, 1e9)  # what a copy that keeps its source's times leaves behind
FLAT = "flat"  # lies as plain PEFT saves it, without a folder a version


class Mischief:
    """Changes a store; one thread.

    Args:
        desk: a folder beside the store, on its file system.
        names: all names that it may touch, their first version in place.
    """

    def __init__(
        self,
        root: Path,
        desk: Path,
        ledger: Ledger,
        contents: Sequence[Content],
        names: Sequence[str],
        seed: int,
    ) -> None:
        self.root, self.desk, self.ledger, self.names = root, desk, ledger, names
        self.pause: Callable[[int], None] = lambda more: None
        self.random = random.Random(seed)
        self.happened: Counter[str] = Counter()
        usable = [one for one in contents if one.finite]
        self.contents = {kind: [one for one in usable if one.kind == kind] for kind in ("carded", "plain")}
        self.contents["numberless"] = [one for one in contents if not one.finite]
        self.kinds: dict[str, Callable[[], None]] = {
            "copy": lambda: self.copy("carded"),
            "copy of a plain folder": lambda: self.copy("plain"),
            "copy without numbers": lambda: self.copy("numberless"),
            "rewrite in place": self.rewrite,
            "rewrite of a plain folder": self.rewrite_plain,
            "cut": lambda: self.spoil(lambda data: data[: self.random.randrange(len(data))]),
            "rescaled": lambda: self.spoil(_rescaled),
            "no numbers": lambda: self.spoil(_no_numbers),
            "torn header": lambda: self.spoil(lambda data: b"\xff" * 8 + data[8:]),
            "weights taken away": lambda: self.spoil(lambda data: None),
            "another's card": self.other_card,
            "swap": self.swap,
            "alias": self.alias,
            "name gone": self.name_gone,
            "store gone": lambda: self.store_gone(emptied=False),
            "store emptied": lambda: self.store_gone(emptied=True),
        }

    def play(self, pause: Callable[[int], None], between: Callable[[], bool]) -> None:
        """Events, each kind once in every round, until `pause` raises.

        Args:
            pause: waits until so many more requests were answered.
            between: called before each event; while it says no, the store does not go away.
        """
        self.pause = pause
        while True:
            for kind in self.random.sample(list(self.kinds), len(self.kinds)):
                if not between() and kind.startswith("store"):
                    continue
                self.kinds[kind]()
                self.happened[kind] += 1
                self.pause(self.random.randrange(8))

    def copy(self, kind: str) -> None:
        """A new version, file by file, as cp, rsync and scp do it."""
        self._copy(self._numbered(), self.pick(kind))

    def rewrite(self) -> None:
        """Another content with a card over a version that is there, perhaps in a slot."""
        name, version = self._any()
        self._over(name, version, self.pick("carded"))

    def rewrite_plain(self) -> None:
        """The same without cards: bytes of both are a folder that PEFT reads, while it is written."""
        name = self.random.choice(self.names)
        held = self.ledger.now(name).versions
        plain = [version for version in held if CARD not in held[version].files and len(held[version].files) == 2]
        if not plain:
            return self.copy("plain")
        version = self.random.choice(plain)
        like = [one for one in self.contents["plain"] if len(one.files[WEIGHTS]) == len(held[version].files[WEIGHTS])]
        self._over(name, version, self.random.choice(like or self.contents["plain"]))

    def spoil(self, change: Callable[[bytes], bytes | None]) -> None:
        """Other weights under the card that is there, and often what was there again."""
        name, version = self._any()
        before = dict(self.ledger.now(name).versions[version].files)
        if WEIGHTS not in before or not before[WEIGHTS]:
            return self._over(name, version, self.pick("carded"))
        self._write(name, version, WEIGHTS, _or_none(change, before[WEIGHTS]), self._way())
        self.pause(self.random.randrange(5, 40))
        if self.random.random() < 0.7:
            self._write(name, version, WEIGHTS, before[WEIGHTS], self._way())

    def other_card(self) -> None:
        """A card that belongs to other weights, or none, for a while."""
        name, version = self._any()
        before = self.ledger.now(name).versions[version].files.get(CARD)
        other = self.pick("carded").files[CARD] if self.random.random() < 0.7 else None
        self._write(name, version, CARD, other, self._way())
        self.pause(self.random.randrange(5, 40))
        self._write(name, version, CARD, before, self._way())

    def swap(self) -> None:
        """Another folder in a version's place, by two renames."""
        name = self._numbered()
        version = self.random.choice(list(self.ledger.now(name).versions))
        content = self.pick(self.random.choice(["carded", "plain"]))
        ready, gone = self._desk(), self._desk()
        self._save(ready, content.files)
        with self.ledger.changing(name, version, None):
            self._folder(name, version).rename(gone)
        self.pause(self.random.choice([0, 0, 2]))
        held = Held(content.files, time.monotonic(), at_once=True)
        now = self.ledger.now(name)
        with self.ledger.becoming(name, {**now.versions, version: held}, now.aliases):
            ready.rename(self._folder(name, version))

    def alias(self) -> None:
        """An alias moves to any version there is, good or not; champions only where there is one."""
        name = self._numbered()
        now = self.ledger.now(name)
        alias = self.random.choice(["canary", *(["champion"] if "champion" in now.aliases else [])])
        self._aliases(name, {**now.aliases, alias: self.random.choice(list(now.versions))})

    def name_gone(self) -> None:
        """A name's folder is taken away, and comes back as it was."""
        name = self.random.choice(self.names)
        now, gone = self.ledger.now(name), self._desk()
        with self.ledger.becoming(name, {}, {}):
            (self.root / name).rename(gone)
        self.pause(self.random.randrange(5, 30))
        held = {version: replace(one, at_once=True) for version, one in now.versions.items()}
        with self.ledger.becoming(name, held, now.aliases):
            gone.rename(self.root / name)

    def store_gone(self, emptied: bool) -> None:
        """The store's folder is not there for a while, or an empty one is, as where nothing is mounted."""
        gone = self._desk()
        away = Away(time.monotonic())
        self.ledger.aways.append(away)
        self.root.rename(gone)
        if emptied:
            self.root.mkdir()
        away.gone = time.monotonic()
        self.pause(self.random.randrange(40, 80))
        away.coming = time.monotonic()
        if emptied:
            self.root.rmdir()
        gone.rename(self.root)
        away.back = time.monotonic()

    def pick(self, kind: str) -> Content:
        """One of the contents of a kind: carded, plain or numberless."""
        return self.random.choice(self.contents[kind])

    def first(self, name: str, content: Content, aliases: Mapping[str, int]) -> None:
        """A name as it is before anybody asks."""
        with self.ledger.becoming(name, {1: Held(content.files, time.monotonic(), at_once=True)}, aliases):
            self._save(self._folder(name, 1), content.files)
            if aliases:
                (self.root / name / "aliases.json").write_text(json.dumps(dict(aliases)))

    def _copy(self, name: str, content: Content) -> None:
        now = self.ledger.now(name)
        version = max(now.versions, default=0) + 1
        if len(now.versions) >= _MOST:
            kept = set(now.aliases.values()) if self.random.random() < 0.8 else set()
            self._remove(name, min(set(now.versions) - kept, default=min(now.versions)))
        self._folder(name, version).mkdir()
        self._parts(name, version, content, kept_time=self.random.random() < 0.3)

    def _over(self, name: str, version: int, content: Content) -> None:
        """One way for all files of a content, over those that are there."""
        self._parts(name, version, content, kept_time=self.random.random() < 0.3)
        if CARD not in content.files and CARD in self.ledger.now(name).versions[version].files:
            self._write(name, version, CARD, None, "cp")

    def _parts(self, name: str, version: int, content: Content, kept_time: bool) -> None:
        way = self._way()
        for part in self.random.sample(PARTS, len(PARTS)) if self.random.random() < 0.5 else (CONFIG, WEIGHTS, CARD):
            if part in content.files:
                self._write(name, version, part, content.files[part], way, kept_time)
                self.pause(self.random.choice([0, 1, 4]))

    def _write(self, name: str, version: int, part: str, data: bytes | None, way: str, kept_time: bool = False) -> None:
        """One file, as `cp` (cut to nothing, then grown), `rsync` (another file takes its place) or `inplace` (over
        the bytes that are there) writes it; with `kept_time` it then has the time of what it was copied from."""
        path = self._folder(name, version) / part
        before = self.ledger.now(name).versions.get(version)
        old = before.files.get(part) if before else None
        if data is None:
            with self.ledger.changing(name, version, {part: None}):
                path.unlink(missing_ok=True)
            return
        if way == "rsync":
            ready = self._desk()
            ready.write_bytes(data)
            if kept_time:
                os.utime(ready, _LONG_AGO)
            with self.ledger.changing(name, version, {part: data}):
                ready.replace(path)
            return
        if way == "cp" or old is None:
            with self.ledger.changing(name, version, {part: b""}):
                path.write_bytes(b"")
            old = b""
        half = len(data) // 2
        with path.open("r+b") as file:
            for told, piece in ((data[:half] + old[half:], data[:half]), (data, data[half:])):
                with self.ledger.changing(name, version, {part: told}):
                    file.write(piece)
                    if told is data:
                        file.truncate()
                    file.flush()
                    if told is data and kept_time:
                        os.utime(path, _LONG_AGO)
                if part == WEIGHTS:
                    self.pause(self.random.choice([0, 1, 3]))

    def _aliases(self, name: str, aliases: Mapping[str, int]) -> None:
        ready = self._desk()
        ready.write_text(json.dumps(dict(aliases)))
        with self.ledger.becoming(name, self.ledger.now(name).versions, aliases):
            ready.replace(self.root / name / "aliases.json")

    def _remove(self, name: str, version: int) -> None:
        with self.ledger.changing(name, version, None):
            self._folder(name, version).rename(self._desk())

    def _save(self, folder: Path, files: Mapping[str, bytes]) -> None:
        folder.mkdir(parents=True)
        for part, data in files.items():
            (folder / part).write_bytes(data)

    def _folder(self, name: str, version: int) -> Path:
        return self.root / name if name == FLAT else self.root / name / str(version)

    def _desk(self) -> Path:
        return self.desk / f"{time.monotonic_ns()}"

    def _numbered(self) -> str:
        return self.random.choice([name for name in self.names if name != FLAT])

    def _any(self) -> tuple[str, int]:
        name = self.random.choice(self.names)
        return name, self.random.choice(list(self.ledger.now(name).versions))

    def _way(self) -> str:
        return self.random.choice(["cp", "rsync", "inplace"])


def _or_none(change: Callable[[bytes], bytes | None], data: bytes) -> bytes | None:
    """What a change makes of weights; half of them, where they are spoilt already and cannot be read."""
    try:
        return change(data)
    except Exception:
        return data[: len(data) // 2]


def _rescaled(data: bytes) -> bytes:
    return save({name: tensor * 1.7 for name, tensor in load(data).items()}, {"format": "pt"})


def _no_numbers(data: bytes) -> bytes:
    return save({name: torch.full_like(tensor, float("nan")) for name, tensor in load(data).items()}, {"format": "pt"})
