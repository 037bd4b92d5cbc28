"""Which trial to serve and what to try next, from where the best lies in what was tried.

Trials come best first, each with a score that can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_lora.inference.intervals import standard_error
from ray_lora.search.summary import Trial

RATE, RANK = "training.learning_rate", "lora.r"


def smallest(scored: Sequence[Trial], metric: str, mode: str, rows: int) -> Trial:
    """The trial of the smallest rank whose score lies within one standard error of the best.

    Args:
        rows: validation rows.
    """
    best = scored[0].metrics[metric]
    slack = standard_error(best, rows) if mode == "max" else 0.0  # an error that is to be small is no share of rows
    close = [t for t in scored if abs(t.metrics[metric] - best) <= slack and RANK in t.config]
    return min(close, key=lambda t: t.config[RANK], default=scored[0])


def advice(scored: Sequence[Trial], metric: str, mode: str, rows: int) -> str:
    """The next thing worth trying."""
    if not scored:
        return "no configuration was evaluated; lower training.learning_rate, or let the search go on for longer"
    best = scored[0]
    if len(scored) > 1 and len({trial.metrics[metric] for trial in scored}) == 1 and not any(t.rows for t in scored):
        return (
            f"all {len(scored)} configurations have the same {metric}: what was searched changes nothing that these "
            "rows show; look at the learning curves, and give it more steps or other keys"
        )
    rates = sorted({trial.config[RATE] for trial in scored if RATE in trial.config})
    ranks = sorted({trial.config[RANK] for trial in scored if RANK in trial.config})
    if len(rates) > 1 and best.config[RATE] == rates[-1]:
        return f"the best rate {rates[-1]:.3g} is the largest tried: try rates up to {3 * rates[-1]:.3g}"
    if len(rates) > 1 and best.config[RATE] == rates[0]:
        return f"the best rate {rates[0]:.3g} is the smallest tried: try rates down to {rates[0] / 3:.3g}"
    small = smallest([t for t in scored if t.rows == best.rows], metric, mode, best.rows or rows)
    if len(ranks) > 1 and small.config.get(RANK, best.config.get(RANK)) < best.config[RANK]:
        return f"rank {small.config[RANK]} is as good as rank {best.config[RANK]} within one standard error: use it"
    if len(ranks) > 1 and best.config[RANK] == ranks[-1]:
        return f"the best rank {ranks[-1]} is the largest tried: try rank {2 * ranks[-1]}, or more training rows"
    return "the best lies inside what was tried: repeat it with three seeds (training.seed) before trusting small gaps"
