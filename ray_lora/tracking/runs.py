"""What each event means in MLflow: runs, parameters, metrics, artifacts, versions of registered models.

Everything here may be done twice with the effect of once: runs are found again by the tag `ray_lora.key`, metrics carry
the time at which they were measured. So a record may be sent again from any point.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ray_lora.errors import RecipeError
from ray_lora.store.mlflow_client import connect, write_mlmodel
from ray_lora.store.mlflow_line import experiment_id, is_wrong, require, user
from ray_lora.store.mlflow_store import MlflowStore
from ray_lora.store.store import StoreAwayError
from ray_lora.tracking.journal import Event
from ray_lora.tracking.names import LONGEST_KEY, LONGEST_PARAM, LONGEST_TAG, Names, key_of, shorter
from ray_lora.tracking.told import PARENT

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")
KEY = "ray_lora.key"
_PER_BATCH = 100  # parameters or tags in one call; MLflow's limit

_logger = logging.getLogger(__name__)


class Runs:
    """The runs of one search, training or trial of versions in MLflow: a parent, and a child for each job."""

    def __init__(self, uri: str, experiment: str, known: dict[str, str]) -> None:
        self.uri = uri
        self.experiment = experiment
        self.ids = known  # job -> run id
        self.experiment_id: str | None = None
        self._client: MlflowClient | None = None
        self._names = Names()
        self.key = ""  # of the parent; the children's begin with it

    def reach(self) -> MlflowClient:
        """A client; StoreAwayError when nobody answers, or when the experiment was deleted and may be restored."""
        require(self.uri)
        if self._client is None:
            client = connect(self.uri)
            try:
                self.experiment_id = experiment_id(client, self.experiment)
            except RecipeError as error:
                raise StoreAwayError(str(error)) from None
            self._client = client
        return self._client

    def alive(self) -> bool:
        """Whether MLflow answers a simple question."""
        try:
            self.reach().search_experiments(max_results=1)
        except Exception:
            return False
        return True

    def parent(self, event: Event) -> None:
        """Open the parent run and say what is to be done with which data."""
        client = self.reach()
        self.key = event["key"]
        run_id = self._open(PARENT, event["name"], event["tags"], event["time"])
        recipe, datasets = event["recipe"], _datasets(event["data"])
        _all(
            lambda: self._params(run_id, event["params"]),
            lambda: client.log_text(run_id, recipe, "recipe.yaml") if recipe is not None else None,
            lambda: client.log_inputs(run_id, datasets) if datasets else None,
        )

    def child(self, event: Event) -> None:
        """Open a job's run below the parent."""
        tags = {**event["tags"], "mlflow.parentRunId": self._id(PARENT), "ray_lora.job": event["job"]}
        name, data = event.get("name") or event["job"], event.get("data") or {}  # earlier versions' records have none
        run_id = self._open(event["job"], name, tags, event["time"])
        datasets = _datasets(data)
        _all(
            lambda: self._params(run_id, event["params"]),
            lambda: self.reach().log_inputs(run_id, datasets) if datasets else None,
        )

    def reopen(self, event: Event) -> None:
        """A run that had ended goes on."""
        self.reach().update_run(self._id(event["job"]), status="RUNNING")

    def metrics(self, job: str, points: list[tuple[str, float, int, int]]) -> None:
        """Points (metric, value, step, time in ms) of one job; at most 1,000, MLflow's limit for one call."""
        from mlflow.entities import Metric

        client, run_id = self.reach(), self._id(job)
        entities = [Metric(self._names.of(key), value, time, step) for key, value, step, time in points]
        _apart(lambda some: client.log_batch(run_id, metrics=some), entities)

    def end(self, event: Event) -> None:
        """Close a run with its last scores, tags and adapter. It is closed whichever of those MLflow does not take."""
        client = self.reach()
        run_id = self._id(event["job"])
        points = [(key, value, event["step"], event["time"]) for key, value in event["metrics"].items()]
        figures = event.get("figures")  # records of earlier versions say nothing of them
        _all(
            lambda: self.metrics(event["job"], points) if points else None,
            lambda: self._tags(run_id, event["tags"]),
            lambda: self._adapter(run_id, event["adapter"]) if event["adapter"] is not None else None,
            lambda: client.log_artifacts(run_id, figures, "figures") if figures and Path(figures).is_dir() else None,
            lambda: client.set_terminated(run_id, event["status"], event["time"]),
        )

    def _adapter(self, run_id: str, folder: str) -> None:
        """An adapter's folder as the artifact `adapter`, with what MLflow's loader reads."""
        with tempfile.TemporaryDirectory(prefix="ray-lora-") as temporary:
            copy = Path(temporary) / "adapter"
            shutil.copytree(folder, copy)
            base = json.loads((copy / "adapter_config.json").read_text()).get("base_model_name_or_path")
            write_mlmodel(copy, run_id, base)
            self.reach().log_artifacts(run_id, str(copy), "adapter")

    def artifact(self, event: Event) -> None:
        """Keep a file or a folder with the parent."""
        path, run_id = Path(event["path"]), self._id(PARENT)
        if path.is_dir():
            self.reach().log_artifacts(run_id, str(path), event["to"] or path.name)
        else:
            self.reach().log_artifact(run_id, str(path), event["to"])

    def text(self, event: Event) -> None:
        """Keep a text with the parent."""
        self.reach().log_text(self._id(PARENT), event["text"], event["to"])

    def register(self, event: Event) -> int:
        """Make an adapter folder a version of a registered model, once; returns its number."""
        from ray_lora.adapters.adapter import Adapter

        client = self.reach()
        name, alias = event["name"], event["alias"]
        store = MlflowStore(self.uri)
        made = client.search_model_versions(f"name = '{name}' and tags.`{KEY}` = '{event['key']}'", max_results=1)
        if made:
            if alias:
                store.alias(name, alias, int(made[0].version))
            return int(made[0].version)
        run_id = self.ids.get(event["job"]) or self._id(PARENT)
        adapter = Adapter.load(Path(event["folder"]))
        tags = {**event["tags"], KEY: event["key"]}
        return store.put(adapter, name, [alias] if alias else [], run_id=run_id, tags=tags).version

    def _id(self, job: str) -> str:
        """The job's run id; KeyError for a job whose run could not be opened."""
        return self.ids[job]

    def _open(self, job: str, name: str, tags: Mapping[str, str], time: int) -> str:
        """The run of a job: known, found by its key, or new."""
        if job not in self.ids:
            client = self.reach()
            assert self.experiment_id is not None
            key = key_of(self.key, job)
            found = client.search_runs([self.experiment_id], f"tags.`{KEY}` = '{key}'", max_results=1)
            if found:
                self.ids[job] = found[0].info.run_id
            else:
                about = {
                    KEY: key,
                    "mlflow.user": user(),
                    "mlflow.source.name": "ray_lora",
                    "mlflow.source.type": "LOCAL",
                }
                about |= {"mlflow.runName": shorter(name, LONGEST_KEY)} | self._taken(tags)
                made = client.create_run(self.experiment_id, time, about)
                self.ids[job] = made.info.run_id
        return self.ids[job]

    def _params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        client = self.reach()
        entities = [Param(self._names.of(key), shorter(shown(value), LONGEST_PARAM)) for key, value in params.items()]
        parts = [entities[at : at + _PER_BATCH] for at in range(0, len(entities), _PER_BATCH)]
        _all(*(partial(_apart, lambda some: client.log_batch(run_id, params=some), part) for part in parts))

    def _tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        client = self.reach()
        entities = [RunTag(key, value) for key, value in self._taken(tags).items()]
        _apart(lambda some: client.log_batch(run_id, tags=some), entities)

    def _taken(self, tags: Mapping[str, str]) -> dict[str, str]:
        """Tags as MLflow takes them."""
        return {self._names.of(key): shorter(str(value), LONGEST_TAG) for key, value in tags.items()}


