"""What a run over files is to answer, decided and checked before any row is: its adapters' versions, its columns, and
what its output holds already.

    pinned = begin(asked, parts, files, pieces, most_rows)    # written down; the same command finds it again
    work = work_of(asked, pinned, pieces, slots, dtype)       # DataError where the files cannot be answered

It knows files, parts and what a store says; it starts nothing but the search for adapters' names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import ray

from ray_lora.atomic import expanded
from ray_lora.data.files import File
from ray_lora.data.piece_types import look, read_piece, settle
from ray_lora.data.pieces import Piece
from ray_lora.errors import AdapterError, AdapterNotFoundError, DataError, RecipeError
from ray_lora.inference.answer_columns import AnswerColumns
from ray_lora.inference.pinned import Pinned, pin
from ray_lora.inference.table_rows import asked, refs_of, view
from ray_lora.recipe import Json
from ray_lora.running.local_ray import start_ray
from ray_lora.running.parts import Format, Parts
from ray_lora.running.rows_progress import RowsProgress
from ray_lora.running.tally import MOST_NAMED, Done, Work, count
from ray_lora.store import Store, open_store
from ray_lora.tasks import TASKS, Column, Task, task_class, task_of


@dataclass(frozen=True)
class Asked:
    """What a run is to answer, as a person says it."""

    data: Sequence[str]
    output: str
    store: str = "./store"
    adapter: str | None = None
    adapter_column: str | None = None
    base: str | None = None
    columns: Mapping[str, str] | None = None
    parameters: Mapping[str, Json] | None = None
    prefix: str = ""
    format: Format = "parquet"
    tracking_uri: str | None = None


def asked_for(
    data: Sequence[str],
    output: str | None,
    adapter: str | None,
    adapter_column: str | None,
    *,
    store: str,
    base: str | None,
    columns: Mapping[str, str],
    parameters: Mapping[str, Json] | None,
    prefix: str,
    format: str,
    tracking_uri: str | None,
) -> Asked:
    """What a person's words ask; RecipeError where they do not fit together."""
    if (adapter is None) == (adapter_column is None):
        raise RecipeError("give the ref of the adapter that answers all rows, or --adapter-column, and not both")
    if output is None:
        raise RecipeError("where the answers go is not said; give --output FOLDER")
    if format not in get_args(Format):
        raise RecipeError(f"--format {format!r} must be one of {', '.join(get_args(Format))}")
    kind: Format = "jsonl" if format == "jsonl" else "parquet"
    return Asked(
        data, output, store, adapter, adapter_column, base, columns, parameters or {}, prefix, kind, tracking_uri
    )


def check_apart(data: Sequence[str], parts: Parts) -> None:
    """RecipeError where the answers would lie among the rows, and be rows the next time."""
    for given in data:
        folder = expanded(given).absolute() if "://" not in given else None
        if folder is not None and parts.path is not None and folder.is_dir() and parts.path.is_relative_to(folder):
            raise RecipeError(
                f"the output {parts.name!r} is inside the data {given!r}, where its files would be rows the next time; "
                "give another folder"
            )


def begin(
    wanted: Asked,
    parts: Parts,
    files: Sequence[File],
    pieces: Sequence[Piece],
    most_rows: int,
    progress: RowsProgress,
) -> Pinned:
    """What refs mean, as the run was begun with it; the run is written down where it begins now."""
    store = open_store(wanted.store, wanted.tracking_uri)
    said = {
        "data": [[file.path, file.stamp] for file in files],
        "pieces": len(pieces),
        "most_rows": most_rows,
        "store": store.uri,
        "adapter": wanted.adapter,
        "adapter_column": wanted.adapter_column,
        "base": wanted.base,
        "columns": dict(wanted.columns or {}),
        "parameters": dict(wanted.parameters or {}),
        "prefix": wanted.prefix,
        "format": wanted.format,
    }
    known = parts.asked()
    if known is not None:
        told = {key: known.get(key) for key in said}
        if told != said:
            other = next(key for key in said if told[key] != said[key])
            raise RecipeError(
                f"the output {parts.name!r} was begun with other {other}: {_short(told[other])}, now "
                f"{_short(said[other])}; give another output, or remove the folder"
            )
        return _recall(store, known, parts.name)
    refs = [wanted.adapter] if wanted.adapter is not None else _refs(pieces, str(wanted.adapter_column), progress)
    pinned = pin(store, refs)
    progress.say(f"{len(pinned.entries):,} adapters; {len(pinned.missing):,} that rows name are none")
    if wanted.adapter is not None and pinned.missing:
        raise AdapterNotFoundError(pinned.missing[wanted.adapter])
    if not pinned.entries:
        some = "\n".join(list(pinned.missing.values())[:MOST_NAMED])
        raise AdapterNotFoundError(f"no row names an adapter that can be used:\n{some}")
    entries = {ref: {"ref": entry.ref, "sha256": entry.sha256} for ref, entry in pinned.entries.items()}
    parts.begin({**said, "adapters": entries, "missing": dict(pinned.missing), "pipelines": list(pinned.pipelines)})
    return pinned


