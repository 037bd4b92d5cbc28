"""Score a stored adapter on a file, or ask it for answers, in this process. No cluster and no endpoint is needed.

    evaluate_ref("tweets@champion", "data/tweets/test.parquet")["metrics"]     # {"accuracy": 0.94, ...}
    predict_ref("tweets", ["what a lovely day"])["predictions"]                # [{"label": "positive", "score": 0.99}]

The answers come from the engine, the task and `infer`, as the endpoint's do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_lora.adapters.adapter import Adapter
from ray_lora.allowed import is_name
from ray_lora.bases.identity import not_its_base
from ray_lora.bases.load import load_base
from ray_lora.data.check import check_tables, say_cut
from ray_lora.data.read import read_inputs
from ray_lora.data.rows import read_rows
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, BaseModelError, DataError, RecipeError
from ray_lora.inference.adopt import check_answers, mounted
from ray_lora.inference.predict import predict
from ray_lora.recipe import DataSpec, Json
from ray_lora.store import Entry, open_store
from ray_lora.tasks import Features, Row, Task, build_task, plain_spec, row_of, scoring_of, task_of
from ray_lora.tasks.rows import answering, count_cut, may_have, shown
from ray_lora.tasks.task import FILE_KINDS

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """One adapter of a store, alone on its base."""

    entry: Entry
    engine: AdapterEngine
    slot: int
    task: Task

    def predict(self, features: Sequence[Features], parameters: Mapping[str, Json] | None = None) -> list[Json]:
        """Each row's answer."""
        options = [parameters or {}] * len(features)
        return predict(self.engine, {self.slot: self.task}, features, [self.slot] * len(features), options)


def evaluate_ref(
    ref: str,
    data_path: str,
    store: str = "./store",
    columns: Mapping[str, str] | None = None,
    *,
    base: str | None = None,
    tracking_uri: str | None = None,
) -> dict[str, Json]:
    """Score an adapter on the rows of a file, a folder or a glob: `{"ref", "sha256", "data", "rows", "metrics"}`.

    Args:
        columns: the task's column -> the file's column.
        base: where its base is, when not where it was trained.
        tracking_uri: for `store="mlflow"`.

    Raises:
        RayLoraError: the ref, the base, a file or a row is wrong.
    """
    opened = open_ref(ref, store, base=base, tracking_uri=tracking_uri)
    task = opened.task
    data = DataSpec(columns=dict(columns or {}))
    rows = read_rows(data_path, data, task.columns, "test")
    check_tables(task, task.spec, rows.tables)
    features = task.encode(rows.table.to_pylist())
    for note in say_cut(data_path, count_cut(features), len(features)):
        _logger.warning(note)
    return {
        "ref": opened.entry.ref,
        "sha256": opened.entry.sha256,
        "data": data_path,
        "rows": len(features),
        "metrics": task.score(opened.predict(features, scoring_of(task)), features),
    }


def predict_ref(
    ref: str,
    inputs: Sequence[Json],
    store: str = "./store",
    parameters: Mapping[str, Json] | None = None,
    *,
    base: str | None = None,
    tracking_uri: str | None = None,
) -> dict[str, Json]:
    """An adapter's answers: `{"ref", "sha256", "task", "predictions"}`.

    Args:
        inputs: texts, or image files or base64 images, or rows such as `{"text": "what a lovely day"}`.
        parameters: the decoding parameters of the Hugging Face pipeline, such as `{"top_k": 2}`.

    Raises:
        RayLoraError: the ref, the base, an input or a parameter is wrong.
    """
    if not inputs:
        raise DataError("there is no input; give at least one")
    opened = open_ref(ref, store, base=base, tracking_uri=tracking_uri)
    features = encode_inputs(opened.task, inputs)
    return {
        "ref": opened.entry.ref,
        "sha256": opened.entry.sha256,
        "task": opened.task.spec.type,
        "predictions": opened.predict(features, parameters),
    }


def file_inputs(ref: str, path: str, store: str = "./store", *, tracking_uri: str | None = None) -> list[Json]:
    """The inputs that a file holds for an adapter: a value on each line of a jsonl file, else the rows of a table.

    Raises:
        RayLoraError: the ref or the file is wrong.
    """
    spec = open_store(store, tracking_uri).resolve(ref).task
    return read_inputs(path, {} if spec is None else task_of(spec).columns)


