"""MLflow's client: opened without its retries and its talk, and what is made with it beside the adapters.

It knows addresses and runs, not what an adapter is.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ray_lora.bounds import public
from ray_lora.store.files import CARD
from ray_lora.store.mlflow_line import experiment_id, require, sqlite_file, user
from ray_lora.store.mlflow_signature import add_signature
from ray_lora.store.store import Cleared
from ray_lora.uncollected import uncollected

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_FORGOTTEN = "forgotten"  # what runs and experiments are called whose names said whose they are

_SETTINGS = {  # of MLflow's client in this process, unless they are set already
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # who calls knows better than seven tries over four minutes
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a bar for each file of some kilobytes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines on stdout for each run
}


def connect(uri: str) -> MlflowClient:
    """A client of an `address`; a new SQLite database is set up. StoreAwayError when nobody answers there."""
    require(uri)
    for noisy in ("mlflow.store.db.utils", "alembic"):  # a dozen lines about tables at the first start
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for setting, value in _SETTINGS.items():
        os.environ.setdefault(setting, value)
    with uncollected():
        from mlflow import MlflowClient

    if (file := sqlite_file(uri)) and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=file.parent) as temporary:
            fresh = Path(temporary) / "mlflow.db"  # seconds of migrations; one cut short would spoil the file for ever
            MlflowClient(f"sqlite:///{fresh}")
            with suppress(OSError):  # another process was quicker, or no links here
                file.hardlink_to(fresh)
    return MlflowClient(uri)


def write_mlmodel(folder: Path, run_id: str | None, base: str | None) -> None:
    """Put an `MLmodel` file beside an adapter: `mlflow.pyfunc` then loads it through `ray_lora.pyfunc`. It has the
    signature and the input example of the task that the adapter's card names."""
    from mlflow.models import Model

    model = Model(run_id=run_id)
    # only settings that are written here can be set at load_model(..., model_config={...})
    config = {"base": base, "dtype": "auto", "answer": None}
    version = platform.python_version()
    model.add_flavor("python_function", loader_module="ray_lora.pyfunc", python_version=version, config=config)
    card = folder / CARD  # plain PEFT folders have none
    add_signature(model, folder, json.loads(card.read_text()).get("task") if card.exists() else None)
    model.save(str(folder / "MLmodel"))


def own_setting() -> str:
    """The address that MLflow itself would use (`MLFLOW_TRACKING_URI`)."""
    import mlflow

    return str(mlflow.get_tracking_uri())


def ensure_model(client: MlflowClient, name: str) -> None:
    """A registered model of that name, made where it is missing."""
    with _allowing("RESOURCE_ALREADY_EXISTS"):
        client.create_registered_model(name)


def own_run(client: MlflowClient, name: str) -> str:
    """The id of a finished run for a version that belongs to no training."""
    run = client.create_run(experiment_id(client, name), run_name=f"put {name}", tags={"mlflow.user": user()})
    client.set_terminated(run.info.run_id, "FINISHED")
    return str(run.info.run_id)


def forget_model(client: MlflowClient, name: str) -> None:
    """Delete a registered model with its versions and aliases, if there is one."""
    with _allowing("RESOURCE_DOES_NOT_EXIST"):
        client.delete_registered_model(name)


@contextmanager
def _allowing(code: str) -> Iterator[None]:
    """MLflow's error of this code is none here."""
    try:
        yield
    except Exception as error:
        if getattr(error, "error_code", None) != code:
            raise


def forget_experiment(client: MlflowClient, name: str) -> list[Cleared]:
    """Delete the experiment of this name, if there is one, with its runs and their artifacts.

    MLflow keeps the rows of what is deleted; they are renamed before, and lose their artifacts.
    """
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return []
    number, where = str(experiment.experiment_id), f"runs of mlflow at {public(client.tracking_uri)}"
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(number)
    runs = list(_runs(client, number, ViewType.ALL))
    refused = 0
    for run in runs:
        try:
            get_artifact_repository(str(run.info.artifact_uri), tracking_uri=client.tracking_uri).delete_artifacts()
        except FileNotFoundError:  # it has none, or none any more
            pass
        except (NotImplementedError, MlflowException, OSError):  # a place that MLflow cannot delete from
            refused += 1
        if run.info.lifecycle_stage != "active":
            client.restore_run(run.info.run_id)
        client.update_run(run.info.run_id, name=_FORGOTTEN)
        client.delete_run(run.info.run_id)
    if location := local_folder(str(experiment.artifact_location)):
        for path in sorted((held for held in location.rglob("*") if held.is_dir()), reverse=True):
            with suppress(OSError):  # it has something in it
                path.rmdir()
        with suppress(OSError):
            location.rmdir()
    client.rename_experiment(number, f"{_FORGOTTEN}-{number}")
    client.delete_experiment(number)
    stays = [f"rows of deleted runs, until `mlflow gc --experiment-ids {number}`"]
    if refused:
        stays.append(f"artifacts of {refused} runs in {experiment.artifact_location}, which MLflow cannot delete")
    return [Cleared(where, f"experiment {name}, {len(runs)} runs", "; ".join(stays))]


def _runs(client: MlflowClient, experiment: str, view: int) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs([experiment], run_view_type=view, max_results=1000, page_token=token)
        yield from page
        if not (token := page.token):
            return


def local_folder(location: str) -> Path | None:
    """The folder of this machine that an address of artifacts is, if it is one."""
    parts = urlsplit(location)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None