def _recall(store: Store, known: Mapping[str, Json], output: str) -> Pinned:
    """What refs meant when the run was begun; AdapterError where that is no longer in the store."""
    now = pin(store, [told["ref"] for told in known["adapters"].values()])
    entries = {}
    for ref, told in known["adapters"].items():
        entry = now.entries.get(told["ref"])
        if entry is None or entry.sha256 != told["sha256"]:
            raise AdapterError(
                f"the run in {output!r} was begun with {told['ref']} ({told['sha256'][:12]}…), which is no longer in "
                "the store as it was; give another output"
            )
        entries[ref] = entry
    return Pinned(entries, known["missing"], tuple(known["pipelines"]))


def _short(value: Json) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:119] + "…"


def _refs(pieces: Sequence[Piece], column: str, progress: RowsProgress) -> list[str]:
    """Every adapter that a row names, found by the cluster."""
    progress.say(f"which adapters the rows name, in {len(pieces):,} pieces")
    start_ray()
    find = ray.remote(_refs_in).options(num_cpus=1, max_retries=-1)
    coming = [find.remote(piece, column) for piece in pieces]
    found: set[str] = set()
    while coming:
        ready, coming = ray.wait(coming, num_returns=1)
        found |= ray.get(ready[0])
    return sorted(found)


def _refs_in(piece: Piece, column: str) -> set[str]:
    table = read_piece(piece, _names_adapters(column), [column])
    return {ref for ref in refs_of(table, column) if ref is not None}


def _names_adapters(column: str) -> dict[str, Column]:
    return {column: Column(("text",), about="the adapter's name")}


def work_of(wanted: Asked, pinned: Pinned, pieces: Sequence[Piece], slots: int, dtype: str) -> Work:
    """What actors are told; DataError where the files cannot be answered by any of the adapters."""
    columns = dict(wanted.columns or {})
    tasks = _tasks(pinned)
    known = {name for task in tasks for name in task.columns}
    if tasks and (unknown := sorted(set(columns) - known)):
        raise RecipeError(f"--column names {unknown}; the adapters' tasks have {', '.join(sorted(known))}")
    roles = {columns.get(name, name): column for task in tasks for name, column in asked(task).items()}
    if wanted.adapter_column is not None:
        roles |= _names_adapters(wanted.adapter_column)
    settled = settle(pieces, roles)
    _check_columns(settled[0], roles, tasks, columns, pinned, wanted)
    return Work(
        pieces=settled,
        roles=roles,
        store=wanted.store if "://" in wanted.store or wanted.store == "mlflow" else _absolute(wanted.store),
        tracking_uri=wanted.tracking_uri,
        pinned=pinned,
        adapter=wanted.adapter,
        adapter_column=wanted.adapter_column,
        base=wanted.base,
        columns=columns,
        parameters=dict(wanted.parameters or {}),
        prefix=wanted.prefix,
        slots=max(1, min(slots, len({entry.sha256 for entry in pinned.entries.values()}))),
        dtype=dtype,
        output=wanted.output if "://" in wanted.output else _absolute(wanted.output),
        format=wanted.format,
        tally=None,
    )


def _tasks(pinned: Pinned) -> set[type[Task]]:
    """What the adapters do; of those that plain PEFT wrote, what gives their pipeline's answers."""
    told = {task_of(entry.task) for entry in pinned.entries.values() if entry.task is not None}
    plain = any(entry.task is None for entry in pinned.entries.values())
    return told | {task_class(name) for name in TASKS if plain and task_class(name).pipeline in pinned.pipelines}


def _absolute(path: str) -> str:
    """From any folder: workers have folders of their own."""
    return str(expanded(path).absolute())


def _check_columns(
    piece: Piece,
    roles: Mapping[str, Column],
    tasks: set[type[Task]],
    columns: Mapping[str, str],
    pinned: Pinned,
    wanted: Asked,
) -> None:
    """DataError where no adapter can be asked with these columns, or one is in the way of an answer's."""
    table = look(piece, roles).empty_table()
    AnswerColumns(pinned.pipelines, {}, wanted.prefix).check(table.column_names, piece.file.path)
    wrong = []
    for task in tasks:
        try:
            view(table, task, columns)
            return
        except DataError as error:
            wrong.append(str(error).replace("the table", piece.file.path, 1))
    if wrong:
        raise DataError("\n".join(sorted(wrong)))


def done_before(parts: Parts, pieces: Sequence[Piece], prefix: str) -> dict[int, Done]:
    """The pieces whose answers are there already; what is not whole is made again."""
    done: dict[int, Done] = {}
    for number in sorted(parts.there()):
        counted = count(parts, number, pieces[number], prefix) if number < len(pieces) else None
        if counted is not None and pieces[number].rows in (None, counted.rows):
            done[number] = counted
        else:
            parts.drop(number)
    return done
