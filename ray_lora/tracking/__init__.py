"""A search or a training in MLflow: a parent run, and below it one run a job. MLflow never stops or delays training.

    tracker = Tracker("sqlite:///mlflow.db", "tweets", record=folder / "mlflow.jsonl")
    tracker.open_parent(str(folder), recipe, identity)
    tracker.open_child("r4", {"r": 4, "learning_rate": 1e-3}, {})
    tracker.log("r4", step=10, metrics={"loss": 0.31})
    tracker.finish_child("r4", "FINISHED", {"accuracy": 0.94}, folder / "jobs/r4/adapter")
    tracker.finish_parent("FINISHED")
    tracker.close()

Every call writes to a journal and returns; a thread sends it. The same record in a later process goes on in the same
runs. Knows nothing of packs, trials or Ray.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from ray_lora.bounds import public
from ray_lora.errors import RecipeError
from ray_lora.recipe import Json, Recipe
from ray_lora.store.mlflow_line import address, sqlite_file
from ray_lora.store.refs import CHAMPION, check_alias, check_name
from ray_lora.tracking.journal import Journal
from ray_lora.tracking.plain import files_hash, flat, table
from ray_lora.tracking.runs import Runs
from ray_lora.tracking.sender import Sender
from ray_lora.tracking.told import PARENT, Told, remember

Status = Literal["FINISHED", "FAILED", "KILLED"]

_logger = logging.getLogger(__name__)


class Tracker:
    """See the module. `uri=None` turns tracking off: every call then does nothing.

    Args:
        uri: an MLflow server or database; RecipeError for what MLflow cannot use.
        experiment: MLflow's experiment, made where it is missing.
        record: the journal's file; a later process with the same record continues the same runs and sends what was not
            sent. Without one, what MLflow has not taken when the process ends is lost.
    """

    def __init__(self, uri: str | None, experiment: str, *, record: Path | None = None) -> None:
        self.uri = address(uri) if uri is not None else None
        self._told: dict[str, Told] = {}
        self._key = ""  # the parent's
        self._broken = False
        self._sender: Sender | None = None
        if self.uri is not None:
            self._journal = Journal(record, self.uri)
            self._runs = Runs(self.uri, experiment, self._journal.runs)
            self._key, self._told = remember(self._journal.all())
            self._runs.key = self._key

    # ------------------------------------------------------------------------------------------------ runs

    def open_parent(self, run_key: str, recipe: Recipe, data_identity: Mapping[str, str]) -> None:
        """Open the parent run, or go on with it when the record knows it.

        Args:
            run_key: names the run where there is no record: the same key continues the same run.
            data_identity: `{"train.path": …, "train.rows": …, "train.sha256": …}` and so on.
        """
        if self.uri is None:
            return
        if PARENT in self._told:
            self._go_on(PARENT)
        else:
            self._told[PARENT] = Told()
            named = hashlib.sha256(f"{self._runs.experiment}|{run_key}".encode()).hexdigest()[:32]
            self._key = uuid.uuid4().hex if self._journal.kept else named
            tree = recipe.model_dump(mode="json")
            self._write(
                "parent",
                key=self._key,
                uri=public(self.uri),
                experiment=self._runs.experiment,
                name=recipe.name,
                tags={"ray_lora.run": run_key},
                params=flat(tree) | {f"data.{key}": value for key, value in data_identity.items()},
                recipe=yaml.safe_dump(tree, sort_keys=False, allow_unicode=True),
                data=dict(data_identity),
            )
        self._send()

    def open_run(self, run_key: str, name: str, params: Mapping[str, Json], tags: Mapping[str, str]) -> None:
        """Open a run that is no training's: one for each key, wherever it is told from."""
        if self.uri is None:
            return
        self._told[PARENT] = Told()
        self._key = hashlib.sha256(f"{self._runs.experiment}|{run_key}".encode()).hexdigest()[:32]
        self._write(
            "parent",
            key=self._key,
            uri=public(self.uri),
            experiment=self._runs.experiment,
            name=name,
            tags={"ray_lora.run": run_key, **tags},
            params=dict(params),
            recipe=None,
            data={},
        )
        self._send()

    def open_child(
        self,
        job: str,
        params: Mapping[str, Json],
        tags: Mapping[str, str],
        *,
        named: str | None = None,
        data: Mapping[str, str] | None = None,
    ) -> None:
        """Open a job's run; a job that the record knows goes on in its run.

        Args:
            named: what MLflow calls the run; None for the job's name.
            data: rows and digests of what it learns from, as `open_parent` has them.
        """
        if self.uri is not None and job not in self._told:
            self._told[job] = Told()
            told = {key: str(value) for key, value in tags.items()}
            self._write("child", job=job, params=dict(params), tags=told, name=named or job, data=dict(data or {}))

    def log(self, job: str, step: int, metrics: Mapping[str, float | None]) -> None:
        """Metrics of one step. Values that are not finite are kept out and counted in `not_finite`.

        A step at or before the last one of a metric was told already, by a job that now goes on from its last
        checkpoint: it is left out.
        """
        if self.uri is None:
            return
        if job not in self._told:
            self.open_child(job, {}, {})
        fresh = self._told[job].fresh(step, metrics)
        if fresh:
            self._go_on(job)
            self._write("log", job=job, step=step, metrics=fresh)

    def finish_child(
        self,
        job: str,
        status: Status,
        metrics: Mapping[str, float | None],
        adapter_folder: Path | None = None,
        figures_folder: Path | None = None,
    ) -> None:
        """Close a job's run with its last scores and, where there are any, artifacts `adapter` and `figures`."""
        if self.uri is None:
            return
        if job not in self._told:
            self.open_child(job, {}, {})
        told = self._told[job]
        adapter = str(Path(adapter_folder).absolute()) if adapter_folder is not None else None
        if told.status != status or told.adapter != adapter:
            step = max(told.last.values(), default=0)
            fresh = self._told[job].fresh(step, {key: value for key, value in metrics.items() if key not in told.last})
            told.status, told.adapter = status, adapter
            figures = str(Path(figures_folder).absolute()) if figures_folder is not None else None
            self._write(
                "end", job=job, status=status, step=step, metrics=fresh, tags={}, adapter=adapter, figures=figures
            )

    def finish_parent(
        self,
        status: Status,
        best: Mapping[str, Json] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Close the parent run. `best` (job, ref, configuration, …) becomes tags `best.…`, `metrics` are its scores."""
        if self.uri is not None and PARENT in self._told:
            self._told[PARENT].status = status
            fresh = self._told[PARENT].fresh(0, metrics or {})
            tags = {f"best.{key}": str(value) for key, value in flat(dict(best or {})).items()}
            self._write("end", job=PARENT, status=status, step=0, metrics=fresh, tags=tags, adapter=None)

    # ------------------------------------------------------------------------------------ the parent's artifacts

    def log_text(self, text: str, file: str) -> None:
        """Keep a text with the parent, under the name `file`."""
        if self.uri is not None:
            self._write("text", text=text, to=file)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file or folder with the parent. It is read when it is sent, so leave it where it is."""
        if self.uri is not None:
            self._write("artifact", path=str(Path(path).absolute()), to=folder)

    def log_figure(self, figure: Any, file: str) -> None:
        """Keep a matplotlib figure with the parent, under the name `file` (.png, .svg, .pdf)."""
        if self.uri is not None:
            path = self._journal.path.parent / "figures" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120)
            self.log_artifact(path)

    def leaderboard(self, rows: Sequence[Mapping[str, Json]]) -> None:
        """Keep a table with the parent as `leaderboard.csv`; columns in the order in which they first occur."""
        self.log_text(table(rows), "leaderboard.csv")

    def register(
        self,
        adapter_folder: Path,
        name: str,
        alias: str | None = CHAMPION,
        tags: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> int | None:
        """Make an adapter a version of the registered model `name` and move the alias to it; returns the version.

        The same adapter of the same run is registered once, however often this is called. None when tracking is off,
        or when MLflow is away or slow: it is then done when MLflow answers.
        """
        check_name(name)
        if alias:
            check_alias(alias)
        if self.uri is None:
            return None
        folder = str(Path(adapter_folder).absolute())
        job = next((job for job, told in self._told.items() if told.adapter == folder), PARENT)
        content = files_hash(Path(adapter_folder))
        key = hashlib.sha256(f"{self._key}|{name}|{content}".encode()).hexdigest()[:32]
        self._write("register", job=job, key=key, folder=folder, name=name, alias=alias, tags=dict(tags or {}))
        version = self._send().wait_for(key, timeout)
        return version if version is None else int(version)

    # ------------------------------------------------------------------------------------------------ the end

    @property
    def unsent(self) -> int:
        """How many records MLflow has not taken yet."""
        return self._journal.count_unsent() if self.uri is not None else 0

    def link(self) -> str:
        """One line that says how to look at it."""
        if self.uri is None:
            return "tracking is off (tracking.uri is null)"
        uri = public(self.uri)
        experiment, run = self._runs.experiment_id, self._runs.ids.get(PARENT)
        place = f"/#/experiments/{experiment}/runs/{run}" if experiment and run else ""
        if sqlite_file(self.uri) or not self.uri.startswith("http"):
            return f"mlflow ui --backend-store-uri {uri}  (then open http://127.0.0.1:5000{place})"
        return uri.rstrip("/") + place

    def close(self, timeout: float = 60.0) -> int:
        """Send what is left, for at most `timeout` seconds; says and returns how many records are still unsent."""
        if self.uri is None:
            return 0
        left = self._send().finish(timeout)
        skipped = sum(told.not_finite for told in self._told.values())
        if skipped:
            _logger.warning("%d metric values were not finite numbers and are not in MLflow", skipped)
        if left and self._journal.kept:
            _logger.warning(
                "%d records are not in MLflow at %s yet; they are kept in %s. Run the same command again, or: "
                "python -m ray_lora.tracking %s",
                *(left, public(self.uri), self._journal.path, self._journal.path),
            )
        elif left:
            _logger.warning("%d records did not reach MLflow at %s and are lost", left, public(self.uri))
        self._journal.close()
        return left

    # ------------------------------------------------------------------------------------------------ inside

    def _write(self, event: str, **told: Any) -> None:
        try:
            self._journal.append(event, **told)
        except OSError as error:
            if not self._broken:
                _logger.warning(
                    "the record %s cannot be written, MLflow misses what follows: %s", self._journal.path, error
                )
            self._broken = True

    def _send(self) -> Sender:
        if self._sender is None:
            self._sender = Sender(self._journal, self._runs)
        return self._sender

    def _go_on(self, job: str) -> None:
        """A run that had ended goes on."""
        if self._told[job].status != "RUNNING":
            self._told[job].status = "RUNNING"
            self._write("reopen", job=job)


def send(record: Path, timeout: float = 600.0) -> int:
    """Send what a record still holds to the MLflow it was meant for; returns how many events stay unsent."""
    if not record.is_file():
        raise RecipeError(f"record {str(record)!r} does not exist; give the mlflow.jsonl of a run's folder")
    opened = next((event for event in Journal(record, "").all() if event["event"] == "parent"), None)
    if opened is None:
        return 0
    uri = opened["uri"] if "***" not in opened["uri"] else os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        raise RecipeError(f"the address {opened['uri']} is kept without its password; set MLFLOW_TRACKING_URI to it")
    tracker = Tracker(uri, opened["experiment"], record=record)
    return tracker.close(timeout)