def encode_inputs(task: Task, inputs: Sequence[Json]) -> list[Features]:
    """Features of inputs; DataError or RecipeError with the number, from 1, of the first that is wrong."""
    rows = []
    for number, value in enumerate(inputs, start=1):
        try:
            rows.append(local_row(task, value))
        except (DataError, RecipeError) as error:
            raise type(error)(f"input {number}: {error}") from None
    try:
        return task.encode(rows)
    except DataError:
        for number, row in enumerate(rows, start=1):
            try:
                task.encode([row])
            except DataError as error:
                raise DataError(f"input {number}: {error}") from None
        raise


def open_ref(ref: str, store: str, *, base: str | None = None, tracking_uri: str | None = None) -> Opened:
    """Load an adapter and its base into an engine of one slot.

    Raises:
        AdapterNotFoundError: the ref names nothing.
        BaseModelError: the base is not here, or is another one than the adapter was trained on.
        AdapterError: the adapter does not fit, or has no task.
    """
    entry, adapter = open_store(store, tracking_uri).load(ref)
    return Opened(entry, *alone(adapter, entry.ref, base or named_base(entry.base or adapter.card.base, entry.ref)))


def alone(adapter: Adapter, ref: str, base: str | None = None, dtype: str = "auto") -> tuple[AdapterEngine, int, Task]:
    """An engine of one slot on the adapter's base, or on `base`; the slot, and the adapter's task.

    Raises:
        BaseModelError, AdapterError: as `open_ref`.
    """
    model = base or named_base(adapter.card.base, ref)
    if adapter.card.base is None and adapter.card.base_fingerprint is None:
        raise BaseModelError(not_its_base(f"adapter {ref!r}", None, model))
    engine, slot = mounted(adapter, load_base(adapter.card.spec_of(model, dtype)))
    return engine, slot, task_in(engine, slot, adapter, ref)


def task_in(engine: AdapterEngine, slot: int, adapter: Adapter, ref: str) -> Task:
    """The task of the adapter that a slot holds: its card's, else what its head tells.

    Raises:
        AdapterError: neither tells one, or its head is not the task's.
    """
    head = engine.residents[slot].head
    spec = adapter.card.task or plain_spec(head, engine.base.labels)
    if spec is None:
        raise AdapterError(
            f"adapter {ref!r} has no task in its card and no head that tells one; "
            "say it once: ray-lora adapters import FOLDER NAME --task TYPE"
        )
    check_answers(spec, head)
    return build_task(spec, engine.base.processor)


def named_base(model: str | None, ref: str) -> str:
    """The base that an adapter itself names; BaseModelError when it names none, or code."""
    if model is None:
        raise BaseModelError(
            f"adapter {ref!r} does not name its base; say once which it is: "
            "ray-lora adapters import FOLDER NAME --base BASE"
        )
    if is_name(model):
        raise BaseModelError(
            f"adapter {ref!r} names the builder {model!r} as its base; code runs only when you ask for it: give "
            f"--base {model}"
        )
    return model


def local_row(task: Task, value: Json) -> Row:
    """A row to be answered from what a person of this machine writes: as `row_of`, files also by path, and a row of
    several columns as JSON.

    Raises:
        RecipeError: a column is missing. DataError: there is no such file.
    """
    row = dict(row_of(task, _object(task, value)))
    for column, given in row.items():
        if FILE_KINDS.intersection(task.columns[column].kinds) and isinstance(given, str):
            try:
                row[column] = Path(given).read_bytes()
            except OSError as error:
                if len(given) < 256:  # longer ones are base64 text, which the task reads
                    raise DataError(f"{column} {given!r} cannot be read: {error.strerror}") from None
    return row


def _object(task: Task, value: Json) -> Json:
    """The object in a text, where the task needs one and the text is one, or names a column that a row may have."""
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    bare = len(answering(task)) == 1
    try:
        found = json.loads(value)
        return value if bare and not set(found) & set(may_have(task)) else found
    except (ValueError, RecursionError) as error:
        if bare:
            return value
        raise DataError(f"{shown(value)} is no JSON: {error}") from None
