"""A base cut to a share of its layers' parameters, by what one adapter's gradients say of its units.

    card = prune_ref("tweets", Path("bases/small"), keep=0.4, data="data/tweets/train.parquet")
    card["after"]["layer_parameters"], card["after"]["ms_a_row"]

The folder is a base of its own, with its own fingerprint; it is written whole or not at all. This module knows stores,
files and tasks; how units are scored, chosen, cut and fitted anew stands in this room's other modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_lora.adapters.adapter import Adapter
from ray_lora.atomic import check_free, new_folder
from ray_lora.bases.base import Base
from ray_lora.bases.load import describe_base, load_base
from ray_lora.data.check import check_tables
from ray_lora.data.pieces import digest
from ray_lora.data.rows import read_rows
from ray_lora.engine import AdapterEngine
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.adopt import mounted
from ray_lora.inference.predict import predict
from ray_lora.inference.stored import named_base, task_in
from ray_lora.inference.windows import spread_windows
from ray_lora.pruning.cut import cut_adapter, cut_config, cut_state
from ray_lora.pruning.folder import Whole, copy_whole, read_whole, write_card, write_cut
from ray_lora.pruning.importance import check_targets, importance_of
from ray_lora.pruning.kinds import Kind, kind_of
from ray_lora.pruning.latency import milliseconds
from ray_lora.pruning.plan import Plan, best_plan, random_plan, whole_plan
from ray_lora.pruning.refit import refit
from ray_lora.pruning.shapes import Shape, Sizes, shapes_within
from ray_lora.recipe import BaseSpec, DataSpec, Json
from ray_lora.store import Entry, open_store
from ray_lora.tasks import Features, Task, scoring_of

MOST_ROWS = 1024
_TIMED = 32  # rows, one at a time


@dataclass(frozen=True)
class _Origin:
    """What is cut, and by what."""

    entry: Entry
    adapter: Adapter
    base: Base
    kind: Kind
    sizes: Sizes
    task: Task
    features: Sequence[Features]
    rows_sha256: str
    whole: Whole
    prefix: str  # of the adapter's names
    score: float


def prune_ref(
    ref: str,
    folder: Path,
    *,
    keep: float,
    data: str | Sequence[str],
    layers: int | None = None,
    rows: int = MOST_ROWS,
    random: int | None = None,
    columns: Mapping[str, str] | None = None,
    store: str = "./store",
    base: str | None = None,
    tracking_uri: str | None = None,
) -> dict[str, Json]:
    """Write a smaller base; returns its card, which is also `pruning.json` in the folder.

    Args:
        ref: an adapter of the base, trained on the task that the smaller base is for.
        folder: is made; it must not be there, or be empty.
        keep: the share of the layers' parameters that stays, above 0 and at most 1; embeddings and heads are not
            counted and stay whole.
        data: rows with targets, of which `rows`, drawn, are read for the gradients.
        layers: so many layers stay; else as many as keep the most importance.
        random: a seed that draws the units in the place of their importance, to compare with; the shape stays.
        columns: the task's column -> the file's column.

    Raises:
        RecipeError: an option is wrong. BaseModelError: the kind of base is not supported.
        AdapterError: the adapter leaves layers out that would have to be scored.
        RayLoraError: as `open_ref`, and for wrong rows.
    """
    check_asked(folder, keep, rows)
    entry, adapter = open_store(store, tracking_uri).load(ref)
    opened = load_base(BaseSpec(model=base or named_base(entry.base or adapter.card.base, entry.ref), dtype="float32"))
    kind = kind_of(opened)
    sizes = Sizes.of(opened.backbone, opened.config, kind)
    shapes = shapes_within(sizes, keep, layers)
    whole = read_whole(opened)
    engine, slot = mounted(adapter, opened)
    try:
        prefix = engine.residents[slot].prefix
        if shapes != [sizes.whole]:
            check_targets(adapter, prefix, kind, sizes)
        task = task_in(engine, slot, adapter, entry.ref)
        features, mark = _rows(task, data, columns or {}, rows)
        score = _score(engine, slot, task, features)
    finally:
        engine.close()
    origin = _Origin(entry, adapter, opened, kind, sizes, task, features, mark, whole, prefix, score)
    plan = _plan(origin, shapes, random)
    with new_folder(folder) as fresh:
        return _write(fresh, origin, plan, keep, "random" if random is not None else "lora")


def check_asked(folder: Path, keep: float, rows: int) -> None:
    """RecipeError for what can be known to be wrong before a base is loaded."""
    check_free(folder)
    if not 0 < keep <= 1:
        raise RecipeError(f"--keep {keep} is no share of a base; give one above 0 and up to 1, such as 0.4")
    if rows < 1:
        raise RecipeError(f"--rows {rows} must be at least 1")


def check_base(spec: BaseSpec, keep: float, layers: int | None = None) -> None:
    """Whether a base can be cut so, from its config alone.

    Raises:
        BaseModelError, RecipeError: as `prune_ref`.
    """
    base = describe_base(spec)
    shapes_within(Sizes.of(base.backbone, base.config, kind_of(base)), keep, layers)


def _rows(task: Task, data: str | Sequence[str], columns: Mapping[str, str], most: int) -> tuple[list[Features], str]:
    """At most so many encoded rows, drawn, and the digest of all their files."""
    read = read_rows(data, DataSpec(columns=dict(columns)), task.columns, "train")
    check_tables(task, task.spec, read.tables)
    total = read.table.num_rows
    if total == 0:
        raise DataError(f"{read.given} has no rows; give some with targets")
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(0))[:most]
    return task.encode(read.table.take(chosen.tolist()).to_pylist()), digest(read.files)


def _plan(origin: _Origin, shapes: Sequence[Shape], random: int | None) -> Plan:
    """What stays; rows are read for it unless everything does."""
    if list(shapes) == [origin.sizes.whole]:
        return whole_plan(origin.sizes)
    begins = origin.whole.prefix
    weights = {
        name.removeprefix(begins).removesuffix(".weight"): tensor
        for name, tensor in origin.whole.state.items()
        if name.startswith(begins) and name.endswith(".weight") and tensor.dim() > 1
    }
    ranks = [pair.rank for pair in origin.adapter.layers.values()]
    engine = AdapterEngine(origin.base, slots=1, max_rank=max(ranks, default=1), train=True)
    try:
        slot = engine.load(origin.adapter)
        worth = importance_of(
            engine, slot, origin.adapter, origin.task, origin.features, weights, origin.kind, origin.sizes
        )
    finally:
        engine.close()
    best = best_plan(worth, origin.sizes, shapes)
    return best if random is None else random_plan(origin.sizes, best.shape, random)


def _write(folder: Path, origin: _Origin, plan: Plan, keep: float, scored_by: str) -> dict[str, Json]:
    """The folder with its weights and its card."""
    base, sizes, whole = origin.base, origin.sizes, origin.whole
    card = _card(folder.name, origin, plan, keep, scored_by)
    if plan.shape == sizes.whole:
        copy_whole(folder, base, card)
    else:
        card["left_out"] = list(whole.left)
        state = dict(whole.state)
        engine = AdapterEngine(base, slots=1, max_rank=1)
        try:
            state |= refit(engine, origin.task, origin.features, state, whole.prefix, origin.kind, plan, sizes)
        finally:
            engine.close()
        small = cut_state(state, whole.prefix, origin.kind, plan, sizes)
        write_cut(folder, base, whole, small, cut_config(whole.model.config, plan.shape, sizes), card)
    cut = load_base(BaseSpec(model=str(folder), dtype="float32"))
    card["fingerprint"] = cut.fingerprint
    after = _cut_score(origin, plan, cut)
    windows = spread_windows({0: origin.task}, origin.features[:_TIMED], [0] * len(origin.features[:_TIMED])).features
    inputs = [origin.task.collate([row]) for row in windows[:_TIMED]]
    times = milliseconds([base.backbone, cut.backbone], inputs)
    for told, one, value, time in zip(("before", "after"), (base, cut), (origin.score, after), times, strict=True):
        card[told] |= {"parameters": _count(one.backbone), "ms_a_row": time, "score": value}
    write_card(folder, card)
    return card


def _card(name: str, origin: _Origin, plan: Plan, keep: float, scored_by: str) -> dict[str, Any]:
    sizes = origin.sizes
    return {
        "name": name,
        "origin": origin.base.id,
        "origin_fingerprint": origin.base.fingerprint,
        "keep": keep,
        "share": sizes.parameters(plan.shape) / sizes.parameters(sizes.whole),
        "importance_kept": plan.share,
        "scored_by": scored_by,
        "ref": origin.entry.ref,
        "adapter_sha256": origin.entry.sha256,
        "rows": len(origin.features),
        "rows_sha256": origin.rows_sha256,
        "metric": origin.task.metric,
        "layers": list(plan.layers),
        "left_out": [],
        "before": _shape(sizes, sizes.whole),
        "after": _shape(sizes, plan.shape),
    }


def _shape(sizes: Sizes, shape: Shape) -> dict[str, Json]:
    return {
        "layers": shape.layers,
        "feed_forward_rows": None if shape.channels else shape.rows,
        "channels": shape.rows if shape.channels else None,
        "key_value_heads": shape.groups,
        "layer_parameters": sizes.parameters(shape),
    }


def _score(engine: AdapterEngine, slot: int, task: Task, features: Sequence[Features]) -> float:
    """The task's metric of the adapter in a slot."""
    options = [scoring_of(task)] * len(features)
    answers = predict(engine, {slot: task}, features, [slot] * len(features), options)
    return float(task.score(answers, features)[task.metric])


def _cut_score(origin: _Origin, plan: Plan, cut: Base) -> float:
    """The metric of the adapter cut like the base, before anything is trained on it."""
    small = cut_adapter(origin.adapter, origin.prefix, origin.kind, plan, origin.sizes)
    told = small.card.model_copy(update={"base": cut.id, "base_fingerprint": cut.fingerprint, "sha256": None})
    engine, slot = mounted(replace(small, card=told), cut)
    try:
        return _score(engine, slot, task_in(engine, slot, small, origin.entry.ref), origin.features)
    finally:
        engine.close()


def _count(backbone: nn.Module) -> int:
    return sum(parameter.numel() for parameter in backbone.parameters())
