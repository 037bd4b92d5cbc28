"""How much of the scores' spread each searched key explains: functional ANOVA over the trials, by Optuna.

    importances(trials, "accuracy")        # {"training.learning_rate": 0.86, "lora.r": 0.14}

Hutter, Hoos, Leyton-Brown: An Efficient Approach for Assessing Hyperparameter Importance (ICML 2014).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

LEAST = 6  # trials; a forest on fewer says nothing

_SEED, _DECADE = 0, 10.0


def importances(tried: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, float]:
    """Each key's share of the variance that keys alone and together explain, largest first; the shares sum to 1.

    Args:
        tried: each trial's configuration and score; those without a finite score are left out.

    Empty where fewer than `LEAST` trials have a score, all scores are equal, or no key has two values.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    scored = [(config, score) for config, score in tried if math.isfinite(score)]
    if len(scored) < LEAST or len({score for _, score in scored}) < 2:
        return {}
    keys = [key for key in scored[0][0] if all(key in config for config, _ in scored)]
    columns = {key: [_plain(config[key]) for config, _ in scored] for key in keys}
    columns = {key: values for key, values in columns.items() if len(set(values)) > 1}
    if not columns:
        return {}
    spaces = {key: _space(values) for key, values in columns.items()}
    quiet, level = optuna.logging, optuna.logging.get_verbosity()
    quiet.set_verbosity(quiet.WARNING)
    try:
        study = optuna.create_study(direction="maximize")
        for row, (_, score) in enumerate(scored):
            told = {key: values[row] for key, values in columns.items()}
            study.add_trial(optuna.trial.create_trial(params=told, distributions=spaces, value=score))
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=_SEED))
    finally:
        quiet.set_verbosity(level)
    return {key: float(share) for key, share in found.items()}


def _plain(value: Any) -> Any:
    """A value as Optuna takes it: numbers as they are, the rest as a text."""
    value = value.item() if hasattr(value, "item") else value  # numpy's
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return json.dumps(value, sort_keys=True, default=str)


def _space(values: Sequence[Any]) -> Any:
    """A distribution that holds these values; over a decade and more a logarithmic one."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if any(isinstance(value, str) for value in values):
        return CategoricalDistribution(sorted(set(values), key=str))
    low, high = float(min(values)), float(max(values))
    return FloatDistribution(low, high, log=low > 0 and high / low >= _DECADE)
