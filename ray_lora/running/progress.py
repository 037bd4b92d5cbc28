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

from ray_lora.running.coordinator import Record

_LOG_EVERY_S = 10.0
_logger = logging.getLogger(__name__)


class Progress:
    """Shows records until closed.

    Args:
        title: what runs.
        metric: the score that is shown.
        quiet: show nothing but warnings.
    """

    def __init__(self, title: str, metric: str, quiet: bool = False) -> None:
        self.title, self.metric, self.quiet = title, metric, quiet
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
            self._live.update(table(self.title, self.metric, records))
        else:
            self._log(records)

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
                self._print(
                    f"{describe(record.config) or record.job.name}: {record.status}{_score(record, self.metric)}"
                )
        if now - self._last_line >= _LOG_EVERY_S:
            self._last_line = now
            counts = {name: sum(r.status == name for r in records) for name in ("running", "waiting", "finished")}
            done, total = sum(r.step for r in records), sum(r.total for r in records)
            state = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            steps = f"; step {done:,} of {total:,}" if total else ""  # a job's steps are known once it runs
            more = f", and those of {counts['waiting']} waiting" if total and counts["waiting"] else ""
            self._print(f"{state}{steps}{more}")

    def _print(self, text: str) -> None:
        sys.stderr.write(f"[{time.time() - self._started:6.1f}s] {self.title}: {text}\n")
        sys.stderr.flush()


def table(title: str, metric: str, records: Sequence[Record]) -> Table:
    """The records as a table; those with the best scores first among the finished."""
    shown = Table(title=title, title_justify="left")
    for column in ("configuration", "step", "loss", metric, "state", "slot"):
        shown.add_column(column, justify="left" if column in ("configuration", "state") else "right")
    for record in records:
        score = record.metrics.get(metric)
        shown.add_row(
            describe(record.config) or record.job.name,
            f"{record.step}/{record.total}" if record.total else "-",
            f"{record.loss:.4f}" if record.loss is not None else "-",
            f"{score:.4f}" if score is not None else "-",
            record.status,
            str(record.slot) if record.status == "running" and record.slot else "-",
        )
    return shown


def describe(config: Mapping[str, Any]) -> str:
    """A configuration in one line: `r=8 learning_rate=0.001`; one that is only called something, by that name."""
    if list(config) == ["name"]:
        return str(config["name"])
    return " ".join(f"{key.rsplit('.', 1)[-1]}={_value(value)}" for key, value in config.items())


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _score(record: Record, metric: str) -> str:
    score = record.metrics.get(metric)
    return f", {metric} {score:.4f}" if score is not None else f" ({record.error})" if record.error else ""
