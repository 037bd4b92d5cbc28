"""Who teaches a recipe's adapters, and whether it can: an adapter of the store, or a bare model with a head of its own.

    teacher = find_teacher(recipe, spec, base)          # its task, its labels and its tokenizer fit; nothing is loaded

It knows cards and configs, no rows and no logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ray_lora.adapters.adapter import Adapter
from ray_lora.atomic import expanded
from ray_lora.bases.base import Base
from ray_lora.bases.load import describe_base
from ray_lora.data.encoder import Encoder
from ray_lora.errors import RecipeError
from ray_lora.inference.stored import named_base
from ray_lora.recipe import BaseSpec, Recipe, TaskSpec
from ray_lora.store import open_store
from ray_lora.tasks import build_task, task_of
from ray_lora.tasks.soft_targets import Distilled

_TEACHABLE = (
    "text-classification, image-classification, token-classification, question-answering, text-generation and "
    "object-detection on anchors do"
)


@dataclass(frozen=True)
class Teacher:
    """Who teaches, as it travels to where its answers are computed.

    Attributes:
        ref: `name@version`, or the folder or hub id of a bare model.
        sha256: of the adapter's content, or of the bare model's weights.
        base: its base, as any process of this cluster names it; device: where it answers.
        spec: the options under which it reads the student's rows.
        order: of each of the student's classes the teacher's column; None: they are alike.
        adapter: None of a bare model, whose own head answers.
        follows: all that its soft targets follow from, rows and student apart.
    """

    ref: str
    sha256: str
    base: BaseSpec
    device: str
    spec: TaskSpec
    order: tuple[int, ...] | None = None
    adapter: Adapter | None = None
    follows: tuple[str, ...] = ()


def find_teacher(recipe: Recipe, spec: TaskSpec, base: Base) -> Teacher:
    """The teacher of a recipe, checked against its task.

    Args:
        spec: the recipe's task, completed by its training rows.
        base: the student's, from `describe_base`.

    Raises:
        RecipeError: the task learns from no teacher, or the teacher has another task or other labels.
        RayLoraError: the teacher or its base cannot be found.
    """
    task = build_task(spec, base.processor)
    if not isinstance(task, Distilled):
        raise RecipeError(f"distillation.teacher is given, and {spec.type} learns from no teacher; {_TEACHABLE}")
    named = str(recipe.distillation.teacher)
    device = "cuda" if recipe.scaling.use_gpu else "cpu"
    found, described = _bare(named, spec, device) if "/" in named else _stored(recipe, named, device)
    if not _teaches(found.spec, spec, task):
        raise RecipeError(
            f"teacher {found.ref!r} is for {_say_kind(found.spec)}, and the recipe's task is {_say_kind(spec)}; give a "
            "teacher of the same task"
        )
    order = _order(found, spec)
    if task.agreement == "vocabulary" and base.processor.get_vocab() != described.processor.get_vocab():
        raise RecipeError(
            f"teacher {found.ref!r} writes in the tokens of {found.base.model}, and {recipe.base.model} has others; "
            f"{spec.type} is taught by a base with the same tokenizer"
        )
    try:
        reads = task.teaching(found.spec)
        theirs: Any = build_task(reads, described.processor)
    except RecipeError as error:
        raise RecipeError(f"teacher {found.ref!r} cannot read the recipe's rows: {error}") from None
    seen = getattr(task, "sees", None)
    if task.agreement == "input" and theirs.sees != seen:
        raise RecipeError(
            f"teacher {found.ref!r} sees {theirs.sees}, and {recipe.base.model} {seen}; "
            f"{spec.type} is taught by a base of the same input"
        )
    read_by = Encoder.of(reads, described.processor, recipe.data.columns).key
    follows = (found.sha256, described.fingerprint, str(described.dtype), repr(order), read_by)
    return replace(found, spec=reads, order=order, follows=follows)


def _teaches(spec: TaskSpec, mine: TaskSpec, task: Distilled) -> bool:
    """Whether a teacher's options are for this task; what writes reads its student's rows, whatever its own were."""
    kind, theirs = type(task), task_of(spec)
    alike = issubclass(kind, theirs) or issubclass(theirs, kind)
    return alike or (task.agreement == "vocabulary" and type(spec) is type(mine))


def _stored(recipe: Recipe, ref: str, device: str) -> tuple[Teacher, Base]:
    """An adapter of the recipe's store."""
    entry, adapter = open_store(recipe.store, recipe.tracking.uri).load(ref)
    if adapter.card.task is None:
        raise RecipeError(f"teacher {entry.ref!r} says no task; import it with its task: ray-lora adapters import")
    base = adapter.card.spec_of(named_base(entry.base or adapter.card.base, entry.ref))
    described = describe_base(base, device)
    found = Teacher(entry.ref, entry.sha256, anywhere(base, described), device, adapter.card.task, None, adapter)
    return found, described


def _bare(model: str, spec: TaskSpec, device: str) -> tuple[Teacher, Base]:
    """A model whose own head answers: it reads rows as the student does, and its config names its labels."""
    base = BaseSpec(model=model)
    described = describe_base(base, device)
    problem = getattr(described.config, "problem_type", None)
    if problem not in (None, getattr(spec, "problem_type", None) or "single_label_classification"):
        raise RecipeError(f"teacher {model!r} was trained for {problem}, and the recipe's task is {_say_kind(spec)}")
    if getattr(spec, "labels", None) is not None:
        if described.labels is None:
            raise RecipeError(f"teacher {model!r} has no names for its outputs; write id2label into its config.json")
        spec = spec.model_copy(update={"labels": described.labels})
    return Teacher(model, described.fingerprint, anywhere(base, described), device, spec), described


def anywhere(spec: BaseSpec, base: Base) -> BaseSpec:
    """The base as a process in another folder names it: a relative folder becomes an absolute one."""
    local = base.folder == expanded(spec.model)
    return spec.model_copy(update={"model": str(base.folder.resolve())}) if local else spec


def _order(teacher: Teacher, spec: TaskSpec) -> tuple[int, ...] | None:
    """Which of the teacher's columns is which of the student's labels."""
    mine, theirs = getattr(spec, "labels", None), getattr(teacher.spec, "labels", None)
    if mine is None or theirs is None or mine == theirs:
        return None
    odd = sorted(set(mine) ^ set(theirs))
    if odd:
        who = "the recipe" if odd[0] in theirs else "the teacher"
        raise RecipeError(
            f"teacher {teacher.ref!r} has the labels {', '.join(theirs)}, the recipe's are {', '.join(mine)}; {who} "
            f"lacks {odd[0]!r}: both must have the same"
        )
    return tuple(map(theirs.index, mine))


def _say_kind(spec: TaskSpec) -> str:
    problem = getattr(spec, "problem_type", None)
    return spec.type if problem is None else f"{spec.type} ({problem})"
