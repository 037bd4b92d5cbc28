"""A person is deleted: all versions of the adapter and every trace that can be reached, and what cannot is said.

    found = forget_person(recipe, "alice", endpoint="http://localhost:8000")
    found["places"]        # [{"where": "store ./store", "removed": "shops.person.alice, 2 versions", "stays": ""}, ...]

The store first, so that from then on the group's adapter answers; then whoever holds copies, then what tells of it. The
same command ends a deletion that was cut short. Files that a user gave are read and never changed: for as long as they
have the person's rows, the run keeps a salted hash of the key so that nobody learns from them (`forgotten.py`).
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from ray_lora.atomic import write_atomic
from ray_lora.data.people import find_people
from ray_lora.data.row_cache import rows_folder
from ray_lora.data.sent_files import count_rows, forget_rows
from ray_lora.errors import AdapterNotFoundError, DataError, RayLoraError, RecipeError
from ray_lora.recipe import Json, Recipe
from ray_lora.running.claims import claimed
from ray_lora.running.forgotten import TRAIN, Forgotten
from ray_lora.running.large import is_large
from ray_lora.running.sources import files_of
from ray_lora.store import open_store
from ray_lora.store.people import group_name, person_name
from ray_lora.store.store import Cleared
from ray_lora.tasks import task_of
from ray_lora.tracking import Tracker
from ray_lora.tracking.plain import table as written

KEY = "RAY_LORA_ADMIN_KEY"  # in the environment: an endpoint's key with admin: true
_PATIENCE_S = 60.0


class EndpointAwayError(RayLoraError, ConnectionError):
    """An endpoint that was to be told does not answer."""


def forget_person(recipe: Recipe, key: str, endpoint: str | None = None) -> dict[str, Json]:
    """Delete a person of a run: `{"person", "name", "places": [{"where", "removed", "stays"}]}`.

    Args:
        key: as the recipe's table has it. endpoint: the address of one that is to let go of its copies at once.

    Raises:
        RecipeError: the run has no people yet, or another process writes to its folder.
        DataError: there is nobody of that key.
        EndpointAwayError, StoreAwayError: the same command ends the deletion later.
    """
    name = person_name(recipe.name, key)
    with claimed(recipe, "personal", recipe.model_dump_json()) as output:
        if not (output / "people.csv").exists():
            raise RecipeError(f"{str(output)!r} has no people yet; run the same command without --forget first")
        deletion = _Deletion(recipe, key, name, output)
        deletion.check()
        if not deletion.forgotten.begun and not deletion.is_there():
            deletion.forgotten.note(key, ())
            raise DataError(f"nobody is called {key!r} here; keys are words of the column {recipe.personal.key}")
        if endpoint is not None:
            _reach(endpoint)
        deletion.forgotten.begin(key)
        places = deletion.all(endpoint)
        deletion.forgotten.end()
    told = [{"where": place.where, "removed": place.removed, "stays": place.stays} for place in places]
    return {"person": key, "name": name, "places": told}


class _Deletion:
    """One person's, in one run."""

    def __init__(self, recipe: Recipe, key: str, name: str, output: Path) -> None:
        self.recipe, self.key, self.name, self.output = recipe, key, name, output
        self.forgotten = Forgotten(output)
        self.store = open_store(recipe.store, recipe.tracking.uri)
        self._log = output / "updates.jsonl"

    def check(self) -> None:
        """AdapterNotFoundError for a store without any adapter, which is none that the run's people are in."""
        if not self.store.names():
            raise AdapterNotFoundError(
                f"the store {self.recipe.store} holds no adapters, and people's were put there; is it mounted? "
                "nothing was deleted"
            )

    def is_there(self) -> bool:
        """Whether there is anybody of that key, or rows of theirs."""
        known = any(line["person"] == self.key for line in _lines(self._people())) or bool(self.store.list(self.name))
        return known or any(count_rows(file, self.key) for file in self._sent_files()) or bool(self._held())

    def all(self, endpoint: str | None) -> list[Cleared]:
        """Every place, in this order."""
        places = list(self.store.forget(self.name))
        places.append(_tell(endpoint, self.recipe.name, self.key) if endpoint is not None else _UNTOLD)
        places += self._sent()
        group = self._group()
        places += self._table()
        places += self._mlflow()
        places += self._given()
        if group is not None:
            places.append(
                Cleared(f"adapter {group}", "", "learnt from everybody's rows; train groups under a new name")
            )
        return [place for place in places if place.removed or place.stays]

    # ---------------------------------------------------------------- rows

    def _logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def _sent_files(self) -> list[Path]:
        """What endpoints kept, also what nobody has learnt from yet, in the folders that the run has seen."""
        logged = [Path(file) for line in self._logged() if line["kind"] != "files" for file in line["files"]]
        return [file for folder in sorted({file.parent for file in logged}) for file in sorted(folder.glob("*.jsonl"))]

    def _sent(self) -> Iterator[Cleared]:
        """Rows that endpoints kept, and what the log says of their files."""
        for folder in sorted({file.parent for file in self._sent_files()}):
            rows, files = forget_rows(folder, self.key)
            yield Cleared(f"sent rows in {folder}", f"{rows} rows of {files} files" if rows else "")
        kept = []
        for line in self._logged():
            if line["kind"] != "files":
                line["files"] = [file for file in line["files"] if Path(file).exists()]
            kept += [line] if line["files"] else []
        if kept != self._logged():
            write_atomic(self._log, "".join(json.dumps(line) + "\n" for line in kept))

    def _held(self) -> dict[str, str]:
        """What files that a user gave have of the person, by how the run knows them."""
        spec, found = self.recipe.personal, dict[str, str]()
        later = spec.model_copy(update={"order": None})
        given = {TRAIN: (self.recipe.data.train or (), spec)}
        given |= {file: (file, later) for line in self._logged() if line["kind"] == "files" for file in line["files"]}
        for place, (files, how) in given.items():
            try:
                rows = sum(len(person.rows) for person in find_people(files, how) if person.key == self.key)
            except DataError as error:
                found[place] = f"could not be looked at ({error})"
                continue
            if rows:
                found[place] = f"{rows} rows"
        return found

    def _given(self) -> Iterator[Cleared]:
        """Files that a user gave: nobody changes them here."""
        held = self._held()
        self.forgotten.note(self.key, list(held))
        for place, told in held.items():
            where = f"data.train ({self.recipe.data.train})" if place == TRAIN else place
            yield Cleared(where, "", f"{told}: take them out yourself; until then the run keeps a hash of the key")
        if held and any(rows_folder().glob("*/*.arrow")) and is_large(files_of(self.recipe)):
            yield Cleared(f"encoded rows in {rows_folder()}", "", "with everybody's, until `ray-lora cache clear`")

    # ---------------------------------------------------------------- what is told of people

    def _group(self) -> str | None:
        """The adapter that the person began from, as the table says."""
        for line in _lines(self._people()):
            if line.get("person") == self.key and line.get("group") is not None:
                return group_name(self.recipe.name, str(line["group"]))
        return None

    def _people(self) -> Path:
        return self.output / "people.csv"

    def _table(self) -> Iterator[Cleared]:
        """The run's table, its figure, and the lines by which it goes on."""
        removed = 0
        for file in sorted(self.output.glob("people-*.jsonl")):
            lines = file.read_text().splitlines(keepends=True)
            others = [line for line in lines if json.loads(line)["name"] != self.key]
            removed += len(lines) - len(others)
            if len(others) < len(lines):
                write_atomic(file, "".join(others))
        table = _lines(self._people())
        others_of = [line for line in table if line["person"] != self.key]
        removed += len(table) - len(others_of)
        if len(others_of) < len(table):
            write_atomic(self._people(), written(others_of))
        self._draw(others_of)
        yield Cleared(f"run {self.output}", f"{removed} lines, and in the figure" if removed else "")

    def _draw(self, table: Sequence[dict[str, Any]]) -> None:
        from ray_lora.running.people_figures import gains

        metric = task_of(self.recipe.task).metric
        columns = ("loss before", "loss after", f"{metric} before", f"{metric} after")
        numbers = [{name: float(line[name]) if line.get(name) else None for name in columns} for line in table]
        gains(numbers, metric).savefig(self.output / "gains.png", dpi=120)

    def _mlflow(self) -> Iterator[Cleared]:
        """The run's table and figure in MLflow, and trials of the person's versions."""
        uri, record = self.recipe.tracking.uri, self.output / "mlflow.jsonl"
        if uri is None or not record.exists():
            return
        if self.recipe.store != "mlflow":
            from ray_lora.store.mlflow_client import connect, forget_experiment
            from ray_lora.store.mlflow_line import address

            yield from forget_experiment(connect(address(uri)), self.name)
        tracker = Tracker(uri, self.recipe.tracking.experiment or self.recipe.name, record=record)
        for name in ("people.csv", "gains.png"):
            tracker.log_artifact(self.output / name)
        if tracker.close(_PATIENCE_S):
            raise EndpointAwayError(f"MLflow has not taken the table without {self.key!r}; run the same command again")
        yield Cleared("MLflow, the run's table and figure", "written without the person")


