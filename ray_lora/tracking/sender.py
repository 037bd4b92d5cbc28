"""The thread that sends a journal to MLflow, in order, for as long as it takes; nobody waits for it but `close`.

MLflow that is away costs one warning and a wait; an event that MLflow refuses costs a warning and is left out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from ray_lora.bounds import public
from ray_lora.errors import RayLoraError
from ray_lora.store.mlflow_line import is_wrong
from ray_lora.store.store import StoreAwayError
from ray_lora.tracking.journal import Event, Journal
from ray_lora.tracking.runs import Runs

_EVERY_S = 1.0  # events gather for this long, and for ten times as long as the last sending took: a tenth of a core
_LONGEST_S = 30.0
_LONGEST_AWAY_S = 5.0  # between looks whether MLflow is back
_EVENTS = 2000  # in one sending
_POINTS = 1000  # metrics in one call
_TRIES = 3  # of an event that fails while MLflow answers

_logger = logging.getLogger(__name__)


class Sender:
    """Sends until it is told to finish."""

    def __init__(self, journal: Journal, runs: Runs) -> None:
        self.journal, self.runs = journal, runs
        self.results: dict[str, Any] = {}  # key -> what a register event gave
        self._changed = threading.Condition()
        self._finish = False
        self._away = False
        self._said: set[tuple[str, str]] = set()
        self._thread = threading.Thread(target=self._work, name="mlflow-sender", daemon=True)
        self._thread.start()

    def wait_for(self, key: str, timeout: float) -> Any:
        """The result kept under a key, or None when MLflow is away or slow."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._changed.notify_all()
            while key not in self.results and not self._away and self._thread.is_alive():
                if (
                    not self._changed.wait(min(0.2, max(0.0, deadline - time.monotonic())))
                    and time.monotonic() > deadline
                ):
                    break
            return self.results.get(key)

    def finish(self, timeout: float) -> int:
        """Send the rest, for at most `timeout` seconds; returns how many events stay unsent."""
        with self._changed:
            self._finish = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return self.journal.count_unsent()

    def _work(self) -> None:
        wait = 0.0
        while True:
            with self._changed:
                if not self._finish and wait:
                    self._changed.wait(wait)
                finishing = self._finish
            started = time.monotonic()
            try:
                more = self._send_some()
                if self._away:
                    _logger.warning("MLflow at %s answers again; what was kept is being sent", public(self.runs.uri))
                self._away = False
                if more:
                    wait = 0.0
                    continue
                wait = min(max(_EVERY_S, 10 * (time.monotonic() - started)), _LONGEST_S)
            except Exception as error:  # whatever it is, training goes on
                self._say_away(error)
                wait = min(max(_EVERY_S, 2 * wait), _LONGEST_AWAY_S)
            if finishing:
                return

    def _send_some(self) -> bool:
        """Send the next events; whether there were any. Raises when MLflow is away."""
        events, end = self.journal.unsent(_EVENTS)
        for job, kind, act in _units(events, self.runs):
            tries = 0
            while True:
                try:
                    result = act()
                    break
                except StoreAwayError:
                    raise
                except Exception as error:
                    tries += 1
                    hopeless = is_wrong(error) or isinstance(error, (RayLoraError, KeyError, FileNotFoundError))
                    if not hopeless and not self.runs.alive():
                        raise
                    if hopeless or tries == _TRIES:
                        self._say_refused(job, kind, error)
                        result = None
                        break
            if kind.startswith("register:"):
                with self._changed:
                    self.results[kind.partition(":")[2]] = result
                    self._changed.notify_all()
        if end != self.journal.offset:
            self.journal.acknowledge(end)
        return bool(events)

    def _say_away(self, error: Exception) -> None:
        if not self._away:
            kept = f"; records are kept in {self.journal.path} and sent later" if self.journal.kept else ""
            said = str(error) if len(str(error)) < 300 else f"{str(error)[:300]}…"
            _logger.warning("tracking waits, training goes on: %s%s", said, kept)
        self._away = True
        with self._changed:
            self._changed.notify_all()

    def _say_refused(self, job: str, kind: str, error: Exception) -> None:
        what = kind.partition(":")[0]
        if (job, what) not in self._said:
            self._said.add((job, what))
            place = f"of {job!r}" if job else "of the parent run"
            _logger.warning("MLflow did not take %s %s; it is left out: %s", what, place, error)


def _units(events: list[Event], runs: Runs) -> list[tuple[str, str, Callable[[], Any]]]:
    """(job, kind, what to do): events in order, a job's neighbouring metrics in one call."""
    units: list[tuple[str, str, Callable[[], Any]]] = []
    open_points: dict[str, list[tuple[str, float, int, int]]] = {}
    acts: dict[str, Callable[[Event], Any]] = {
        "parent": runs.parent,
        "child": runs.child,
        "reopen": runs.reopen,
        "end": runs.end,
        "artifact": runs.artifact,
        "text": runs.text,
        "register": runs.register,
    }
    for event in events:
        job, kind = str(event.get("job", "")), event["event"]
        if kind == "log":
            points = open_points.get(job)
            if points is None or len(points) + len(event["metrics"]) > _POINTS:
                points = open_points[job] = []
                units.append((job, "metrics", lambda job=job, points=points: runs.metrics(job, points)))  # type: ignore[misc]
            points += [(key, value, event["step"], event["time"]) for key, value in event["metrics"].items()]
        elif kind in acts:
            open_points.pop(job, None)
            shown = f"register:{event['key']}" if kind == "register" else kind
            units.append((job, shown, lambda event=event, act=acts[kind]: act(event)))  # type: ignore[misc]
    return units
