"""One live table of everything that trains: configuration, step, score, state, slot. A terminal redraws it; a log
gets a line whenever something worth a line happened."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ray_lora.inference.intervals import scored_on
from ray_lora.running.records import Record
from ray_lora.running.time_left import TimeLeft

_LOG_EVERY_S = 10.0
_logger = logging.getLogger(__name__)


class Progress:
    """Shows records until closed.

    Args:
        title: what runs.
        metric: the score that is shown; mode: whether more of it is better (`max`) or less.
        quiet: show nothing but warnings.
        rows: validation rows of each job's data, by its name: what a score is taken on, where its job does not say
            otherwise.
        time_left: of the run; None where nobody knows how many jobs there will be.
    """

    def __init__(
        self,
        title: str,
        metric: str,
        quiet: bool = False,
        mode: str = "max",
        rows: Mapping[str, int] | None = None,
        time_left: TimeLeft | None = None,
    ) -> None:
        self.title, self.metric, self.quiet = title, metric, quiet
        self.mode, self.rows = mode, rows or {}
        self.time_left = time_left or TimeLeft()
        self._console = Console(stderr=True)
        self._live: Live | None = None
        self._started = time.time()
        self._last_line = 0.0
        self._seen: dict[str, str] = {}
        self._warned: set[str] = set()

    def show(self, records: Sequence[Record]) -> None:
        """Bring the table up to date; jobs that share their rows have the same notes, and each is said once."""
        for note in (note for record in records for note in record.notes if note not in self._warned):
            self._warned.add(note)
            _logger.warning(note)
        if self.quiet or not records:
            return
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=4, transient=False)
                self._live.start()
            self._live.update(self.table(records))
        else:
            self._log(records)

    def say(self, text: str) -> None:
        """One line, at once."""
        if not self.quiet:
            self._print(text)

    def table(self, records: Sequence[Record]) -> Table:
        """The records as a table: each score with its 95 % interval, and the time left below."""
        shown = Table(title=self.title, title_justify="left", caption=self.left(records), caption_justify="left")
        for column in ("configuration", "step", "loss", self.metric, "state", "slot"):
            shown.add_column(column, justify="left" if column in ("configuration", "state") else "right")
        for record in records:
            shown.add_row(
                describe(record.config) or record.job.name,
                f"{record.step}/{record.total}" if record.total else "-",
                f"{record.loss:.4f}" if record.loss is not None else "-",
                self._score(record) or "-",
                record.status,
                str(record.slot) if record.status == "running" and record.slot else "-",
            )
        return shown

    def _score(self, record: Record) -> str:
        """A job's score; of how many rows, where its job says so."""
        score = record.metrics.get(self.metric)
        if score is None:
            return ""
        whole = self.rows.get(record.job.data, 0)
        part = f" on {record.rows} rows" if record.rows is not None and record.rows < whole else ""
        return scored_on(score, record.rows or whole, self.mode) + part if whole else f"{score:.4f}"

    def left(self, records: Sequence[Record]) -> str:
        """The time left, as people say it; empty while nothing is known of it."""
        return self.time_left.said(records)

    def close(self) -> None:
        """Leave the last table standing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _log(self, records: Sequence[Record]) -> None:
        now = time.time()
        for record in records:
            if record.status != self._seen.get(record.job.name) and record.status not in ("waiting", "running"):
                self._seen[record.job.name] = record.status
                score = self._score(record)
                told = f", {self.metric} {score}" if score else f" ({record.error})" if record.error else ""
                self._print(f"{describe(record.config) or record.job.name}: {record.status}{told}")
        if now - self._last_line >= _LOG_EVERY_S:
            self._last_line = now
            counts = {name: sum(r.status == name for r in records) for name in ("running", "waiting", "finished")}
            done, total = sum(r.step for r in records), sum(r.total for r in records)
            state = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            steps = f"; step {done:,} of {total:,}" if total else ""  # a job's steps are known once it runs
            more = f", and those of {counts['waiting']} waiting" if total and counts["waiting"] else ""
            left = self.left(records)
            self._print(f"{state}{steps}{more}{f'; {left}' if left else ''}")

    def _print(self, text: str) -> None:
        sys.stderr.write(f"[{time.time() - self._started:6.1f}s] {self.title}: {text}\n")
        sys.stderr.flush()


def describe(config: Mapping[str, Any]) -> str:
    """A configuration in one line: `r=8 learning_rate=0.001`; one that is only called something, by that name."""
    if list(config) == ["name"]:
        return str(config["name"])
    return " ".join(f"{key.rsplit('.', 1)[-1]}={_value(value)}" for key, value in config.items())


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
