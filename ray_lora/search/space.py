"""What a search tries, in Ray Tune's words: a recipe's `search` section as samplers, scheduler and searcher, checked
before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ray import tune
from ray.tune import TuneConfig
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.sample import Domain

from ray_lora.errors import RecipeError, did_you_mean
from ray_lora.recipe import Json, Recipe, check_key
from ray_lora.search.objectives import Objective, objectives_of
from ray_lora.search.stopping import check_stopping
from ray_lora.search.trial import job_of
from ray_lora.tracking import plain

_SAMPLERS = {
    "grid_search", "choice", "uniform", "loguniform", "quniform", "qloguniform", "randint", "lograndint", "qrandint",
}  # fmt: skip

# For people who have no space: rates first. LoRA's best rate is about ten times full fine-tuning's and hardly depends
# on the rank (Schulman et al., "LoRA Without Regret", 2025), so three decades around 1e-3 are covered before ranks are.
DEFAULT_SPACE: dict[str, dict[str, Json]] = {
    "training.learning_rate": {"grid_search": [1e-4, 3e-4, 1e-3, 3e-3]},
    "lora.r": {"grid_search": [2, 8, 32]},
}


def check_search(recipe: Recipe) -> None:
    """Raise RecipeError for a `search` section that could not run; nothing is started."""
    check_objectives(recipe)
    check_stopping(recipe, recipe.search.space or ())
    if recipe.search.space is not None:
        check_space(sampled(recipe), recipe)


def sampled(recipe: Recipe) -> dict[str, Any]:
    """The recipe's space as Ray Tune samplers.

    Raises:
        RecipeError: a sampler or its arguments are wrong.
    """
    space = {}
    for key, sampler in (recipe.search.space or {}).items():
        if len(sampler) != 1:
            raise RecipeError(f"search.space.{key} needs one sampler such as {{grid_search: [2, 4]}}; got {sampler}")
        ((name, arguments),) = sampler.items()
        if name not in _SAMPLERS:
            raise RecipeError(
                f"search.space.{key}: unknown sampler {name!r}; one of {', '.join(sorted(_SAMPLERS))}"
                f"{did_you_mean(name, _SAMPLERS)}"
            )
        if not isinstance(arguments, list) or not arguments:
            raise RecipeError(f"search.space.{key}.{name} has nothing to try; give a list, for example [2, 4, 8]")
        try:
            space[key] = getattr(tune, name)(*([arguments] if name in ("grid_search", "choice") else arguments))
        except (TypeError, ValueError) as error:
            raise RecipeError(f"search.space.{key}.{name}: {arguments} does not fit: {error}") from None
    return space


def configured(recipe: Recipe, space: Mapping[str, Any]) -> TuneConfig:
    """The recipe's `search` over a space as Ray's TuneConfig, without a scheduler: which one is found once the rows are
    counted (`search.stopping`)."""
    search = recipe.search
    objectives = objectives_of(recipe)
    first = [default_of(recipe, space)] if adds_default(recipe, space) else []
    searcher: Any = None
    if search.searcher == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        metrics, modes = [each.name for each in objectives], [each.mode for each in objectives]
        if len(objectives) == 1:
            searcher = OptunaSearch(
                metric=metrics[0], mode=modes[0], seed=search.seed, points_to_evaluate=first or None
            )
        else:
            several: Any = modes  # Tune's annotation says one, its documentation a list for several metrics
            searcher = OptunaSearch(metric=metrics, mode=several, seed=search.seed, points_to_evaluate=first or None)
    elif first:
        searcher = BasicVariantGenerator(points_to_evaluate=first)
    return TuneConfig(
        search_alg=searcher,
        num_samples=search.num_samples + len(first),
        max_concurrent_trials=search.max_concurrent_trials,
        time_budget_s=search.time_budget_s,
    )


def default_of(recipe: Recipe, space: Iterable[str]) -> dict[str, Any]:
    """The recipe's own values of those searched keys that it has: an entry of a mapping may be missing."""
    own = plain.flat(recipe.model_dump(mode="json"))
    return {key: own[key] for key in space if key in own}


def adds_default(recipe: Recipe, space: Mapping[str, Any]) -> bool:
    """Whether the recipe's own values are a trial beside those of the space: they are asked for, and the grid has not
    got them anyway. Tune takes no list or mapping as a preset value, and Optuna only what the space allows."""
    own = default_of(recipe, space)
    told = len(own) == len(space) and not any(isinstance(value, (list, dict)) for value in own.values())
    if not recipe.search.try_default or not told:
        return False
    if recipe.search.searcher == "optuna":
        return all(sampler.is_valid(own[key]) for key, sampler in space.items() if isinstance(sampler, Domain))
    grids = [grid_of(s) if isinstance(s, Mapping) and "grid_search" in s else None for s in space.values()]
    return not all(grid is not None and own[key] in grid for key, grid in zip(space, grids, strict=True))


def check_objectives(recipe: Recipe, config: TuneConfig | None = None) -> tuple[Objective, ...]:
    """The metrics that decide, of the recipe or of a TuneConfig.

    Raises:
        RecipeError: one is unknown, or groups are asked of rows that are not there.
    """
    if recipe.search.groups is not None and recipe.data.validation is None:
        raise RecipeError("search.groups names a column of the validation rows' files; set data.validation")
    if config is None:
        return objectives_of(recipe)
    return objectives_of(recipe, config.metric, config.mode)  # type: ignore[arg-type]  # Tune's mode is a str


def check_space(space: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise RecipeError for a space with nothing in it, an unknown key or a value that is not allowed."""
    if not space:
        raise RecipeError("the search space is empty; give search.space at least one recipe key to try")
    for key, sampler in space.items():
        check_key(key, recipe.task.type)
        if key.startswith("distillation.") and recipe.distillation.teacher is None:
            raise RecipeError(f"{key} is searched without a teacher; set distillation.teacher to a ref in the store")
        for value in grid_of(sampler) or []:
            job_of("check", recipe, {key: value}, recipe.task)


def values_of(sampler: Any) -> list[Any]:
    """What a sampler can give, as far as it says so."""
    return grid_of(sampler) or [
        type(sampler).__name__,
        getattr(sampler, "lower", None),
        getattr(sampler, "upper", None),
    ]


def grid_of(sampler: Any) -> list[Any] | None:
    """The values of a grid or a choice; None for a range."""
    if isinstance(sampler, Mapping) and "grid_search" in sampler:
        return list(sampler["grid_search"])
    return list(sampler.categories) if hasattr(sampler, "categories") else None


def count_trials(space: Mapping[str, Any], num_samples: int, added: int = 0) -> int:
    """Trials a basic search will start: grids times samples, and of those samples so many that are one trial each."""
    grids = [
        len(sampler["grid_search"])
        for sampler in space.values()
        if isinstance(sampler, Mapping) and "grid_search" in sampler
    ]
    return math.prod(grids) * max(1, num_samples - added) + added


def with_bounds(recipe: Recipe, space: Mapping[str, Any]) -> Recipe:
    """The recipe with the values a Python `param_space` names written into its `search.space`, for the plan."""
    named: dict[str, Any] = {}
    for key, sampler in space.items():
        values = grid_of(sampler)
        if values is None and hasattr(sampler, "lower"):
            values = [sampler.lower, sampler.upper - 1] if key == "lora.r" else None
        if values:
            named[key] = {"choice": values}
    return recipe.override({"search.space": named})
