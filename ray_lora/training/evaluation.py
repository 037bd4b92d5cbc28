"""Scores of a pack's members that are due, all in the same passes; and who of them answers what is no number.

It knows members and their rows, not when they are due.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_lora.engine import AdapterEngine
from ray_lora.inference.finite import NotFiniteError
from ray_lora.inference.predict import predict
from ray_lora.recipe import Json
from ray_lora.tasks import Features, scoring_of
from ray_lora.training.calibration import Losses, calibrates
from ray_lora.training.measures import fairness, sizes
from ray_lora.training.member import Member
from ray_lora.training.rungs import part_of
from ray_lora.training.shards import Group, Split


def evaluate(
    engine: AdapterEngine, due: Sequence[Member], group: Group, max_rows: int
) -> tuple[dict[str, dict[str, float]], list[Member]]:
    """Each job's scores on its validation rows of all workers, at a rung on a part of them; and the members whose
    answers are no numbers.

    A member without validation rows answers its last batch, and has no scores and no temperature. Every worker of the
    group calls it.
    """
    # of each part of a split once: rows on a disk are new objects whenever they are read
    read: dict[tuple[int, int], list[Features]] = {}
    rows = {member.job.name: _asked(member, read) for member in due}
    features = [row for member in due for row in rows[member.job.name]]
    slots = [member.slot for member in due for _ in rows[member.job.name]]
    answers: list[Json] = []
    wrong: frozenset[int] = frozenset()
    options = [scoring_of(member.task) for member in due for _ in rows[member.job.name]]
    watched, losses = any(map(_calibrates, due)), Losses(engine)
    try:
        tasks, watch = {member.slot: member.task for member in due}, losses.watch if watched else None
        answers = predict(engine, tasks, features, slots, options, max_rows, watch=watch)
    except NotFiniteError as error:
        wrong = error.slots
    wrong = frozenset().union(*group.gather(wrong))
    if wrong:
        scores, more = evaluate(engine, [member for member in due if member.slot not in wrong], group, max_rows)
        return scores, more + [member for member in due if member.slot in wrong]
    if watched:
        losses.reduce(group.all_reduce)
    found, at = {}, 0
    for member in due:
        mine = rows[member.job.name]
        answered, at = answers[at : at + len(mine)], at + len(mine)
        member.temperature = losses.best(member.slot) if _calibrates(member) else None
        if member.splits.validation is not None:
            parts = group.gather((answered, mine, _groups(member)))
            predictions = [answer for part, _, _ in parts for answer in part]
            member.answered = (predictions, [row for _, part, _ in parts for row in part])
            said = member.task.score(*member.answered)
            if member.job.fair is not None:
                whose = [name for _, _, part in parts for name in part]
                said = said | fairness(member.task, *member.answered, whose, member.job.fair)
            if member.job.measures:
                said = said | sizes(engine, member.slot)
            found[member.job.name] = said
    return found, []


def _groups(member: Member) -> list[str]:
    """The groups of this worker's rows to be answered, in their order; empty where nobody asked."""
    validation = member.splits.validation
    if validation is None or member.job.fair is None:
        return []
    chosen = part_of(validation.total, member.validation_rows)
    return [member.splits.groups[number] for number in validation.rows if number in chosen]


def _calibrates(member: Member) -> bool:
    """Whether a temperature is fitted to the member's answers."""
    return member.job.training.calibrate and member.splits.validation is not None and calibrates(member.task)


def _asked(member: Member, read: dict[tuple[int, int], list[Features]]) -> list[Features]:
    """This worker's rows to be answered; `read` has those of the splits that were asked for before."""
    validation = member.splits.validation
    if validation is not None:
        part = (id(validation), member.validation_rows)
        if part not in read:
            read[part] = _part(validation, member.validation_rows)
        return read[part]
    rows = member.splits.train.rows
    return [rows[row] for row in member.last_rows if row in rows]


def _part(split: Split, count: int) -> list[Features]:
    """This worker's share of `count` rows of the whole split, in the split's order."""
    if count >= split.total:
        return list(split.rows.values())
    chosen = part_of(split.total, count)
    return [split.rows[number] for number in split.rows if number in chosen]
