"""Several adapters on the same rows: which is best, for which of them, and whether the base alone would do.

    compared = compare(["tweets@1", "tweets@2"], "test.parquet", by="customer")
    compared["scores"][0]    # {"ref": "tweets@1", "slice": None, "rows": 512, "metrics": {...}, "best": True, ...}

Each row is encoded once for all adapters of one task, and rows of all adapters pass through the base together. It knows
files, tasks and answers, no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import pyarrow as pa

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.data.check import check_tables, say_cut
from ray_lora.data.files import find_files
from ray_lora.data.piece_types import read_piece, settle
from ray_lora.data.pieces import Piece
from ray_lora.data.rows import say_given
from ray_lora.errors import AdapterError, DataError, RayLoraError, RecipeError, did_you_mean
from ray_lora.inference.intervals import Scored, as_good, intervals
from ray_lora.inference.pinned import Pinned, pin_all
from ray_lora.inference.table_rows import TableRows, asked, view
from ray_lora.inference.tables import Answer, TableAnswers
from ray_lora.recipe import Json, LoraSpec
from ray_lora.store import Entry, open_store
from ray_lora.tasks import Column, Features, Task
from ray_lora.tasks.labels import plain_labels
from ray_lora.tasks.rows import count_cut

BASE = "the base alone"
_MOST_SLICES = 1000


def compare(
    refs: Sequence[str],
    data: str | Sequence[str],
    store: str = "./store",
    columns: Mapping[str, str] | None = None,
    *,
    by: str | None = None,
    base: str | None = None,
    tracking_uri: str | None = None,
    added: Mapping[str, Adapter] = MappingProxyType({}),
) -> dict[str, Json]:
    """Score adapters on files of rows, over all rows and, with `by`, over those of each value of a column.

    Args:
        data: as `data.train` of a recipe; of a folder whose names tell splits apart, `test`.
        columns: the task's column -> the files' column.
        base: where their base is, when not where each says.
        added: adapters that are in no store, on the first one's base, by what they are called.

    Returns:
        `{"data", "rows", "by", "metric", "mode", "scores", "notes"}`. Each of the scores has `ref`, `sha256`, `slice`
        (None: all rows), `rows`, `metrics` (`{"accuracy": {"value", "low", "high"}}`, 95 % intervals), `best` (of its
        slice) and `as_good` (not told apart from the best). Its ref is `BASE` where the base's own head answered.

    Raises:
        RayLoraError: a ref, the base, a file or a row is wrong, or the adapters' tasks are scored differently.
    """
    opened = open_store(store, tracking_uri)
    pinned = pin_all(opened, refs)
    tables = TableAnswers(
        opened, pinned, base=base, columns=columns, scoring=True, slots=min(32, len(refs) + len(added) + 1)
    )
    try:
        for name, adapter in added.items():
            add_adapter(tables, name, pinned.entries[refs[0]], adapter, adapter.sha256)
        tasks = {ref: tables.task(ref) for ref in (*refs, *added)}
        _check_alike(tasks)
        notes = _add_base(tables, pinned, tasks)
        table, where = scored_rows(data, tasks, dict(columns or {}), by)
        rows = TableRows(table, columns, training=True, keep=True)
        answers = answers_to(tables, rows, list(tasks))
        for task in {id(task): task for task in tasks.values()}.values():
            cut = count_cut(features_of(rows, task, range(table.num_rows)))
            notes += say_cut(where, cut, table.num_rows)
        slices = _slices(table, by)
        first = tasks[refs[0]]
        scores = [
            line for rows_of in slices.items() for line in _scores(tables, pinned, rows, tasks, answers, *rows_of)
        ]
    finally:
        tables.close()
    return {
        "data": where,
        "rows": table.num_rows,
        "by": by,
        "metric": first.metric,
        "mode": first.metrics[first.metric],
        "scores": scores,
        "notes": notes,
    }


def _check_alike(tasks: Mapping[str, Task]) -> None:
    """RecipeError where scores of two adapters are of different things."""
    first, *others = tasks.items()
    for ref, task in others:
        if (task.pipeline, task.metrics) != (first[1].pipeline, first[1].metrics):
            raise RecipeError(
                f"{first[0]} does {first[1].spec.type}, scored by {', '.join(first[1].metrics)}, and {ref} "
                f"{task.spec.type}, by {', '.join(task.metrics)}; compare adapters of one task"
            )


def _add_base(tables: TableAnswers, pinned: Pinned, tasks: dict[str, Task]) -> list[str]:
    """The base's own head as one more adapter without layers, where its files hold one for this task; else why not."""
    ref, task = next(iter(tasks.items()))
    entry = pinned.entries[ref]
    if len({tables.base_of(other) for other in tasks}) > 1 or len({other.spec for other in tasks.values()}) > 1:
        return [f"{BASE}: not asked, as these adapters have several bases or labels"]
    told = Card(task=task.spec, base=entry.base, architecture=task.head.architecture, attention=task.spec.reads)
    bare = Adapter(LoraSpec(target_modules=()), {}, {}, told, task.peft_type)
    tables.add(BASE, replace(entry, name=BASE, sha256=f"{BASE} of {entry.base}", num_parameters=0, bytes=0), bare)
    try:
        known = tables.task(BASE)
        named = tables.labels(BASE)
        mine = getattr(task.spec, "labels", None)
        if mine is not None and tuple(mine) != (named or plain_labels(len(mine))):
            raise AdapterError(f"its head answers {', '.join(named or ())}")
    except RayLoraError as error:
        return [f"{BASE}: it has no trained head for this task ({error})"]
    tasks[BASE] = known
    return []


