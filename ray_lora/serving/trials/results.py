"""What each version answered and what people said of it, in files of a folder that an endpoint's replicas share.

    REPLICA.jsonl            a line an arm (name, version, variant, trial) with its counts; written anew every 5 s
    REPLICA.feedback.jsonl   a line a feedback, only ever appended
    REPLICA.ids              which arm answered which of the last requests, so that any replica can take the feedback

No inputs and no answers are kept. Knows no HTTP, no engine and no MLflow.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, get_args

from ray_lora.errors import RayLoraError
from ray_lora.recipe import Json
from ray_lora.serving.trials.tally import Arm, Tally, Variant

_ARMS = 4096  # counted by one replica; those used longest ago are forgotten first
_IDS = 50_000  # remembered by one replica, twice that in its files
_EVERY_S = 5.0
_STALE_S = 7 * 86_400  # ids of replicas that are gone

_logger = logging.getLogger(__name__)


class UnknownRequestError(RayLoraError, LookupError):
    """No recent answer has this request id."""


class Results:
    """One replica's part of the results. Use from one event loop, but for `find`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.on_saved: Callable[[], None] = lambda: None  # called in a thread whenever the counts were written
        self.on_closed: Callable[[], None] = lambda: None  # and at the end
        self.replica = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._tallies: OrderedDict[Arm, Tally] = OrderedDict()
        self._ids: OrderedDict[str, Arm] = OrderedDict()
        self._log: IO[str] | None = None
        self._logged = 0
        self._saving: asyncio.Task[None] | None = None
        self._broken = False

    def answered(self, arm: Arm, request_id: str | None, seconds: float, predictions: Sequence[Json]) -> None:
        """Count an answer, and remember whose it was."""
        self._tally(arm).answered(seconds, predictions)
        if request_id is not None:
            self._ids[request_id] = arm
            self._ids.move_to_end(request_id)
            if len(self._ids) > _IDS:
                self._ids.popitem(last=False)
            self._try(lambda: self._note(request_id, arm))

    def failed(self, arm: Arm) -> None:
        """Count a request that was not answered."""
        self._tally(arm).failed()

    def dropped(self, arm: Arm) -> None:
        """Count a copy that was not taken on."""
        self._tally(arm).dropped += 1

    async def feedback(self, arm: Arm, request_id: str, value: bool | float, user: str | None) -> None:
        """Keep what somebody says of an answer; of several feedbacks on one answer the last one counts."""
        told = {**arm._asdict(), "id": request_id, "value": value, "user": user, "time": time.time()}
        await asyncio.to_thread(self._append, json.dumps(told) + "\n")
        self._save_soon()

    async def find(self, request_id: str) -> Arm:
        """Who answered a request.

        Raises:
            UnknownRequestError: it is none of the last answers of any replica that shares the folder.
        """
        arm = self._ids.get(request_id)
        if arm is None and request_id.isascii() and request_id.isprintable():  # others are no part of a line
            arm = await asyncio.to_thread(self._look_up, request_id)
        if arm is None:
            raise UnknownRequestError(
                f"no recent answer has the id {request_id[:128]!r}; give the x-request-id of an answer"
            )
        return arm

    async def forget(self, name: str) -> int:
        """Keep no counts, feedback or ids of a name, of any replica that shares the folder; of how many answers this
        one knew."""
        mine = [arm for arm in self._tallies if arm.name == name]
        count = sum(self._tallies.pop(arm).requests for arm in mine)
        self._ids = OrderedDict((told, arm) for told, arm in self._ids.items() if arm.name != name)
        await asyncio.to_thread(self._try, lambda: forget_lines(self.folder, name))
        return count

    async def close(self) -> None:
        """Write what is not written yet."""
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.gather(self._saving, return_exceptions=True)
            await self._save()
        await asyncio.to_thread(self.on_closed)
        if self._log is not None:
            self._log.close()

    def _tally(self, arm: Arm) -> Tally:
        tally = self._tallies.setdefault(arm, Tally())
        self._tallies.move_to_end(arm)
        if len(self._tallies) > _ARMS:
            self._tallies.popitem(last=False)
        self._save_soon()
        return tally

    def _save_soon(self) -> None:
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._save_later())

    async def _save_later(self) -> None:
        await asyncio.sleep(_EVERY_S)
        await self._save()

    async def _save(self) -> None:
        told = [json.dumps({**arm._asdict(), **tally.dump()}) for arm, tally in self._tallies.items()]
        await asyncio.to_thread(self._write, "".join(f"{line}\n" for line in told))

    def _write(self, text: str) -> None:
        def replace() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f".{self.replica}.new"
            temporary.write_text(text)
            temporary.replace(self.folder / f"{self.replica}.jsonl")

        self._try(replace)
        self.on_saved()

    def _append(self, line: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{self.replica}.feedback.jsonl").open("a") as file:
            file.write(line)

    def _note(self, request_id: str, arm: Arm) -> None:
        path = self.folder / f"{self.replica}.ids"
        if self._log is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            _tidy(self.folder)
            self._log = path.open("a", buffering=1)
        elif self._logged >= _IDS:
            self._log.close()
            path.replace(path.with_suffix(".ids-before"))
            self._log, self._logged = path.open("a", buffering=1), 0
        self._logged += 1
        self._log.write("\t".join((request_id, arm.name, str(arm.version), arm.variant, arm.began)) + "\n")

    def _look_up(self, request_id: str) -> Arm | None:
        """Who answered, by the files of all replicas."""
        wanted = f"{request_id}\t".encode()
        for path in self.folder.glob("*.ids*"):
            try:
                content = b"\n" + path.read_bytes()
            except OSError:  # taken away meanwhile
                continue
            at = content.rfind(b"\n" + wanted)
            if at >= 0:
                parts = content[at + 1 :].partition(b"\n")[0].decode().split("\t")
                if len(parts) == 5 and parts[3] in get_args(Variant):
                    return Arm(parts[1], int(parts[2]), parts[3], parts[4])  # type: ignore[arg-type]  # checked
        return None

    def _try(self, write: Callable[[], object]) -> None:
        """Results that cannot be written never hurt an answer."""
        try:
            write()
            self._broken = False
        except OSError as error:
            if not self._broken:
                _logger.warning("results cannot be written to %s: %s", self.folder, error)
            self._broken = True


def _tidy(folder: Path) -> None:
    for path in folder.glob("*.ids*"):
        if time.time() - path.stat().st_mtime > _STALE_S:
            path.unlink(missing_ok=True)


def forget_lines(folder: Path, name: str) -> int:
    """Overwrite the lines of a folder's files that are of a name with empty ones; how many there were.

    Where they lie: replicas go on appending to the same files, and readers pass over empty lines.
    """
    count = 0
    for path in (*folder.glob("*.jsonl"), *folder.glob("*.ids*")):
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:  # taken away meanwhile
            at = 0
            for line in file.read().splitlines(keepends=True):
                if _is_of(line, name):
                    file.seek(at)
                    file.write(b"\n" * len(line))
                    count += 1
                at += len(line)
    return count


def _is_of(line: bytes, name: str) -> bool:
    if line.startswith(b"{"):
        try:
            return bool(json.loads(line)["name"] == name)
        except (ValueError, KeyError, TypeError):  # torn
            return False
    return line.split(b"\t")[1:2] == [name.encode()]
