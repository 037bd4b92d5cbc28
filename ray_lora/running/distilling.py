"""A teacher's soft targets of a recipe's training rows, computed once for all adapters, epochs and trials.

    source = with_soft_targets(recipe, source, base)              # by a task of Ray's, or found in the cache

What is kept lies in the row cache under all that it follows from: the teacher's content, its base, the rows, and how
teacher and student read them. It knows bases and rows, not what is done with soft targets.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray

from ray_lora.bases.base import Base
from ray_lora.bases.load import describe_base, load_base
from ray_lora.data.encoded import write_rows
from ray_lora.data.encoder import Encoder
from ray_lora.data.row_cache import RowCache
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, RayLoraError, RecipeError
from ray_lora.inference.adopt import check_answers, mounted
from ray_lora.inference.teacher import SoftTargets, soft_targets
from ray_lora.inference.windows import spread_windows
from ray_lora.recipe import BaseSpec, LoraSpec, Recipe, TaskSpec
from ray_lora.running.encoding import task_environment
from ray_lora.running.large import LARGE_ROWS, Encoded
from ray_lora.running.reading import reading
from ray_lora.running.sources import Source
from ray_lora.running.teachers import Teacher, anywhere, find_teacher
from ray_lora.tasks import Features, Row, Task, build_task
from ray_lora.tasks.soft_targets import SOFT, Distilled

_FORM = 1  # of what is kept; another one finds nothing of this one's
_AT_ONCE = 1024  # rows encoded in one call


def with_soft_targets(recipe: Recipe, source: Source, base: Base, quiet: bool = True) -> Source:
    """The source with its teacher's soft targets in Ray's object store; the very source where there is no teacher.

    Raises:
        RayLoraError: as `find_teacher`; or there are too many rows, or the teacher reads them in other tokens.
    """
    if recipe.distillation.teacher is None:
        return source
    blocks = source.splits["train"]
    if isinstance(blocks, Encoded):
        raise RecipeError(
            f"distillation is for fewer than {LARGE_ROWS:,} training rows, and there are {blocks.rows:,}; give a part "
            "of them, or leave distillation.teacher out"
        )
    teacher = find_teacher(recipe, source.task, base)
    soft = _kept(teacher, recipe, source, base)
    if soft is None:
        student = (source.task, anywhere(recipe.base, base))
        rows = source.rows("train")
        with reading(recipe.name, quiet) as tell:
            tell("the teacher answers", 0, 1, 0, rows)
            gpus = 1 if recipe.scaling.use_gpu else 0
            compute: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_calls=1)(_computed)  # its memory is given back
            found = compute.remote(teacher, student, task_environment(), *(block.ref for block in blocks))
            try:
                soft = cast(SoftTargets, ray.get(found))
            except RayLoraError as error:  # a RayTaskError is one too; its own message is a traceback
                raise getattr(error, "cause", error) from None
            tell("the teacher answers", 1, 1, rows, rows)
        _keep(teacher, recipe, source, base, soft)
    identity = {"teacher.ref": teacher.ref, "teacher.hash": teacher.sha256}
    return replace(source, soft=ray.put(soft), identity=source.identity | identity)


def _computed(
    teacher: Teacher, student: tuple[TaskSpec, BaseSpec], variables: dict[str, str], *blocks: pa.Table
) -> SoftTargets:
    """What a task of Ray's runs."""
    import torch

    os.environ.update(variables)
    torch.set_num_threads(1)
    rows = [row for block in blocks for row in block.to_pylist()]
    engine, slot, task = _mounted(teacher)
    features = list(_encoded(task, rows))
    spec, base = student
    if cast(Distilled, task).agreement in ("pieces", "vocabulary"):
        _check_pieces(teacher, task, features, build_task(spec, describe_base(base).processor), rows)
    found = soft_targets(engine, slot, task, features)
    engine.close()
    if teacher.order is None:
        return found
    columns = [*teacher.order, *range(len(teacher.order), found.values.shape[1])]  # what follows is of no label
    return SoftTargets(found.values[:, columns], found.begins)


def _mounted(teacher: Teacher) -> tuple[AdapterEngine, int, Task]:
    """An engine that holds the teacher alone, its slot and its task."""
    base = load_base(teacher.base, teacher.device)
    task = build_task(teacher.spec, base.processor)
    if teacher.adapter is not None:
        engine, slot = mounted(teacher.adapter, base)
        check_answers(teacher.spec, engine.residents[slot].head)
        return engine, slot, task
    engine = AdapterEngine(base, slots=1, max_rank=1)
    head = replace(task.head, labels=())  # rows of its own head in their own order
    engine.reserve_head(head)
    heads = engine.heads[head.architecture]
    if set(heads.trained(head.num_labels)) != set(heads.shapes(head.num_labels)):
        raise AdapterError(
            f"teacher {teacher.ref!r} has no trained head of {head.num_labels} outputs for {teacher.spec.type}; give "
            "one that was saved with its head, or a ref in the store"
        )
    return engine, engine.init(LoraSpec(r=1), head, seed=0), task


def _encoded(task: Task, rows: Sequence[Row]) -> Iterator[Features]:
    for at in range(0, len(rows), _AT_ONCE):
        yield from task.encode(rows[at : at + _AT_ONCE])


def _check_pieces(
    teacher: Teacher, task: Task, features: Sequence[Features], student: Task, rows: Sequence[Row]
) -> None:
    """RecipeError where the teacher reads a row in other tokens than the student."""

    def pieces(task: Task, row: Features) -> list[list[int]]:
        return [window["input_ids"] for window in spread_windows({0: task}, [row], [0]).features]

    for number, (theirs, mine) in enumerate(zip(features, _encoded(student, rows), strict=True), start=1):
        if pieces(task, theirs) != pieces(student, mine):
            raise RecipeError(
                f"teacher {teacher.ref!r} reads training row {number} in other tokens than the recipe's base; "
                f"{teacher.spec.type} is taught by a base with the same tokenizer"
            )


# -------------------------------------------------------------------- kept


def _places(teacher: Teacher, recipe: Recipe, source: Source, base: Base) -> tuple[str, str]:
    """What the soft targets follow from, rows apart, and the rows, as names in the row cache."""
    read_by = Encoder.of(source.task, base.processor, recipe.data.columns).key
    key = hashlib.sha256(json.dumps([SOFT, _FORM, *teacher.follows, read_by]).encode()).hexdigest()[:32]
    return key, source.identity["train.sha256"]


def _kept(teacher: Teacher, recipe: Recipe, source: Source, base: Base) -> SoftTargets | None:
    """What was computed before; None where it was not, or is not whole."""
    try:
        file = RowCache().open(*_places(teacher, recipe, source, base))
    except OSError:
        return None
    if len(file) != source.rows("train"):
        return None
    return SoftTargets.of([cast("np.ndarray[Any, Any]", file[row][SOFT]) for row in range(len(file))])


def _keep(teacher: Teacher, recipe: Recipe, source: Source, base: Base, soft: SoftTargets) -> None:
    cache = RowCache()
    encoder, piece = _places(teacher, recipe, source, base)
    with cache.making(encoder, piece, f"soft targets of {teacher.ref} for {teacher.spec.type}") as path:
        if path is not None:
            write_rows(path, (({SOFT: row}, len(row)) for row in soft))
    cache.trim()