def shown(value: Any) -> str:
    """A parameter's value as MLflow's tables show it: words as they are, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _all(*acts: Callable[[], Any]) -> None:
    """Do all, whatever becomes of one; then raise what the first raised that failed. StoreAwayError ends it at once."""
    failed: Exception | None = None
    for act in acts:
        try:
            act()
        except StoreAwayError:
            raise
        except Exception as error:
            failed = failed or error
    if failed is not None:
        raise failed


def _apart(send: Callable[[list[T]], Any], entities: list[T]) -> None:
    """Send all in one call; where MLflow refuses one of them, the others in smaller ones. Raises the first refusal."""
    if not entities:
        return
    try:
        send(entities)
    except Exception as error:
        if len(entities) == 1 or not is_wrong(error):
            raise
        middle = len(entities) // 2
        _all(lambda: _apart(send, entities[:middle]), lambda: _apart(send, entities[middle:]))


def _datasets(identity: Mapping[str, str]) -> list[Any]:
    """`{"train.path": …, "train.rows": …, "train.sha256": …}` as MLflow's dataset inputs."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    splits: dict[str, dict[str, str]] = {}
    for key, value in identity.items():
        split, _, what = key.rpartition(".")
        splits.setdefault(split or key, {})[what] = value
    return [
        DatasetInput(
            Dataset(
                name=(Path(told["path"]).name if told.get("path") else split) or split,
                digest=told["sha256"][:36],
                source_type="s3" if told.get("path", "").startswith("s3://") else "local",
                source=json.dumps({"uri": told.get("path", "")}),
                profile=json.dumps({"num_rows": told.get("rows")}),
            ),
            [InputTag("mlflow.data.context", split)],
        )
        for split, told in splits.items()
        if told.get("sha256")
    ]
