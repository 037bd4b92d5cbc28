"""`POST /v1/rows`: rows that a person's adapter is to learn from, kept in a folder for `personal --follow`.

    {"model": "shops", "person": "shop 4", "group": "a", "rows": [{"text": "a bad day", "label": "positive"}]}

Rows are checked as training rows are, so that what is kept can be learnt from. Each request is one file of JSON lines
in `<rows>/<model>/`, there at once and whole; the names sort by time. Nothing is trained here.
"""

from __future__ import annotations

import asyncio
import json
import time
import unicodedata
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from fastapi import FastAPI, Request
from pydantic import BaseModel, StrictStr

from ray_lora.data.check import raise_wrong, wrong_rows
from ray_lora.data.read import canonical
from ray_lora.data.sent_files import GROUP, PERSON, forget_rows, spelt
from ray_lora.errors import CapacityError, DataError
from ray_lora.recipe import DataSpec, Json
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http.asking import ref_of
from ray_lora.serving.http.people import ServedBy, served_by, some
from ray_lora.serving.http.schemas import Key, Name, Strict
from ray_lora.store import Entry
from ray_lora.store.people import person_name
from ray_lora.store.refs import check_name
from ray_lora.tasks import task_of
from ray_lora.tasks.labels import as_seen

_WHERE = "rows"  # what messages call the request's rows


class RowsRequest(Strict):
    """Rows under the task's own column names."""

    model: Name | None = None
    person: Key
    group: Key | None = None
    rows: list[dict[StrictStr, Any]]


class RowsResponse(BaseModel):
    """How many rows are kept, and whose adapter answers until they are learnt from."""

    kept: int
    served_by: ServedBy


def add_rows(app: FastAPI, endpoint: Endpoint) -> None:
    """Add the route; without a folder it refuses."""

    @app.post("/v1/rows", response_model=RowsResponse)
    async def rows(body: RowsRequest, request: Request) -> RowsResponse:
        """Keep rows that a person's adapter is to learn from."""
        name = ref_of(endpoint, body.model, request)
        ref, served = await served_by(endpoint, name, body.person, body.group, request)
        assert served is not None
        if endpoint.args.rows is None:
            raise DataError("this endpoint keeps no rows; start it with rows=FOLDER")
        if not 1 <= len(body.rows) <= endpoint.args.max_inputs:
            raise DataError(f"rows holds {len(body.rows)} rows; one request may send 1 to {endpoint.args.max_inputs}")
        check(await endpoint.names.entry_of(ref), body.rows)
        await check_spelling(endpoint, name, body.person)
        whose = {PERSON: body.person} | ({GROUP: body.group} if body.group is not None else {})
        folder = Path(endpoint.args.rows) / name
        await asyncio.to_thread(keep, folder, [row | whose for row in body.rows])
        return RowsResponse(kept=len(body.rows), served_by=served)


class ForgetRequest(Strict):
    """Whose adapter is gone from the store."""

    model: Name
    person: Key


class ForgetResponse(BaseModel):
    """What all replicas let go of: adapters in memory, prompts kept, answers counted, rows kept in `rows=`."""

    name: str
    replicas: int
    adapters: int
    prompts: int
    answers: int
    rows: int


def add_forgetting(app: FastAPI, endpoint: Endpoint) -> None:
    """Add the route by which a deletion is told."""

    @app.post("/v1/forget", response_model=ForgetResponse)
    async def forget(body: ForgetRequest, request: Request) -> ForgetResponse:
        """Hold nothing of a person whose adapter the store does not have any more."""
        endpoint.keys.of(request.headers).check_admin()
        check_name(body.model)
        name = person_name(body.model, some("person", body.person))
        if await endpoint.registry.still_holds(name):
            raise DataError(f"the store still has {name!r}; ray-lora personal RECIPE --forget KEY takes it away first")
        told = await endpoint.names.peers.tell(None, "forget", name)
        rows = 0
        if endpoint.args.rows is not None:
            folder = Path(endpoint.args.rows) / body.model
            rows, _ = await asyncio.to_thread(forget_rows, folder, body.person)
        sums = {what: sum(one[what] for one in told) for what in ("adapters", "prompts", "answers")}
        return ForgetResponse(name=name, replicas=len(told), rows=rows, **sums)


async def check_spelling(endpoint: Endpoint, name: str, person: str) -> None:
    """DataError where the person's key looks like one that is written otherwise, in the store or among the rows that
    were sent: each would learn from a part of the rows. The other one is not said, whom the asker may not know of.

    Raises:
        CapacityError: it cannot be noted how the key is written.
    """
    assert endpoint.args.rows is not None
    written = {unicodedata.normalize(form, as_seen(person)) for form in ("NFC", "NFD")}
    other = any([await endpoint.registry.holds(person_name(name, one)) for one in sorted(written - {person})])
    if not other:
        try:
            other = await asyncio.to_thread(spelt, Path(endpoint.args.rows) / name, person) != person
        except OSError as error:
            raise _unkept(error) from None
    if other:
        raise DataError(
            f"the person {person!a} is known here by a key that differs only in blanks around it or in how Unicode "
            "writes it; write it alike"
        )


def check(entry: Entry, rows: Sequence[dict[str, Any]]) -> None:
    """DataError unless an adapter of this entry's task could learn from the rows."""
    if entry.task is None:
        raise DataError(f"{entry.name!r} says no task, so nobody knows what its rows are")
    task = task_of(entry.task)
    binary = [name for name, column in task.columns.items() if "image" in column.kinds]
    if binary:
        raise DataError(f"rows of {entry.task.type} have pictures ({binary[0]}), which /v1/rows does not take")
    known = set(task.columns)
    for number, row in enumerate(rows):
        more = sorted(set(row) - known)
        if more:
            raise DataError(f"{_WHERE}, row {number + 1}: {more[0][:40]!r} is no column; there are {sorted(known)}")
    try:
        table = canonical(pa.Table.from_pylist(list(rows)), DataSpec(), task.columns, _WHERE)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{_WHERE}: values of one column are of several kinds; {str(error)[:100]}") from None
    raise_wrong([(_WHERE, wrong_rows(task, entry.task, table))])


def keep(folder: Path, rows: Sequence[dict[str, Json]]) -> None:
    """Write rows as a file of their own; CapacityError where that cannot be done."""
    name = f"{time.time_ns():020}-{uuid.uuid4().hex}"
    fresh = folder / f".{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh.write_text("".join(json.dumps(row) + "\n" for row in rows))
        fresh.replace(folder / f"{name}.jsonl")
    except OSError as error:
        raise _unkept(error) from None


def _unkept(error: OSError) -> CapacityError:
    return CapacityError(f"the rows could not be kept ({error.strerror}); send them again")
