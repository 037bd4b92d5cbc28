"""The line to MLflow: addresses, whether anybody answers, and what a failure means. Imports no MLflow.

It knows nothing of adapters or of what is recorded; `mlflow_client.py` opens the client.
"""

from __future__ import annotations

import getpass
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ray_lora.bounds import public
from ray_lora.errors import RayLoraError, RecipeError
from ray_lora.store.store import StoreAwayError

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
_logger = logging.getLogger(__name__)
_SCHEMES = ("http", "https", "databricks", "sqlite", "postgresql", "mysql", "mssql")
_WRONG = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")
_PATIENCE_S = 20.0  # an answer that takes longer counts as none
_CONNECT_S = 3.0  # a server that takes longer to accept a connection is away


def address(uri: str) -> str:
    """A tracking URI in full, SQLite files as absolute paths. RecipeError for what MLflow cannot use."""
    if re.split(r"[:+]", uri, maxsplit=1)[0] not in _SCHEMES:
        raise RecipeError(
            f"tracking uri {public(uri)!r} cannot be used; give a server (http://127.0.0.1:5000) or a database "
            "(sqlite:///mlflow.db); MLflow has retired plain folders"
        )
    file = sqlite_file(uri)
    return f"sqlite:///{file}" if file else uri


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of an SQLite address, else None."""
    path = uri.removeprefix("sqlite:///")
    return Path(path).absolute() if path != uri and path and path != ":memory:" else None


def require(uri: str) -> None:
    """StoreAwayError at once when a server does not accept connections; MLflow itself would retry for minutes."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname):
        return  # only the proxy can tell
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise StoreAwayError(f"MLflow at {public(uri)} does not answer: {error}") from None


def is_wrong(error: Exception) -> bool:
    """Whether MLflow understood and refused, so that trying again cannot help."""
    return getattr(error, "error_code", None) in _WRONG


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """StoreAwayError in place of whatever MLflow raises when it cannot answer; refusals pass."""
    try:
        yield
    except RayLoraError:
        raise
    except Exception as error:
        if is_wrong(error):
            raise
        raise StoreAwayError(f"MLflow at {public(uri)} does not answer: {error}") from None


def experiment_id(client: MlflowClient, name: str) -> str:
    """The experiment of that name, made where it is missing; beside an SQLite file its artifacts go to `mlartifacts/`.

    RecipeError when it was deleted in MLflow.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None
        if file := sqlite_file(client.tracking_uri):
            location = (file.parent / "mlartifacts" / re.sub(r"[^\w.-]", "_", name)).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception as error:
            if getattr(error, "error_code", None) != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # somebody else was quicker
            assert experiment is not None
    if experiment.lifecycle_stage != "active":
        raise RecipeError(
            f"MLflow's experiment {name!r} was deleted; restore it (mlflow experiments restore -x "
            f"{experiment.experiment_id}) or choose another tracking.experiment"
        )
    return str(experiment.experiment_id)


def user() -> str:
    """Who is logged in, for MLflow's user column."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


class Line:
    """Asks in a thread of its own, so that a registry that hangs holds nobody up; says once that it went away."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._shown = public(uri)
        self._stuck: list[Future[Any]] = []
        self._lock = threading.Lock()
        self._away = False

    def ask(self, question: Callable[[], T]) -> T:
        """The answer; StoreAwayError when there is none in time."""
        with self._lock:
            self._stuck = [future for future in self._stuck if not future.done()]
            if self._stuck:
                raise StoreAwayError(f"MLflow at {self._shown} has not answered yet")
        future: Future[T] = Future()
        # a daemon: a question that hangs must not keep the process from ending, as a pool's thread would
        threading.Thread(target=_settle, args=(future, question), name="mlflow-store", daemon=True).start()
        wait([future], _PATIENCE_S)
        if not future.done():
            with self._lock:
                self._stuck.append(future)
            raise StoreAwayError(f"MLflow at {self._shown} does not answer within {_PATIENCE_S:.0f} s")
        with answering(self._uri):
            answer = future.result()
        if self._away:
            self._away = False
            _logger.warning("MLflow at %s answers again", self._shown)
        return answer

    def say_away(self, error: StoreAwayError) -> None:
        """One warning for each time it goes away."""
        if not self._away:
            self._away = True
            _logger.warning("%s; what is known on this machine goes on being used", error)


def _settle(future: Future[T], question: Callable[[], T]) -> None:
    try:
        future.set_result(question())
    except BaseException as error:
        future.set_exception(error)