def add_adapter(tables: TableAnswers, name: str, like: Entry, adapter: Adapter, sha256: str) -> None:
    """One more adapter that is in no store, on the base of another's entry; `sha256` may be any text that no other
    has."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in adapter.tensors.values())
    told = replace(like, name=name, aliases=(), sha256=sha256, num_parameters=adapter.num_parameters, bytes=size)
    tables.add(name, told, adapter)


def scored_rows(
    data: str | Sequence[str], tasks: Mapping[str, Task], columns: Mapping[str, str], by: str | None
) -> tuple[pa.Table, str]:
    """All rows that `data` names, checked by every task, and what they are called.

    Args:
        tasks: by ref. columns: the task's column -> the files' column. by: one more column, by which rows are scored.
    """
    classes = {id(task): task for task in tasks.values()}.values()
    roles: dict[str, Column] = {}
    for task in classes:
        roles |= {columns.get(name, name): column for name, column in asked(type(task), training=True).items()}
    if by is not None and by not in roles:
        roles[by] = Column(("text",), "optional", "what rows are scored by")
    files = find_files(data, "test")
    pieces = settle([Piece(file, number) for number, file in enumerate(files)], roles)
    parts = [(piece.file.path, read_piece(piece, roles, roles)) for piece in pieces]
    for where, part in parts:
        if by is not None and by not in part.column_names:
            raise DataError(f"{where} has no column {by!r} to score by{did_you_mean(by, part.column_names)}")
    for task in classes:
        seen = [(where, view(part, type(task), columns, training=True, where=where)) for where, part in parts]
        check_tables(task, task.spec, seen)
    return pa.concat_tables([part for _, part in parts], promote_options="permissive"), say_given(data)


def answers_to(tables: TableAnswers, rows: TableRows, refs: Sequence[str]) -> dict[str, list[Json]]:
    """Each adapter's answer to every row; AdapterError where one answers what is no number."""
    every = range(rows.table.num_rows)
    found: dict[str, list[Json]] = {ref: [] for ref in refs}
    for ref, _, answers in tables.each(rows, dict.fromkeys(refs, every)):
        assert ref is not None
        found[ref] += [_sound(ref, answer) for answer in answers]
    return found


def _sound(ref: str, answer: Answer) -> Json:
    if answer.error is not None:
        raise AdapterError(f"{ref}: {answer.error}")
    return answer.prediction


def features_of(rows: TableRows, task: Task, chosen: Sequence[int]) -> list[Features]:
    """The rows' features, by their number; those that this task cannot read are left out."""
    return [feature for feature in rows.features(task, chosen) if not isinstance(feature, str)]


def _slices(table: pa.Table, by: str | None) -> dict[str | None, list[int]]:
    """Numbers of all rows (None), and of those of each value of the column."""
    slices: dict[str | None, list[int]] = {None: list(range(table.num_rows))}
    if by is not None:
        values = ["" if value is None else str(value) for value in table.column(by).to_pylist()]
        for row, value in sorted(enumerate(values), key=lambda one: one[1]):
            slices.setdefault(value, []).append(row)
        if len(slices) > _MOST_SLICES:
            raise DataError(f"column {by!r} has {len(slices) - 1:,} values; score by one of at most {_MOST_SLICES:,}")
    return slices


def _scores(
    tables: TableAnswers,
    pinned: Pinned,
    rows: TableRows,
    tasks: Mapping[str, Task],
    answers: Mapping[str, list[Json]],
    name: str | None,
    chosen: list[int],
) -> list[dict[str, Json]]:
    """A line for each adapter in one slice, in the order in which they were named."""
    found: dict[str, dict[str, Scored]] = {}
    for ref, task in tasks.items():
        found[ref] = intervals(task, [answers[ref][row] for row in chosen], features_of(rows, task, chosen))
    first: Task = next(iter(tasks.values()))
    metric, mode = first.metric, first.metrics[first.metric]
    best = (max if mode == "max" else min)(found, key=lambda ref: found[ref][metric].value)
    return [
        {
            "ref": _name(pinned, ref),
            "sha256": None if ref == BASE else tables.pinned.entries[ref].sha256,
            "slice": name,
            "rows": len(chosen),
            "metrics": {
                key: {"value": scored.value, "low": scored.low, "high": scored.high} for key, scored in mine.items()
            },
            "best": ref == best,
            "as_good": ref == best or as_good(mine[metric], found[best][metric], mode),
        }
        for ref, mine in found.items()
    ]


def _name(pinned: Pinned, ref: str) -> str:
    """`name@version` of what is in the store."""
    return pinned.entries[ref].ref if ref in pinned.entries else ref
