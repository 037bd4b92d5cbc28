"""A worker that trains people: an actor with the base that is given blocks of people and puts adapters into the store.

It keeps the encoded rows and the adapters that people begin as; killed, it begins again with the block that it had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ray_lora.uncollected import uncollected

with uncollected():  # an actor is a process that begins with these
    import pyarrow as pa
    import torch

    from ray_lora.adapters.adapter import Adapter
    from ray_lora.bases.load import load_base
    from ray_lora.engine import AdapterEngine
    from ray_lora.errors import AdapterNotFoundError
    from ray_lora.recipe import BaseSpec, LoraSpec, TrainingSpec, TransformSpec
    from ray_lora.running.plan import Plan
    from ray_lora.running.sources import Source, load_splits
    from ray_lora.store import CHAMPION, Store, open_store
    from ray_lora.tasks import Features, build_task
    from ray_lora.training.job import Job
    from ray_lora.training.people import Outcome, Share, train_people


@dataclass(frozen=True)
class Began:
    """What people begin as.

    Attributes:
        ref: `name@version`. name: what it is called without a version.
    """

    ref: str
    name: str


@dataclass(frozen=True)
class PeopleTold:
    """What a worker is told at its start."""

    base: BaseSpec
    source: Source
    lora: LoraSpec
    augmentation: tuple[TransformSpec, ...]
    plan: Plan
    store: str
    tracking: str | None


class PeopleWorker:
    """See the module."""

    def __init__(self) -> None:
        self._here: _Here | None = None

    def train(
        self,
        told: PeopleTold,
        number: int,
        shares: Sequence[Share],
        names: Mapping[str, str],
        training: TrainingSpec,
        table: pa.Table | None,
    ) -> tuple[int, list[dict[str, Any]]]:
        """Train a block; its number, and a line for each of its people in the order in which they ended.

        Args:
            table: the rows that shares number; None: the source's.
        """
        if self._here is None:
            self._here = _Here(told)
        return number, self._here.train(shares, names, training, table)


class _Here:
    """The base, the rows and the adapters that people begin as, in this process."""

    def __init__(self, told: PeopleTold) -> None:
        import ray

        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
        self._told = told
        self._store = open_store(told.store, told.tracking)
        base = load_base(told.base, told.plan.device)
        embeddings = any("embed" in str(target) for target in told.lora.target_modules)
        self._engine = AdapterEngine(
            base, slots=told.plan.slots, max_rank=told.plan.max_rank, train=True, embeddings=embeddings
        )
        self._task = build_task(told.source.task, base.processor)
        self._engine.reserve_head(self._task.head)
        self._begins: dict[str | None, Adapter | None] = {None: None}

    @cached_property
    def _rows(self) -> Mapping[int, Features]:
        """The source's."""
        return load_splits(self._told.source, self._task, 0, 1).train.rows

    def train(
        self, shares: Sequence[Share], names: Mapping[str, str], training: TrainingSpec, table: pa.Table | None
    ) -> list[dict[str, Any]]:
        """A line for each of a block's people."""
        known = self._begins  # those of this block stay: a group's is many blocks'
        self._begins = {ref: known[ref] if ref in known else self._load(ref) for ref in {one.begin for one in shares}}
        job = Job("people", "people", self._told.source.task, self._told.lora, training, self._told.augmentation)
        rows = self._rows if table is None else dict(enumerate(self._task.encode(table.to_pylist())))
        outcomes = train_people(self._engine, self._begins, job, rows, shares, self._told.plan.max_rows)
        return [self._kept(outcome, names[outcome.name]) for outcome in outcomes]

    def _load(self, ref: str | None) -> Adapter | None:
        return None if ref is None else self._store.load(ref)[1]

    def _kept(self, outcome: Outcome, name: str) -> dict[str, Any]:
        """An outcome's line, once its adapter is in the store."""
        ref = None if outcome.adapter is None else put(self._store, outcome.adapter, name)
        return {
            "name": outcome.name,
            "rows": outcome.rows,
            "later": outcome.later,
            "loss_before": outcome.loss_before,
            "loss_after": outcome.loss_after,
            "before": outcome.before,
            "after": outcome.after,
            "epoch": outcome.epoch,
            "adapter": ref,
            "error": outcome.error,
        }


def put(store: Store, adapter: Adapter, name: str) -> str:
    """The ref of an adapter in the store, put there unless the name's champion is it."""
    try:
        entry = store.resolve(name)
        if entry.sha256 == adapter.sha256:
            return entry.ref
    except AdapterNotFoundError:
        pass
    return store.put(adapter, name, aliases=(CHAMPION,)).ref
