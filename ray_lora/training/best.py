"""The best of a job's evaluations: what `load_best_model_at_end` gives back at its end, as HF's trainer does.

    best.see(engine, member, metrics)         # after each evaluation
    best.back(engine, members)                # those whose slots have the values of an earlier evaluation again

It knows members and their scores, not when they are evaluated. Scores on a part of the validation rows are no rivals of
scores on all of them, and are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ray_lora.engine import AdapterEngine
from ray_lora.training.member import Best, Member


def see(engine: AdapterEngine, member: Member, metrics: Mapping[str, float] | None) -> None:
    """Keep the slot's values where no evaluation was better yet; of equal ones the first. Every worker calls it."""
    whole = member.splits.validation is not None and member.validation_rows == member.splits.validation.total
    if metrics is None or not member.job.training.load_best_model_at_end or not whole:
        return
    score = metrics[member.task.metric]
    sign = 1 if member.task.metrics[member.task.metric] == "max" else -1
    if math.isfinite(score) and (member.best is None or sign * score > sign * member.best.score):
        values = {name: value.clone() for name, value in engine.read(member.slot).items()}
        member.best = Best(score, member.step, values)


def back(engine: AdapterEngine, members: Iterable[Member]) -> list[Member]:
    """Give members at their ends the values of their best evaluations; which of them did not have these."""
    changed = [
        member
        for member in members
        if member.step >= member.total and member.best is not None and member.best.step != member.step
    ]
    for member in changed:
        assert member.best is not None
        engine.write(member.slot, member.best.values)
    engine.refresh([member.slot for member in changed])
    return changed
