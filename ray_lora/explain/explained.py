"""Adapters of a store explained: everything this room knows of them, as one object.

    told = explain(["tweets@champion"], data="test.parquet", inputs=["what a lovely day"])
    told["adapters"][0]["layers"][0]["relative"]

It knows stores, files and bases; what each part means stands in its own module. A part that a task does not have, or
for which nothing was given, is named under `left_out` with the reason.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.base import Base
from ray_lora.bases.load import load_base
from ray_lora.engine.brought import check_base
from ray_lora.explain import attribution
from ray_lora.explain.attribution import Attributed, Attributor
from ray_lora.explain.change import changes
from ray_lora.explain.likeness import neighbours
from ray_lora.explain.reliability import reliability, why_not
from ray_lora.explain.report import write
from ray_lora.explain.switched_off import switched_off
from ray_lora.inference.comparing import answers_to, features_of, scored_rows
from ray_lora.inference.pinned import SLOTS, Pinned, pin_all
from ray_lora.inference.stored import encode_inputs, named_base
from ray_lora.inference.table_rows import TableRows
from ray_lora.inference.tables import TableAnswers
from ray_lora.recipe import BaseSpec, Json
from ray_lora.store import Entry, Store, open_store
from ray_lora.store.reports import check_keeps, keep_report, report_from
from ray_lora.tasks import Task, build_task

NO_ROWS = "no rows were given; give --data"
NO_INPUT = "no input was given; give --input"
NO_TASK = "its card names no task; say it once: ray-lora adapters import FOLDER NAME --task TYPE"


def explain(
    refs: Sequence[str],
    store: str = "./store",
    *,
    data: str | Sequence[str] | None = None,
    inputs: Sequence[Json] = (),
    columns: Mapping[str, str] | None = None,
    base: str | None = None,
    tracking_uri: str | None = None,
    output: str | None = None,
    keep: bool = False,
) -> dict[str, Json]:
    """What each adapter changes, what its layers are worth, who is like it, and what its answers follow from.

    Args:
        data: rows that score, as `compare` takes them: for `switched_off` and `reliability`.
        inputs: to be answered and attributed, as `predict_ref` takes them.
        columns: the task's column -> the files' column.
        base: where the base is, when not where each adapter says.
        output: a folder for `explain.html`, `explain.json` and plots.
        keep: the figures in the store too, beside each adapter, for the endpoint's page; no input is kept.

    Returns:
        `{"data", "rows", "adapters", "files"}`; each adapter has `ref`, `sha256`, `base`, `task`, `parameters`,
        `temperature`, `layers`, `nearest`, `switched_off`, `reliability`, `attributions` and `left_out`.

    Raises:
        RayLoraError: a ref, the base, a file, a row or an input is wrong.
    """
    opened = open_store(store, tracking_uri)
    if keep:
        check_keeps(opened)
    pinned = pin_all(opened, refs)
    adapters = {ref: opened.load(pinned.entries[ref].ref)[1] for ref in refs}
    bases: dict[BaseSpec, Base] = {}
    told: dict[str, dict[str, Json]] = {}
    for ref, adapter in adapters.items():
        entry = pinned.entries[ref]
        model = base or named_base(entry.base or adapter.card.base, ref)
        spec = adapter.card.spec_of(model, adapter.card.base_dtype or "float32")
        if spec not in bases:
            bases[spec] = load_base(spec)
        check_base(adapter, bases[spec])
        told[ref] = _alone(opened, entry, adapter, bases[spec], inputs)
    bases.clear()  # the rows' engines load their own, in the dtype in which they answer
    rows, where = 0, None
    if data is not None:
        rows, where = _with_rows(opened, pinned, adapters, told, data, columns, base)
    if keep:
        for ref, found in told.items():
            keep_report(opened, report_from(found), pinned.entries[ref])
    result: dict[str, Json] = {"data": where, "rows": rows, "adapters": list(told.values()), "files": []}
    if output is not None:
        result["files"] = write(result, Path(output))
    return result


def _alone(store: Store, entry: Entry, adapter: Adapter, base: Base, inputs: Sequence[Json]) -> dict[str, Json]:
    """What can be said without rows."""
    left_out: dict[str, str] = {}
    attributions: list[Json] = []
    if not inputs:
        left_out["attributions"] = NO_INPUT
    elif adapter.card.task is None:
        left_out["attributions"] = NO_TASK
    else:
        task = build_task(adapter.card.task, base.processor)
        why = attribution.why_not(task)
        if why is None:
            attributions = _attributions(base, adapter, task, inputs)
        else:
            left_out["attributions"] = why
    layers = changes(adapter, base)
    near = neighbours(store, entry, adapter)
    return {
        "ref": entry.ref,
        "sha256": entry.sha256,
        "base": base.id,
        "task": entry.task.type if entry.task else None,
        "parameters": adapter.num_parameters,
        "temperature": adapter.card.temperature,
        "layers": [asdict(layer) for layer in layers],
        "nearest": asdict(near),
        "switched_off": None,
        "reliability": None,
        "attributions": attributions,
        "left_out": left_out | {"switched_off": NO_ROWS, "reliability": NO_ROWS},
    }


def _attributions(base: Base, adapter: Adapter, task: Task, inputs: Sequence[Json]) -> list[Json]:
    """Each input's."""
    features = encode_inputs(task, inputs)
    with Attributor(base, adapter, task) as attributor:
        return [
            {"input": _short(value), **_plain(attributor.of(feature))}
            for value, feature in zip(inputs, features, strict=True)
        ]


def _plain(found: Attributed) -> dict[str, Json]:
    picture = None if found.picture is None else _png(found.picture)
    return {
        "target": found.target,
        "tokens": found.tokens,
        "picture": picture,
        "adapter": asdict(found.adapter),
        "base": asdict(found.base),
    }


def _png(pixels: Tensor) -> str:
    """[channels, height, width] from 0 to 1 as a PNG's base64."""
    from PIL import Image

    shown = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(shown[..., 0] if shown.shape[2] == 1 else shown).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _with_rows(
    store: Store,
    pinned: Pinned,
    adapters: Mapping[str, Adapter],
    told: Mapping[str, dict[str, Any]],
    data: str | Sequence[str],
    columns: Mapping[str, str] | None,
    base: str | None,
) -> tuple[int, str]:
    """Add what rows say; how many they are, and what they are called."""
    slots = min(SLOTS, 1 + max(len(adapter.layers) for adapter in adapters.values()))
    tables = TableAnswers(store, pinned, base=base, columns=columns, scoring=True, slots=slots)
    try:
        tasks = {ref: tables.task(ref) for ref in adapters}
        table, where = scored_rows(data, tasks, dict(columns or {}), None)
        rows = TableRows(table, columns, training=True, keep=True)
        for ref, answers in answers_to(tables, rows, list(tasks)).items():
            mine = told[ref]
            order = [layer["layer"] for layer in mine["layers"]]
            off = switched_off(tables, rows, ref, adapters[ref], answers, order)
            mine["switched_off"] = {**asdict(off), "largest": None if off.largest is None else asdict(off.largest)}
            del mine["left_out"]["switched_off"]
            why = why_not(tasks[ref])
            if why is not None:
                mine["left_out"]["reliability"] = why
                continue
            features = features_of(rows, tasks[ref], range(table.num_rows))
            mine["reliability"] = asdict(reliability(tasks[ref], answers, features))
            del mine["left_out"]["reliability"]
    finally:
        tables.close()
    return table.num_rows, where


def _short(value: Json) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:199] + "…"
