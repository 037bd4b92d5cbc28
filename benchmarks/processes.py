"""Processor seconds of this process's threads and of every process below it, by name."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType

import psutil

_EVERY_S = 2.0


class ProcessorTime:
    """Samples while it is entered; `seconds` is what was used in that time. A process that ends between two samples
    is counted up to its last one."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, int, float], float] = {}
        self._last: dict[tuple[str, int, float], float] = {}
        self._names: dict[int, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="processor time", daemon=True)

    def __enter__(self) -> ProcessorTime:
        self._first = self._sample()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def seconds(self) -> dict[str, float]:
        """Name -> processor seconds, the largest first."""
        used: Counter[str] = Counter()
        for key, value in self._last.items():
            used[self._names.get(key[1], key[0])] += value - self._first.get(key, 0.0)
        return {name: round(value, 1) for name, value in used.most_common() if value >= 0.1}

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._last |= self._sample()
        self._last |= self._sample()

    def _sample(self) -> dict[tuple[str, int, float], float]:
        """(kind, process or thread id, when it began) -> processor seconds; keeps the newest name of each."""
        me = psutil.Process()
        found: dict[tuple[str, int, float], float] = {}
        threads = {thread.native_id: thread.name for thread in threading.enumerate()}
        for thread in me.threads():
            self._names[thread.id] = f"driver: {threads.get(thread.id, 'libraries')}"
            found["thread", thread.id, me.create_time()] = thread.user_time + thread.system_time
        for process in me.children(recursive=True):
            try:
                times = process.cpu_times()
                self._names[process.pid] = _name(process)
                found["process", process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue  # it has just ended
        return found


def _name(process: psutil.Process) -> str:
    """Ray's title of a worker, or the program's name."""
    words = process.cmdline()
    if not words:
        return process.name()
    if words[0].startswith("ray::"):
        title = words[0].removeprefix("ray::").partition(".")[0]
        return {"ResourceTrainable": "PackTrial"}.get(title, title)
    script = next((word for word in words[1:] if word.endswith(".py")), words[0])
    return script.rpartition("/")[2]
