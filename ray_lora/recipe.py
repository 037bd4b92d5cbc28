"""The recipe: one YAML file that says base, task, data, LoRA, training, search, tracking.

Names are PEFT's and Hugging Face's. A recipe is frozen, forbids unknown keys and names the nearest valid one. What is
below `task` is the task's own. It knows nothing of tensors, files' contents or Ray.

    recipe = Recipe.load("examples/tweets.yaml", ["lora.r=4", "training.seed=1"])
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from ray_lora.bounds import Place, check_tree, short
from ray_lora.distillation_spec import NO_TEACHER, DistillationSpec
from ray_lora.errors import RecipeError, did_you_mean
from ray_lora.recipe_text import overridden, put, read_tree, shown
from ray_lora.search_spec import ObjectiveSpec, SearchSpec
from ray_lora.task_spec import Json, Spec, TaskSpec, options_of, task_type_of
from ray_lora.transform_spec import TransformSpec

__all__ = [
    "BaseSpec",
    "DataSpec",
    "DistillationSpec",
    "Json",
    "LoraSpec",
    "ObjectiveSpec",
    "PersonalSpec",
    "Recipe",
    "ScalingSpec",
    "SearchSpec",
    "Spec",
    "TaskSpec",
    "TrackingSpec",
    "TrainingSpec",
    "TransformSpec",
    "check_key",
]


_MOST_SAID = 20  # problems of a recipe in one message
QuantisedDtype = Literal["int8", "nf4"]
Dtype = Literal["auto", "float32", "bfloat16", "float16", QuantisedDtype]


class BaseSpec(Spec):
    """Which frozen pretrained model: a packaged base's name, a hub id, a folder, a GGUF file, or a builder that the
    user allowed, `package.module:callable`."""

    model: Place = "minilm"
    dtype: Dtype = "auto"  # int8, nf4: of linear layers and large tables; all else is as auto has it
    attn_implementation: Literal["auto", "eager", "sdpa"] = "auto"


class DataSpec(Spec):
    """Where the rows are: files of parquet, csv, jsonl or arrow, folders or globs; local paths, `s3://` or `gs://`. Of
    annotated pictures COCO's json files or YOLO's data.yaml."""

    train: str | tuple[str, ...] | None = None
    validation: str | tuple[str, ...] | None = None
    columns: dict[str, str] = Field(default={})  # the task's column -> the file's column
    images: str | dict[Literal["train", "validation"], str] | None = (
        None  # the folder of COCO's pictures, or each split's
    )

    def images_of(self, split: str) -> str | None:
        """The folder of a split's pictures."""
        return self.images.get(split) if isinstance(self.images, dict) else self.images  # type: ignore[call-overload]


