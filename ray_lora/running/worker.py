"""What each Ray Train worker of a pack runs: hold the base, do what the coordinator orders, step, report.

All workers of a pack make the same calls in the same order; only the first one talks to the coordinator.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.exceptions import RayActorError
from torch import Tensor

from ray_lora.bases.load import load_base
from ray_lora.data.check import say_cut
from ray_lora.engine import AdapterEngine
from ray_lora.errors import RayLoraError
from ray_lora.recipe import BaseSpec
from ray_lora.running.records import Orders
from ray_lora.running.sources import Source, load_splits
from ray_lora.training.head_start import say_start
from ray_lora.training.job import Job, Report
from ray_lora.training.pack import Group, Pack, Splits


@dataclass(frozen=True)
class PackConfig:
    """What a pack's workers are told at the start."""

    pack: str
    coordinator: Any  # ray.ActorHandle
    base: BaseSpec
    sources: dict[str, Source]
    output: str  # a folder that all workers see; each job's checkpoints and adapter go to <output>/<job>/
    slots: int
    max_rank: int
    max_rows: int
    embeddings: bool = False


def run_worker(config: dict[str, Any]) -> None:
    """The train loop. `pack`: a reference to the `PackConfig`."""
    told: PackConfig = ray.get(config["pack"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
    group = Group(rank, world, _all_reduce, _gather) if world > 1 else Group()
    started = time.perf_counter()
    base = load_base(told.base, ray.train.torch.get_device())
    engine = AdapterEngine(base, slots=told.slots, max_rank=told.max_rank, train=True, embeddings=told.embeddings)
    pack = Pack(engine, _Lazy(told.sources), group=group, output=Path(told.output), max_rows=told.max_rows)
    for source in told.sources.values():
        engine.reserve_head(pack.task(source.task).head)
    seconds = {"load": time.perf_counter() - started, "wait": 0.0, "join": 0.0, "step": 0.0}
    reports: list[Report] = []
    while True:
        at = time.perf_counter()
        orders = _orders(told, pack, reports)
        seconds["wait"] += time.perf_counter() - at
        if orders.close:
            break
        at = time.perf_counter()
        reports = _follow(told, pack, orders)
        seconds["join"] += time.perf_counter() - at
        at = time.perf_counter()
        if len(pack.members) > len(orders.hold):
            reports += pack.step(orders.hold)
        seconds["step"] += time.perf_counter() - at
    spent = {"processor": time.process_time()} | (seconds | pack.seconds if rank == 0 else {})
    with contextlib.suppress(RayActorError):
        ray.get(told.coordinator.spent.remote(spent))


def _orders(told: PackConfig, pack: Pack, reports: list[Report]) -> Orders:
    """The coordinator's orders, the same on every worker."""
    box: list[Orders | None] = [None]
    if pack.group.rank == 0:
        held = {name: member.slot for name, member in pack.members.items()}
        free = len(pack.engine.free_slots)
        try:
            box = [ray.get(told.coordinator.sync.remote(told.pack, reports, held, free))]
        except RayActorError:  # it died, and with it everyone who could ask for anything; the driver says so
            box = [Orders(close=True)]
    if pack.group.world > 1:
        dist.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return box[0]


def _follow(told: PackConfig, pack: Pack, orders: Orders) -> list[Report]:
    """Drop, save and begin jobs; a job that cannot begin fails alone."""
    reports = []
    for name in orders.save:
        pack.save(name)
    for name in orders.leave:
        pack.stop(name)
    for job in orders.join:
        assert isinstance(pack.data, _Lazy)
        try:
            notes = pack.data.load(job, pack) + say_start(job, pack.data[job.data])
            if notes and pack.group.rank == 0:
                ray.get(told.coordinator.note.remote(job.name, notes))
            pack.join(job, Path(told.output) / job.name / "state")
        except RayLoraError as error:
            reports.append(Report(job.name, 0, 0, 0.0, error=str(error)))
    if orders.save and pack.group.rank == 0:
        ray.get(told.coordinator.saved.remote(orders.save))
    return reports


class _Lazy(dict[str, Splits]):
    """Splits that are fetched and encoded when the first job that needs them joins."""

    def __init__(self, sources: dict[str, Source]) -> None:
        super().__init__()
        self._sources = sources

    def load(self, job: Job, pack: Pack) -> list[str]:
        """Encode a job's rows, if no other one's are the same; what is to be said of all workers' rows."""
        if job.data in self:
            return []
        group = pack.group
        splits = self[job.data] = load_splits(self._sources[job.data], pack.task(job.task), group.rank, group.world)
        notes = []
        for name, split in (("train", splits.train), ("validation", splits.validation)):
            if split is not None:
                cut = sum(group.gather(split.cut()), Counter[str]())
                notes += say_cut(f"{job.data}, {name}", cut, split.total)
        return notes


def _all_reduce(tensor: Tensor) -> None:
    dist.all_reduce(tensor)


def _gather(value: Any) -> list[Any]:
    box: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box
