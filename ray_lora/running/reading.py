"""How far reading, checking and encoding have come: rows a second and the time left, from the first second on.

    with Reading("tweets", quiet=False) as tell:
        tell("encoding", 12, 31, 393_216, "rows")

A terminal redraws one bar; a log gets a line now and then.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tell = Callable[[str, int, int, int, str], None]  # what is done, pieces done, of how many, rows done, what rows are
_EVERY_S = 2.0


def silent(what: str, done: int, of: int, amount: int, unit: str) -> None:
    """A `Tell` that says nothing."""


@contextlib.contextmanager
def reading(title: str, quiet: bool) -> Iterator[Tell]:
    """A `Tell` while rows are read.

    Args:
        title: whose rows they are.
    """
    console = Console(stderr=True)
    if quiet:
        yield silent
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as shown:
            yield _Bars(shown, title)
    else:
        yield _Lines(title)


class _Bars:
    """A bar for each of the things that are done."""

    def __init__(self, shown: Progress, title: str) -> None:
        self._shown, self._title, self._began = shown, title, time.monotonic()
        self._bars: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, of: int, amount: int, unit: str) -> None:
        if what not in self._bars:
            self._began = time.monotonic()
            self._bars[what] = self._shown.add_task(f"{self._title}: {what}", total=of, rate="")
        self._shown.update(self._bars[what], completed=done, rate=_rate(amount, unit, time.monotonic() - self._began))


class _Lines:
    """A line when something begins, when it ends, and every two seconds."""

    def __init__(self, title: str) -> None:
        self._title, self._first, self._last, self._what = title, time.monotonic(), 0.0, ""
        self._began = self._first

    def __call__(self, what: str, done: int, of: int, amount: int, unit: str) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._began, self._last = what, now, 0.0
        if now - self._last < _EVERY_S and done < of:
            return
        self._last, spent = now, now - self._began
        left = f", {spent / done * (of - done):.0f} s left" if 0 < done < of else ""
        rate = f": {_rate(amount, unit, spent)}" if done else ""
        sys.stderr.write(f"[{now - self._first:6.1f}s] {self._title}: {what}, {done} of {of} pieces{rate}{left}\n")
        sys.stderr.flush()


def _rate(amount: int, unit: str, spent: float) -> str:
    return f"{amount:,} {unit}, {amount / max(spent, 1e-3):,.0f} {unit}/s"