class LoraSpec(Spec):
    """PEFT's `LoraConfig`, the part that can be served exactly."""

    r: int = Field(default=8, ge=1)
    lora_alpha: float = Field(default=16, gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"
    exclude_modules: str | tuple[str, ...] | None = None
    rank_pattern: dict[str, int] = Field(default={})
    alpha_pattern: dict[str, float] = Field(default={})
    use_rslora: bool = False
    # own: an adapter has the base's batch norms for itself, with the statistics of its training rows
    batch_norms: Literal["base", "own"] = Field(default="base", exclude_if=lambda told: told == "base")

    @field_validator("rank_pattern")
    @classmethod
    def _positive(cls, pattern: dict[str, int]) -> dict[str, int]:
        for name, rank in pattern.items():
            if rank < 1:
                raise ValueError(f"rank_pattern[{name!r}] is {rank}; a rank is at least 1")
        return pattern

    @field_validator("alpha_pattern")
    @classmethod
    def _above_zero(cls, pattern: dict[str, float]) -> dict[str, float]:
        for name, alpha in pattern.items():
            if alpha <= 0:
                raise ValueError(f"alpha_pattern[{name!r}] is {alpha}; an alpha is above 0")
        return pattern

    @field_validator("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern")
    @classmethod
    def _compiles(cls, value: Any) -> Any:
        """What is matched as a regular expression must be one: a single string, and the patterns' keys."""
        expressions = [value] if isinstance(value, str) else list(value) if isinstance(value, dict) else []
        for expression in expressions:
            try:
                re.compile(expression)
            except re.error as error:
                raise ValueError(f"{expression!r} is not a regular expression for module names: {error}") from None
        return value


class TrainingSpec(Spec):
    """HF `TrainingArguments`, the part that belongs to one adapter."""

    num_train_epochs: float = Field(default=2, gt=0)
    max_steps: int = Field(default=-1, ge=-1)  # -1: num_train_epochs decides; 0 would be no training, and is refused
    learning_rate: float = Field(default=1e-3, gt=0)
    per_device_train_batch_size: int = Field(default=16, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, ge=0)  # 0: no clipping
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: float = Field(default=0, ge=0)  # below 1: a share of all steps
    head_start: Literal["auto", "fitted", "random"] = "auto"  # fitted on the frozen base, where validation rows like it
    # of each row's loss: how far the answer is from that of the best head alone on the frozen base
    head_teacher: float = Field(default=0.0, ge=0, le=1, exclude_if=lambda told: told == 0)
    calibrate: bool = True  # scores by a temperature that is fitted on the validation rows
    seed: int = Field(default=0, ge=0, lt=2**32)
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "random"
    logging_steps: int = Field(default=10, ge=1)
    eval_steps: int | None = Field(default=None, ge=1)  # null: once an epoch
    save_steps: int = Field(default=50, ge=1)
    load_best_model_at_end: bool = False  # the adapter is as its best evaluation found it, and not its last

    @field_validator("max_steps")
    @classmethod
    def _some(cls, steps: int) -> int:
        if steps == 0:
            raise ValueError("0 steps train nothing; give at least 1, or -1 for num_train_epochs")
        return steps


class PersonalSpec(Spec):
    """One adapter for each person, site, shop or device of one table: `ray-lora personal`."""

    key: str | None = None  # the column that says whose a row is
    group: str | None = (
        None  # the column of a person's group, which gets an adapter of its own; null: all are one group
    )
    order: str | None = None  # the column that says when a row was; null: rows stand in their files as they came
    min_rows: int = Field(default=16, ge=4)  # who has fewer has the group's adapter
    held_out: float = Field(default=0.25, gt=0, lt=1)  # share of everyone's rows, the latest, that choose
    parent: str | None = None  # a ref in the store that groups begin from; null: they begin as any adapter does
    num_train_epochs: int = Field(default=4, ge=1)  # of a person; a group has training's
    learning_rate: float | None = Field(default=None, gt=0)  # of a person; null: training's
    per_device_train_batch_size: int | None = Field(default=None, ge=1)  # of a person; null: training's
    # versions of a person's adapter that stay, the newest, beside those that something points to; null: all
    keep: int | None = Field(default=None, ge=1, exclude_if=lambda told: told is None)


class ScalingSpec(Spec):
    """Ray's `ScalingConfig` for one pack, and how many packs."""

    num_workers: int = Field(default=1, ge=1)
    use_gpu: bool = False
    packs: int | None = Field(default=None, ge=1)  # null: as many as the cluster's devices allow
    slots: int | None = Field(default=None, ge=1)  # adapters a pack trains at once; null: from the memory estimate


class TrackingSpec(Spec):
    """Where MLflow records go; `uri: null` turns tracking off."""

    uri: str | None = "sqlite:///mlflow.db"
    experiment: str | None = None  # null: the recipe's name


class Recipe(Spec):
    """One run: every key is optional where a default can be right."""

    name: str = Field(default="adapter", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    base: BaseSpec = BaseSpec()
    task: SerializeAsAny[TaskSpec] = Field(default_factory=lambda: TaskSpec.model_validate({}))
    data: DataSpec = DataSpec()
    lora: LoraSpec = LoraSpec()
    training: TrainingSpec = TrainingSpec()
    # what is done to training rows, one after the other
    augmentation: tuple[SerializeAsAny[TransformSpec], ...] = Field(default=(), exclude_if=lambda told: not told)
    distillation: DistillationSpec = Field(default=NO_TEACHER, exclude_if=lambda told: told == NO_TEACHER)
    search: SearchSpec = SearchSpec()
    personal: PersonalSpec = Field(default=PersonalSpec(), exclude_if=lambda told: told == PersonalSpec())
    scaling: ScalingSpec = ScalingSpec()
    tracking: TrackingSpec = TrackingSpec()
    store: str = "./store"
    output_dir: str = "./runs"

    @model_validator(mode="after")
    def _space_keys_exist(self) -> Recipe:
        for key in self.search.space or {}:
            check_key(key, self.task.type)
        return self

    @model_validator(mode="after")
    def _one_teacher(self) -> Recipe:
        if self.distillation.teacher is not None and self.training.head_teacher > 0:
            raise ValueError(
                "training.head_teacher and distillation.teacher are both given; an adapter has one teacher: leave one "
                "of them out"
            )
        return self

    @model_validator(mode="after")
    def _fitted_head_reads_the_base(self) -> Recipe:
        if self.training.head_start == "fitted" and self.lora.batch_norms == "own":
            raise ValueError(
                "training.head_start: fitted and lora.batch_norms: own are both given; a head is fitted on the base "
                "with its own norms: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _teacher_reads_the_same_rows(self) -> Recipe:
        if self.distillation.teacher is not None and self.augmentation:
            raise ValueError(
                "augmentation and distillation.teacher are both given; the teacher's logits are computed once and are "
                "of unaltered rows: leave one of them out"
            )
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a YAML recipe and apply `key.path=value` overrides.

        Raises:
            RecipeError: the file is missing, is not YAML, or breaks a rule; the message names the key.
        """
        tree = read_tree(Path(path))
        _put_all(tree, overridden(overrides))
        return cls.parse(tree)

    @classmethod
    def parse(cls, tree: Mapping[str, Json]) -> Recipe:
        """Validate a mapping; its problems are named in one RecipeError, the first twenty of them."""
        try:
            check_tree(tree)
        except ValueError as error:
            raise RecipeError(f"the recipe cannot be read: {error}") from None
        try:
            return cls.model_validate(dict(tree))
        except ValidationError as error:
            task_type = task_type_of(tree.get("task"))
            problems = error.errors()
            more = [f"and {len(problems) - _MOST_SAID} more"] if len(problems) > _MOST_SAID else []
            said = [_say(problem, task_type) for problem in problems[:_MOST_SAID]]
            raise RecipeError("\n".join([*said, *more])) from None

    def override(self, values: Mapping[str, Json]) -> Recipe:
        """A copy with dotted keys replaced: `recipe.override({"lora.r": 4})`."""
        tree = self.model_dump()
        if values.get("task.type", self.task.type) != self.task.type:  # what nobody set belongs to the old task
            tree["task"] = self.task.model_dump(exclude_unset=True)
        _put_all(tree, values)
        return self.parse(tree)


def check_key(key: str, task_type: str | None = None) -> None:
    """Raise RecipeError unless the dotted key names a value of the recipe of a task (None: of the default one)."""
    section: Any = Recipe
    walked: list[str] = []
    for part in key.split("."):
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            if _is_mapping(section):
                return
            said = short(key)
            raise RecipeError(f"{said!r} is not a key of the recipe; {'.'.join(walked)!r} holds a plain value")
        if part not in section.model_fields:
            said = short(key)
            allowed = [".".join([*walked, name]) for name in section.model_fields]
            near = did_you_mean(".".join([*walked, short(part)]), allowed)
            raise RecipeError(f"{said!r} is not a key of the recipe{near}")
        section = section.model_fields[part].annotation
        if section is TaskSpec:
            section = options_of(task_type_of({} if task_type is None else {"type": task_type}))
        walked.append(part)


def _is_mapping(annotation: Any) -> bool:
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return any(typing.get_origin(option) is dict for option in options)


def _put_all(tree: dict[str, Any], values: Mapping[str, Json]) -> None:
    """Set dotted keys, which must be keys of the task that is set with them."""
    task_type = values.get("task.type", task_type_of(tree.get("task")))
    for key, value in values.items():
        check_key(key, str(task_type))
        put(tree, key, value)


def _say(problem: Mapping[str, Any], task_type: str) -> str:
    """One line for one pydantic problem: key, what was given, what is allowed."""
    path = ".".join(str(part) for part in problem["loc"])
    where = short(path)
    if problem["type"] == "extra_forbidden":
        try:
            check_key(path, task_type)
        except RecipeError as error:
            return str(error)
        return f"{where!r} is not a key of the recipe"
    given = problem["input"]
    told = "" if isinstance(given, (dict, BaseModel)) else f" (given: {shown(given)})"
    return f"{where or 'recipe'}: {short(problem['msg'].removeprefix('Value error, '), 600)}{told}"
