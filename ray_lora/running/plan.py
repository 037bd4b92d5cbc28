"""The plan: what a recipe will cost, and whether it can run, before anything starts.

The memory of a pack is its base, its slots and the activations of one pass:

    base          weights in the base's dtype
    one slot      each trained number as value, gradient and two moments (16 bytes), and a copy in the base's dtype
    one pass      `max_rows` rows of activations that the backward needs

    show(plan_recipe(Recipe.load("examples/tweets.yaml")))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from ray_lora.augmentation.apply import check_transforms
from ray_lora.bases.base import Base
from ray_lora.bases.load import describe_base, load_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.quantised import nbytes
from ray_lora.bounds import size_words
from ray_lora.engine import AdapterEngine
from ray_lora.engine.frozen import folded
from ray_lora.engine.packed import transposes
from ray_lora.engine.probe import is_known
from ray_lora.errors import CapacityError, RecipeError
from ray_lora.recipe import Json, LoraSpec, Recipe, TaskSpec, TransformSpec
from ray_lora.tasks import build_task
from ray_lora.training.head_teacher import check_head_teaches
from ray_lora.transform_spec import said

_MAX_SLOTS = 64
_STRETCH = 1.5  # how many jobs share a pack at most, in those that fill a pass
_MAX_ROWS = {"cpu": 64, "cuda": 512}  # of one pass: more fill the device no better
_BATCH = "training.per_device_train_batch_size"
_SHARE = 0.8  # of the free memory that a plan may use
_PASS = 0.4  # of it that a pass may, which has fewer rows where they are large


@dataclass(frozen=True)
class Plan:
    """One pack's size.

    Attributes:
        passes: how rows share a pass.
        max_rank: the largest rank any configuration may ask for.
        parameters: trained numbers of one adapter at the recipe's rank, head included.
        adapter_bytes: its file.
        base_bytes, slot_bytes, pass_bytes: memory of the base, of one slot and of one pass.
        slots: adapters a pack trains at once: as many as fill a pass, where there are so many.
        room: adapters that fit into the free memory, at least one.
    """

    base: str
    passes: str
    dtype: str
    device: str
    max_rank: int
    parameters: int
    adapter_bytes: int
    base_bytes: int
    slot_bytes: int
    pass_bytes: int
    free_bytes: int
    slots: int
    room: int
    max_rows: int

    @property
    def total_bytes(self) -> int:
        """Memory of a full pack."""
        return self.base_bytes + self.slots * self.slot_bytes + self.pass_bytes


def make_plan(recipe: Recipe, task: TaskSpec, base: Base, most_slots: int | None = None) -> Plan:
    """Check that every adapter the recipe can ask for fits its base, and size the pack.

    Args:
        task: the recipe's task, completed by its training rows.
        base: from `describe_base`.
        most_slots: adapters that could train at once (a search's trials); None when unknown.

    Raises:
        RecipeError: a target or a rank does not fit the base, or a transform the task's rows.
        CapacityError: not even one adapter fits in memory.
    """
    max_rank = largest_rank(recipe)
    built = build_task(task, base.processor)
    for transforms in [recipe.augmentation, *_augmentations(recipe)]:
        check_transforms(built, transforms)
    if recipe.training.head_teacher > 0 or "training.head_teacher" in (recipe.search.space or {}):
        check_head_teaches(built)
    head = built.head
    _probe_once(recipe, base, head)
    engine = AdapterEngine(base, slots=1, max_rank=max_rank, embeddings=targets_embeddings(recipe))
    engine.reserve_head(head)
    if recipe.training.head_start == "fitted" and base.own_outputs(head.architecture) is not None:
        raise RecipeError(
            f"training.head_start: fitted has nothing to fit: the head of {task.type} is the base's own and is never "
            "trained; leave it out"
        )
    for lora in lora_choices(recipe):
        engine.match(lora, head)
    slot = engine.init(recipe.lora, head, seed=0)
    passes = engine.sharing_of(slot).words
    parameters = sum(view.numel() for view in engine.read(slot).values())
    engine.close()
    numbers = engine.flat.shape[1] + sum(flat.shape[1] for flat in engine.head_flat.values())
    width = torch.empty(0, dtype=base.dtype).element_size()
    device = "cuda" if recipe.scaling.use_gpu else "cpu"
    base_bytes = _base_bytes(base, width, device)
    slot_bytes = numbers * (16 + (width if base.dtype != torch.float32 else 0))
    free = _free_memory(device)
    max_rows = _MAX_ROWS[device]
    longest = getattr(built, "positions", built.longest)  # of a task whose sizes are no positions of the backbone
    while max_rows > 1 and _activations(base, longest, max_rows) * width > _PASS * free:
        max_rows //= 2
    pass_bytes = _activations(base, longest, max_rows) * width
    fits = int((free * _SHARE - base_bytes - pass_bytes) // slot_bytes) - 1  # slot 0 takes a row too
    batch = min([recipe.training.per_device_train_batch_size, *choices(recipe, _BATCH)])
    filling = -(-max_rows // batch)  # adapters whose batches fill a pass
    wanted = recipe.scaling.slots or min(filling, _MAX_SLOTS, most_slots or _MAX_SLOTS)
    if fits < (recipe.scaling.slots or 1):
        least = recipe.scaling.slots or 1
        needed = base_bytes + pass_bytes + least * slot_bytes
        raise CapacityError(
            f"{least} adapters of rank {max_rank} on {base.id!r} need {size_words(needed)}, "
            f"{size_words(free * _SHARE)} may be used; lower lora.r or scaling.slots, or choose a smaller base"
        )
    return Plan(
        base=base.id,
        passes=passes,
        dtype=_name(base),
        device=device,
        max_rank=max_rank,
        parameters=parameters,
        adapter_bytes=4 * parameters,
        base_bytes=base_bytes,
        slot_bytes=slot_bytes,
        pass_bytes=pass_bytes,
        free_bytes=free,
        slots=max(1, min(wanted, fits)),
        room=max(1, fits),
        max_rows=max_rows,
    )


def slots_for(slots: int, room: int, jobs: int) -> int:
    """Slots of a pack that has so many jobs: a few more than fill a pass, rather than a second round for the last few.

    Args:
        slots: as many as fill a pass; room: as fit in memory.
    """
    return jobs if jobs <= min(room, _STRETCH * slots) else slots


def _probe_once(recipe: Recipe, base: Base, head: HeadSpec) -> None:
    """Load the base and compare, unless that was done before: a base that cannot share passes is refused here."""
    if not is_known(base, head):
        engine = AdapterEngine(load_base(recipe.base.model_copy(update={"dtype": _name(base)})), slots=1, max_rank=1)
        if not engine.sharing.refused:
            engine.reserve_head(head)
        engine.close()


def _name(base: Base) -> str:
    """As `base.dtype` says it."""
    return base.quantised or str(base.dtype).removeprefix("torch.")


def _base_bytes(base: Base, width: int, device: str) -> int:
    """The base's numbers where it trains, with what an engine keeps beside them."""
    if base.quantised is not None:
        return nbytes(base.backbone)
    weights = sum(p.numel() for p in base.backbone.parameters())
    return (weights + folded(base.backbone) + (transposes(base.backbone) if device == "cpu" else 0)) * width


def choices(recipe: Recipe, key: str) -> list[Any]:
    """The values a search can give to a recipe key, as far as its space names them; bounds of ranges."""
    values: list[Any] = []
    for name, sampler in (recipe.search.space or {}).items():
        if name == key:
            for argument in sampler.values():
                values += list(argument) if isinstance(argument, (list, tuple)) else [argument]
    return values


def lora_choices(recipe: Recipe) -> list[LoraSpec]:
    """The recipe's LoRA settings under each value that its search names for one of them."""
    specs = [recipe.lora]
    for key in recipe.search.space or {}:
        if key.startswith("lora."):
            specs += [recipe.override({key: value}).lora for value in choices(recipe, key)]
    return specs


def _augmentations(recipe: Recipe) -> list[tuple[TransformSpec, ...]]:
    """What the recipe's search names for its augmentation."""
    values = choices(recipe, "augmentation")
    return [recipe.override({"augmentation": value}).augmentation for value in values if value is not None]


def largest_rank(recipe: Recipe) -> int:
    """The largest rank that the recipe or its search names."""
    return max(max([lora.r, *lora.rank_pattern.values()]) for lora in lora_choices(recipe))


def plan_recipe(recipe: Recipe) -> dict[str, Json]:
    """The plan of a recipe as plain data; reads and checks its files, starts nothing."""
    return plan_with_task(recipe)[0]


def plan_with_task(recipe: Recipe) -> tuple[dict[str, Json], TaskSpec]:
    """As `plan_recipe`, and the task, completed by the training rows."""
    from ray_lora.running.sources import inspect
    from ray_lora.running.teachers import find_teacher

    base = describe_base(recipe.base, "cuda" if recipe.scaling.use_gpu else "cpu")
    task, rows = inspect(recipe, base.processor)
    teacher = None if recipe.distillation.teacher is None else find_teacher(recipe, task, base)
    plan = make_plan(recipe, task, base)
    batch = recipe.training.per_device_train_batch_size * recipe.scaling.num_workers
    per_epoch = math.ceil(rows["train"] / batch)
    steps = recipe.training.max_steps
    steps = steps if steps > 0 else math.ceil(recipe.training.num_train_epochs * per_epoch)
    told = asdict(plan) | {
        "name": recipe.name,
        "total_bytes": plan.total_bytes,
        "task": {"type": task.type, **task.describe()},
        "rows": rows,
        **({"augmentation": [said(transform) for transform in recipe.augmentation]} if recipe.augmentation else {}),
        **({} if teacher is None else {"teacher": f"{teacher.ref} on {teacher.base.model}"}),
        "steps": steps,
        "rows_trained": steps * batch,
    }
    return told, task


def show(plan: Mapping[str, Json]) -> str:
    """A plan for reading."""
    lines = [
        ("base", f"{plan['base']} in {plan['dtype']} on {plan['device']}, {size_words(plan['base_bytes'])}"),
        ("adapter", f"{plan['parameters']:,} trained parameters, {size_words(plan['adapter_bytes'])} on disk"),
        ("slot", f"{size_words(plan['slot_bytes'])} at max_rank {plan['max_rank']}: value, gradient, two moments"),
        ("pass", f"{plan['passes']}, about {size_words(plan['pass_bytes'])} for {plan['max_rows']} rows"),
        (
            "pack",
            f"{plan['slots']} slots, about {size_words(plan['total_bytes'])} of {size_words(plan['free_bytes'])} free",
        ),
        ("data", ", ".join(f"{count:,} {split} rows" for split, count in plan["rows"].items())),
        *((key, _words(value)) for key, value in plan["task"].items()),
        *(("augmented", transform) for transform in plan.get("augmentation", [])),
        *(("teacher", plan[key]) for key in ("teacher",) if key in plan),
        ("training", f"{plan['steps']:,} steps, {plan['rows_trained']:,} rows for each adapter"),
    ]
    return "\n".join(f"{name:<9} {text}" for name, text in lines)


def _words(value: Json) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def targets_embeddings(recipe: Recipe) -> bool:
    """Whether any configuration could target an Embedding: their stacks are large and kept only on request."""
    targets = [lora.target_modules for lora in lora_choices(recipe)]
    return any("embed" in str(target) for target in targets)


def _activations(base: Base, longest: int, rows: int) -> int:
    """Numbers that a backward keeps for one pass of rows of size `longest`: about 16 hidden-sized and 4
    intermediate-sized values a layer and token.

    The factors were fitted to the peak memory of BERT encoders (benchmarks/step.py measures it); other
    architectures are of the same order.
    """
    config = getattr(base.config, "vision_config", base.config)
    layers = getattr(config, "num_hidden_layers", None) or len(getattr(config, "depths", [1]))
    hidden = getattr(config, "hidden_size", None) or max(getattr(config, "hidden_sizes", [64]))
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    return int(layers * rows * longest * (16 * hidden + 4 * intermediate))


def _free_memory(device: str) -> int:
    if device == "cuda":
        if not torch.cuda.is_available():
            raise RecipeError("scaling.use_gpu is true, this machine has no GPU; set scaling.use_gpu=false")
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)
