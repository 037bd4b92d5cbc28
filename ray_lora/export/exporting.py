"""Stored adapters of one base and one task as a folder that runs without torch.

    export_refs(["moods@champion", "spam"], Path("edge"))          # one graph, both adapters' arrays beside it
    export_refs(["moods"], Path("edge"), merge=True)               # one graph with the adapter in its weights

The folder is written whole or not at all: a graph whose answers differ from PyTorch's by more than 1e-4 is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ray_lora.adapters.adapter import Adapter
from ray_lora.atomic import check_free, new_folder
from ray_lora.bases.base import Base
from ray_lora.bases.load import load_base
from ray_lora.data.rows import read_rows
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.export.bundle import Held, write_bundle
from ray_lora.export.kinds import Kind, kind_of
from ray_lora.export.onnx_file import check_installed
from ray_lora.export.parity import wanted_of
from ray_lora.export.program import check_executorch, check_program, write_program
from ray_lora.export.prompts import positions_of, to_answer
from ray_lora.export.writing import write_steps
from ray_lora.export.written_rows import written_of
from ray_lora.inference.stored import named_base, task_in
from ray_lora.inference.windows import Windowed
from ray_lora.recipe import BaseSpec, DataSpec, Json
from ray_lora.store import Entry, open_store
from ray_lora.tasks import Row, Task
from ray_lora.tasks.prompted import Prompted
from ray_lora.tasks.rows import answering, may_have

Format = Literal["onnx", "executorch"]


def export_refs(
    refs: Sequence[str],
    folder: Path,
    *,
    merge: bool = False,
    int8: bool = False,
    format: Format = "onnx",
    data: str | None = None,
    columns: Mapping[str, str] | None = None,
    store: str = "./store",
    base: str | None = None,
    tracking_uri: str | None = None,
) -> dict[str, Json]:
    """Write a bundle; returns its card.

    Args:
        folder: is made; it must not be there, or be empty.
        merge: the adapter's numbers go into the weights, and no other can take its place.
        int8: the base's products and tables have weights of 8 bits.
        format: ExecuTorch's programs hold one adapter, merged, and answer one row at a time.
        data: rows to compare with PyTorch on, a file, a folder or a glob; else rows without meaning are drawn.

    Raises:
        RecipeError: a task or base that is not supported, or options that do not fit each other.
        AdapterError: the adapters are not of one base and task, or the graph does not answer as PyTorch does.
        RayLoraError: as `open_ref`.
    """
    program = format == "executorch"
    if program and int8:
        raise RecipeError("--int8 makes ONNX graphs, and an ExecuTorch program's weights stay floats; give one of both")
    (check_executorch if program else check_installed)()
    merge = merge or program
    if merge and len(refs) > 1:
        what = "an ExecuTorch program has one adapter in the" if program else "--merge puts one adapter into the"
        raise RecipeError(f"{what} weights, and {len(refs)} are given; export them apart")
    check_free(folder)
    loaded = [open_store(store, tracking_uri).load(ref) for ref in refs]
    entry, adapter = loaded[0]
    model = base or named_base(entry.base or adapter.card.base, entry.ref)
    if (bits := next((one.card.base_dtype for _, one in loaded if one.card.base_dtype), None)) is not None:
        raise RecipeError(
            f"an adapter was trained on a base in {bits}, of which no graph is made; train it on the float base, and "
            "--int8 gives its graph weights of 8 bits"
        )
    opened = load_base(BaseSpec(model=model, dtype="float32"))
    held, inputs, kind = _answered(loaded, opened, data, columns or {}, int8, program)
    with new_folder(folder) as whole:
        whole.mkdir()
        if program:
            return write_program(whole, held[0], inputs, opened, kind)
        if kind.writes:
            return write_steps(whole, held, inputs, opened, kind, merge, int8)
        return write_bundle(whole, held, inputs, opened, kind, merge, int8)


def _answered(
    loaded: Sequence[tuple[Entry, Adapter]],
    base: Base,
    data: str | None,
    columns: Mapping[str, str],
    int8: bool,
    program: bool,
) -> tuple[list[Held], list[Any], Kind]:
    """What every adapter says in PyTorch to the rows, and the rows as a runner is given them."""
    adapters = [adapter for _, adapter in loaded]
    pairs = [pair for adapter in adapters for pair in adapter.layers.values()]
    engine = AdapterEngine(
        base,
        slots=len(adapters),
        max_rank=max((pair.rank for pair in pairs), default=1),
        embeddings=any(pair.embedding for pair in pairs),
    )
    try:
        slots = [engine.load(adapter) for adapter in adapters]
        tasks = [task_in(engine, slot, adapter, one.ref) for slot, (one, adapter) in zip(slots, loaded, strict=True)]
        kind = kind_of(tasks[0], base)
        if program:
            check_program(tasks[0].spec.type, kind)
        for task, (entry, _) in zip(tasks, loaded, strict=True):
            if kind_of(task, base) is not kind:
                raise AdapterError(
                    f"{entry.ref} does {task.spec.type} and {loaded[0][0].ref} {tasks[0].spec.type}; one graph has one "
                    "task: export them apart"
                )
        sizes = dict.fromkeys(json.dumps(kind.of_adapter(task, base).get("size")) for task in tasks)
        if len(sizes) > 1:
            raise AdapterError(
                f"one graph reads pictures of one size, and the adapters read {', '.join(sizes)}; export them apart"
            )
        if int8 and kind.ranged and data is None:
            raise RecipeError(
                f"--int8 of {tasks[0].spec.type} takes each layer's range from rows, and none are given; give --data"
            )
        rows = [row for row in _rows(tasks[0], kind, base, data, columns) if _is_whole(tasks, row, base)]
        if not rows:
            raise RecipeError(
                "every row is longer than what is read at once, and a runner reads no windows; give shorter ones"
            )
        names = _names([entry for entry, _ in loaded])
        held = []
        for slot, task, name, (entry, adapter) in zip(slots, tasks, names, loaded, strict=True):
            spec = engine.residents[slot].head
            assert spec is not None  # `task_in` has seen to it
            whole = engine.export(slot, adapter.card)
            answers = (written_of if kind.writes else wanted_of)(engine, slot, task, rows)
            held.append(Held(name, entry, whole, spec, task, answers))
    finally:
        engine.close()
    asked = {*answering(tasks[0]), *may_have(tasks[0])}
    return held, [{key: row[key] for key in row if key in asked} for row in rows], kind


def _names(entries: Sequence[Entry]) -> list[str]:
    """Names in the bundle: the store's, with the version where two versions of one name are in it."""
    names = [entry.name for entry in entries]
    told = [f"{one.name}-{one.version}" if names.count(one.name) > 1 else one.name for one in entries]
    if len(set(told)) < len(told):
        raise RecipeError(f"an adapter is given twice: {', '.join(told)}; give each once")
    return told


def _rows(task: Task, kind: Kind, base: Base, data: str | None, columns: Mapping[str, str]) -> Sequence[Row]:
    if data is None:
        return kind.drawn(base, task)
    table = read_rows(data, DataSpec(columns=dict(columns)), _unlabelled(task), "test").table
    rows: list[Row] = table.slice(0, kind.most).to_pylist()
    return [to_answer({key: value for key, value in row.items() if value is not None}) for row in rows]


def _is_whole(tasks: Sequence[Any], row: Row, base: Base) -> bool:
    """Whether all adapters read a row in one window, and a prompt leaves room for an answer; what does not is left out
    of the comparison."""
    prompts = [len(task.prompt(row[task.input])) for task in tasks if isinstance(task, Prompted)]
    if not all(0 < count < (positions_of(base) or count + 1) for count in prompts):
        return False
    windowed: list[Any] = [task for task in tasks if isinstance(task, Windowed)]
    return all(len(task.windows(task.encode([row])[0])) == 1 for task in windowed)


def _unlabelled(task: Task) -> Mapping[str, Any]:
    """Columns of rows to be answered."""
    asked = {*answering(task), *may_have(task)}
    return {name: column for name, column in task.columns.items() if name in asked}