_UNTOLD = Cleared(
    "endpoints",
    "",
    "they answer as the group at once (2 s for a bucket or MLflow); --endpoint URL empties their memory",
)


def _reach(endpoint: str) -> None:
    """EndpointAwayError where nobody answers, before anything is deleted."""
    try:
        httpx.get(f"{endpoint.rstrip('/')}/health", timeout=_PATIENCE_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EndpointAwayError(f"the endpoint {endpoint} does not answer ({error}); nothing was deleted") from None


def _tell(endpoint: str, model: str, key: str) -> Cleared:
    """Have all replicas of an endpoint let go of a person."""
    secret = os.environ.get(KEY)
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    try:
        body = {"model": model, "person": key}
        said = httpx.post(f"{endpoint.rstrip('/')}/v1/forget", json=body, headers=headers, timeout=_PATIENCE_S)
    except httpx.HTTPError as error:
        raise EndpointAwayError(
            f"the endpoint {endpoint} does not answer ({error}); run the same command again"
        ) from None
    if said.status_code in (401, 403):
        raise RecipeError(f"the endpoint {endpoint} refuses: {_message(said)}; set {KEY} to a key with admin: true")
    if said.status_code != 200:
        raise EndpointAwayError(f"the endpoint {endpoint} says {said.status_code}: {_message(said)}")
    told = said.json()
    counts = ", ".join(f"{told[what]} {what}" for what in ("adapters", "prompts", "answers", "rows"))
    return Cleared(f"endpoint {endpoint}, {told['replicas']} replicas", f"in memory and results: {counts}")


def _message(said: httpx.Response) -> str:
    try:
        return str(said.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return said.text[:200]


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
