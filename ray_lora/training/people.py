"""Adapters of many people at once: each begins as a copy of another adapter, learns from its own rows, and is kept only
where it does better than that on the person's later rows.

    for outcome in train_people(engine, {None: parent}, job, rows, shares): ...

All share one engine and its passes; what one learns does not depend on who else is there. Whose rows they are, and
where adapters come from and go to, is not known here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ray_lora.adapters.adapter import Adapter
from ray_lora.engine import AdapterEngine
from ray_lora.inference.finite import NotFiniteError
from ray_lora.inference.predict import forward, passes, predict
from ray_lora.inference.written import Writing
from ray_lora.recipe import Json
from ray_lora.tasks import Features, Task, scoring_of
from ray_lora.training.job import Job
from ray_lora.training.member import Member
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Split, Splits

_PATIENCE = 1  # epochs in a row without a gain that are borne


@dataclass(frozen=True)
class Share:
    """One person's rows, by their number in the table.

    Attributes:
        rows: learnt from. later: choose how long, and whether at all.
        begin: which adapter it begins as.
    """

    name: str
    rows: tuple[int, ...]
    later: tuple[int, ...]
    begin: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one person.

    Attributes:
        loss_before, loss_after: mean loss on the later rows, of what it began as (None where it began fresh) and of
            the best epoch.
        before, after: scores on them.
        epoch: which one was best; 0 where none was better than the beginning.
        adapter: of that epoch; None where the beginning stays.
        error: why the training went nowhere.
    """

    name: str
    rows: int
    later: int
    loss_before: float | None
    loss_after: float
    before: dict[str, float]
    after: dict[str, float]
    epoch: int
    adapter: Adapter | None
    error: str | None = None


@dataclass
class _Course:
    """How one person does so far."""

    share: Share
    member: Member
    features: list[Features]
    loss_before: float | None = None
    before: dict[str, float] = field(default_factory=dict)
    loss: float = math.inf
    scores: dict[str, float] = field(default_factory=dict)
    epoch: int = 0
    worse: int = 0  # epochs in a row
    adapter: Adapter | None = None
    error: str | None = None

    def outcome(self) -> Outcome:
        share = self.share
        return Outcome(
            share.name, len(share.rows), len(share.later), self.loss_before, self.loss, self.before, self.scores,
            self.epoch, self.adapter, self.error,
        )  # fmt: skip


def train_people(
    engine: AdapterEngine,
    begins: Mapping[str | None, Adapter | None],
    job: Job,
    rows: Mapping[int, Features],
    shares: Sequence[Share],
    max_rows: int = 64,
) -> Iterator[Outcome]:
    """Train everyone, as many at a time as the engine has free slots; each comes as soon as it has ended.

    Args:
        begins: what people begin as, by their share's `begin`; None for a fresh adapter.
        job: LoRA, task and training of all of them, under any name.
        rows: encoded rows by their number.
        max_rows: rows of one pass.
    """
    pack = Pack(engine, {}, max_rows=max_rows)
    courses: dict[str, _Course] = {}
    queue = deque(shares)
    while queue or pack.members:
        fresh = []
        while queue and engine.free_slots:
            share = queue.popleft()
            courses[share.name] = _begun(pack, share, job, begins[share.begin], rows)
            fresh.append(courses[share.name])
        for course, (loss, scores) in _judged(pack, [one for one in fresh if begins[one.share.begin] is not None]):
            course.loss_before, course.loss = loss, loss
            course.before = course.scores = scores
            if not math.isfinite(loss):
                yield _end(pack, course, "what it begins as answers no finite numbers on its later rows")
        pack.train(list(pack.members.values()))
        due = []
        for name, member in list(pack.members.items()):
            if not math.isfinite(member.losses[-1] + member.grad_norm):
                yield _end(pack, courses[name], f"diverged at step {member.step}; lower the learning rate")
            elif member.step % member.per_epoch == 0 or member.step >= member.total:
                due.append(courses[name])
        for course, (loss, scores) in _judged(pack, due):
            if _takes(pack, course, loss, scores):
                yield _end(pack, course)


