"""One line of how many rows are done, how fast, and how long it takes still: a terminal redraws it, a log gets one now
and then, the first at once.

    progress = RowsProgress("predict", rows=1_000_000)
    progress.show(done=51_200, errors=3)      # [  60.0s] predict: 51,200 of 1,000,000 rows, 853 rows/s, 18 min left ...
"""

from __future__ import annotations

import sys
import time

_EVERY_S = 10.0


class RowsProgress:
    """See the module.

    Args:
        title: what goes on. rows: of all; None where that is not known. done: rows of an earlier run.
        quiet: say nothing.
        parts: rows are done in large parts, so that the time until the first one is theirs too, and no start.
    """

    def __init__(
        self, title: str, rows: int | None = None, done: int = 0, quiet: bool = False, parts: bool = False
    ) -> None:
        self.title, self.rows, self.before = title, rows, done
        self._started = time.monotonic()
        self._said = -_EVERY_S
        # when rows began to be done, and how many were
        self._first: tuple[float, int] | None = (0.0, done) if parts else None
        self._redraws, self._quiet = sys.stderr.isatty(), quiet

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._quiet:
            return
        sys.stderr.write(f"{self._begin()}{self._at()} {self.title}: {text}\n")
        sys.stderr.flush()

    def show(self, done: int, errors: int = 0, more: str = "", last: bool = False) -> None:
        """How far it is, unless that was said a moment ago and this is not the last word."""
        now = time.monotonic() - self._started
        self._begun(done, now)
        if self._quiet or (not self._redraws and not last and now - self._said < _EVERY_S):
            return
        self._said = now
        text = f"{self._at()} {self.title}: {self.text(done, errors, now)}{more}"
        sys.stderr.write(f"{self._begin()}{text}" if self._redraws else f"{text}\n")
        sys.stderr.flush()

    def text(self, done: int, errors: int, seconds: float) -> str:
        """What is said of so many rows after so many seconds. The rate is of the time since rows began to be done, or
        since the start where they are done in parts."""
        told = f"{done:,} of {self.rows:,} rows" if self.rows is not None else f"{done:,} rows"
        self._begun(done, seconds)
        if self._first is not None and seconds > self._first[0] and done > self._first[1]:
            rate = (done - self._first[1]) / (seconds - self._first[0])
            told += f", {rate:,.0f} rows/s"
            if self.rows is not None:
                told += f", {duration((self.rows - done) / rate)} left"
        return told + (f", {errors:,} errors" if errors else "")

    def _begun(self, done: int, seconds: float) -> None:
        if self._first is None and done > self.before:
            self._first = seconds, done

    def close(self) -> None:
        """End the line that was redrawn."""
        if self._redraws and self._said >= 0:
            sys.stderr.write("\n")

    def _at(self) -> str:
        return f"[{time.monotonic() - self._started:6.1f}s]"

    def _begin(self) -> str:
        return "\r\x1b[2K" if self._redraws else ""


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
