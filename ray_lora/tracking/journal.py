"""What MLflow is to be told, written down before it is sent: one JSON object a line, only ever appended.

    {"event": "log", "job": "r4", "step": 10, "metrics": {"loss": 0.31}, "time": 1760000000000}

Beside it `NAME.sent` says how far MLflow has acknowledged. A process that is killed loses nothing: the next one on the
same file goes on there. Knows nothing of what events mean.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]

_logger = logging.getLogger(__name__)


class Journal:
    """Appended to by any thread, read by one. Without a path it lies in a temporary folder, gone with the process."""

    def __init__(self, path: Path | None, address: str) -> None:
        self.kept = path is not None
        if path is None:
            folder = Path(tempfile.mkdtemp(prefix="ray-lora-"))
            self._gone = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            path = folder / "record.jsonl"
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._address = hashlib.sha256(address.encode()).hexdigest()
        self._sent = self.path.with_name(self.path.name + ".sent")
        self._lock = threading.Lock()
        with self.path.open("ab+") as file:  # a line that a killed process left half written ends here
            if file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
        self.offset, self.runs = self._acknowledged()

    def append(self, event: str, **told: Any) -> None:
        """Write an event down with the time, in ms since the epoch."""
        line = json.dumps({"event": event, **told, "time": int(time.time() * 1000)}) + "\n"
        with self._lock, self.path.open("ab") as file:
            file.write(line.encode())

    def all(self) -> Iterator[Event]:
        """Every event ever written."""
        with self.path.open("rb") as file:
            for line in file:
                if (event := _parsed(line)) is not None:
                    yield event

    def unsent(self, limit: int) -> tuple[list[Event], int]:
        """The next events to be sent, and how far the file was read for them."""
        events: list[Event] = []
        end = self.offset
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n") or len(events) == limit:
                    break
                end += len(line)
                if (event := _parsed(line)) is not None:
                    events.append(event)
        return events, end

    def acknowledge(self, offset: int) -> None:
        """Everything before `offset` has arrived; `runs` are kept with it."""
        self.offset = offset
        told = {"offset": offset, "address": self._address, "runs": self.runs}
        temporary = self._sent.with_name(self._sent.name + ".new")
        temporary.write_text(json.dumps(told))
        temporary.replace(self._sent)

    def count_unsent(self) -> int:
        """How many events are still to be sent."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return sum(_parsed(line) is not None for line in file)

    def close(self) -> None:
        """Let go of a temporary folder."""
        if not self.kept:
            self._gone()

    def _acknowledged(self) -> tuple[int, dict[str, str]]:
        """(offset, job -> run id) of what this address has acknowledged; another address gets everything."""
        try:
            told = json.loads(self._sent.read_text())
            if told["address"] == self._address and 0 <= int(told["offset"]) <= self.path.stat().st_size:
                return int(told["offset"]), dict(told["runs"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            _logger.warning("%s cannot be read (%s); everything in %s is sent again", self._sent, error, self.path)
        return 0, {}


def _parsed(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