def _begun(pack: Pack, share: Share, job: Job, begin: Adapter | None, rows: Mapping[int, Features]) -> _Course:
    pack.data[share.name] = Splits(Split(dict(enumerate(map(rows.__getitem__, share.rows))), len(share.rows)))
    pack.join(replace(job, name=share.name, data=share.name), begin=begin)
    return _Course(share, pack.members[share.name], [rows[row] for row in share.later])


def _takes(pack: Pack, course: _Course, loss: float, scores: dict[str, float]) -> bool:
    """Take an epoch's judgement; whether the training ends here."""
    member = course.member
    if loss < course.loss:
        course.loss, course.scores, course.worse = loss, scores, 0
        course.epoch = math.ceil(member.epoch)
        course.adapter = pack.export(course.share.name, scores)
    else:
        course.worse += 1
    return member.step >= member.total or course.worse > _PATIENCE


def _end(pack: Pack, course: _Course, error: str | None = None) -> Outcome:
    course.error = error
    pack.leave(course.share.name)
    del pack.data[course.share.name]
    return course.outcome()


def _judged(pack: Pack, courses: Sequence[_Course]) -> list[tuple[_Course, tuple[float, dict[str, float]]]]:
    """Each one's mean loss and scores on its later rows, all in the same passes; a loss that is no number where its
    answers are none."""
    features = [row for course in courses for row in course.features]
    slots = [course.member.slot for course in courses for _ in course.features]
    tasks = {course.member.slot: course.member.task for course in courses}
    losses = _MeanLoss()
    options = [scoring_of(tasks[slot]) for slot in slots]
    writes = any(isinstance(task, Writing) for task in tasks.values())  # what is written by itself shows no loss
    watch = None if writes else losses.watch
    try:
        if writes:
            losses.of_texts(pack, tasks, features, slots)
        answers: list[Json] = predict(pack.engine, tasks, features, slots, options, pack.max_rows, watch=watch)
    except NotFiniteError as error:
        lost = [course for course in courses if course.member.slot in error.slots]
        well = [course for course in courses if course.member.slot not in error.slots]
        none: dict[str, float] = {}
        return [*_judged(pack, well), *((course, (math.nan, none)) for course in lost)]
    found, at = [], 0
    for course in courses:
        mine, at = answers[at : at + len(course.features)], at + len(course.features)
        scores = course.member.task.score(mine, course.features)
        found.append((course, (losses.of(course.member.slot), scores)))
    return found


class _MeanLoss:
    """Each slot's mean loss over the terms of the rows that it is shown."""

    def __init__(self) -> None:
        self._sums: dict[int, float] = {}
        self._terms: dict[int, float] = {}

    def watch(self, task: Task, slots: Sequence[int], features: Sequence[Features], outputs: Any) -> None:
        losses, terms = task.loss(outputs, features)
        for slot, loss, term in zip(slots, losses.double().tolist(), terms.double().tolist(), strict=True):
            self._sums[slot] = self._sums.get(slot, 0.0) + loss
            self._terms[slot] = self._terms.get(slot, 0.0) + term

    def of_texts(
        self, pack: Pack, tasks: Mapping[int, Task], features: Sequence[Features], slots: Sequence[int]
    ) -> None:
        """Those of the rows' own texts, as in training."""
        with torch.inference_mode():
            for chunk in passes(pack.engine, tasks, features, slots, pack.max_rows):
                for task, rows, outputs in forward(pack.engine, tasks, features, slots, chunk):
                    self.watch(task, [slots[row] for row in rows], [features[row] for row in rows], outputs)

    def of(self, slot: int) -> float:
        return self._sums[slot] / self._terms[slot]
