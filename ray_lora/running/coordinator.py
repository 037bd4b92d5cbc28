"""The coordinator: an actor between those who want adapters trained (a trainer, or the trials of a search) and the
packs.

Jobs are submitted, wait for a slot, run in a pack, report, and end. A pack calls `sync` after every step: it brings its
reports and the jobs it holds, and takes away which to begin and which to drop. What a pack holds is compared with
what it should hold, so a pack that was killed and started again is simply given its jobs once more, each from its
checkpoint. It imports no torch and claims no CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray_lora.errors import CapacityError
from ray_lora.running.moves import Moves
from ray_lora.running.records import Orders, Record, Status
from ray_lora.running.turns import Queue, Turns
from ray_lora.training.job import Job, Report

_IDLE_S = 1.0  # how long a pack without work waits in one sync
_DECIDE_S = 3.0  # how long one with work waits for members on hold, to step with all together
_GATHER_S = 10.0  # and how long for the next job, after one has come or ended
_LEAST_S = 0.5  # the same when jobs have kept packs waiting in vain


class Coordinator:
    """See the module. Use as `ray.remote(Coordinator).options(num_cpus=0).remote(...)`.

    Args:
        expected: jobs that will probably be submitted; while there are fewer, a pack whose slot falls free waits a
            moment for the next one.
        at_once: how many of them there will be at the same time, at most; None for as many as packs have slots.
        turns: the order in which those who follow jobs hear of evaluations at one rung; None for any order. They say
            `heard` of each.
    """

    def __init__(self, expected: int = 0, at_once: int | None = None, turns: Turns | None = None) -> None:
        self.expected, self.at_once, self._queue = expected, at_once, Queue(turns)
        self.records: dict[str, Record] = {}
        self._changed = asyncio.Condition()
        self._logs: list[dict[str, Any]] = []
        self._packs: dict[str, float] = {}  # pack -> when one of its jobs last ended, 0.0 at first
        self._came = 0.0  # when a job was last submitted
        self._patience = _GATHER_S  # with the next job
        self._moves = Moves()
        self._saves: set[str] = set()
        self._halted: set[str] = set()  # jobs that a person has stopped
        self._over = False  # a person has stopped all of them
        self._closing = False
        self._error: str | None = None
        self._seconds: dict[str, float] = {}

    # ---------------------------------------------------------------- for trainers and trials

    async def submit(self, job: Job, config: dict[str, Any], followed: bool = False) -> None:
        """Queue a job. One that was stopped (a paused trial) goes on from its checkpoint; one that was announced is
        followed from now on.

        Args:
            followed: after each evaluation the job makes no step until `next_evaluation` is asked for again.
        """
        record = self.records.get(job.name)
        if record is not None and record.announced and record.job == job:
            record.announced = False
            self._came = self._queue.moved = time.monotonic()
        elif record is not None and record.status in ("waiting", "running"):
            raise CapacityError(f"job {job.name!r} is already in this search; give each job its own name")
        else:
            self._queue_up(Record(job, config, followed=followed))
        await self._notify()

    async def announce(self, jobs: Sequence[tuple[Job, dict[str, Any]]]) -> None:
        """Queue jobs whose trials are still to come: packs need not wait for the trials' processes. What such a job
        reports is kept until its trial submits it. Jobs that are known already stay as they are."""
        for job, config in jobs:
            if job.name not in self.records:
                self._queue_up(Record(job, config, followed=True, announced=True))
        await self._notify()

    async def next_evaluation(self, name: str) -> dict[str, Any]:
        """The job's next evaluation; waits for it. `{"error": ...}` once the job has failed, `{"halted": True}` once
        somebody has halted it."""
        record = self.records[name]
        if record.held and not record.inbox:  # what it reported was looked at, and it may go on
            record.held = False
            await self._notify()
        await self._until(
            lambda: bool(record.inbox) or record.status not in ("waiting", "running") or self._error is not None
        )
        if record.inbox:
            await self._turn(name)
            return record.inbox.popleft()
        if record.status == "stopped" and self._is_halted(name):
            return {"halted": True}
        return {"error": record.error or self._error or f"job {name!r} was {record.status}"}

    async def is_announced(self, name: str) -> bool:
        """Whether a job was announced whose trial has not come yet."""
        return name in self.records and self.records[name].announced

    async def ready(self) -> bool:
        """Wait until a pack takes jobs, or none ever will; whether there is anything to do for another one."""

        def over() -> bool:
            return self._error is not None or (self._closing and not self._active)

        await self._until(lambda: bool(self._packs) or over())
        return not over()

    async def heard(self, name: str) -> None:
        """A search's scheduler has decided on this job's last evaluation: the next one may be told."""
        self._queue.heard(name)
        await self._notify()

    async def stop(self, name: str) -> None:
        """Take a job out; its slot goes to the next one. Nothing happens when it has ended."""
        record = self.records.get(name)
        if record is not None and record.status in ("waiting", "running"):
            self._end(record, "stopped")
            await self._notify()

    async def halt(self, names: Sequence[str] | None) -> None:
        """Take jobs out because a person wants it, now or as soon as they come, until they are released; None for all
        jobs."""
        self._over = self._over or names is None
        self._halted |= set(names or ())
        for record in self.records.values():
            if record.status in ("waiting", "running") and self._is_halted(record.job.name):
                self._end(record, "stopped")
        await self._notify()

    async def release(self, names: Sequence[str]) -> None:
        """Halted jobs may be submitted again."""
        self._halted -= set(names)

    async def checkpoint(self, name: str) -> int:
        """Have the job's state written now; returns its step."""
        record = self.records[name]
        if record.status == "running":
            self._saves.add(name)
            await self._until(lambda: name not in self._saves or record.status != "running")
        return record.saved_step

    async def close(self) -> None:
        """No more jobs will come: packs end when they have nothing left. Those who followed jobs have gone, some
        without a word: Tune does not clean up a trial's process that it has kept for a next trial."""
        self._closing = True
        for record in self.records.values():
            if record.followed and record.status in ("waiting", "running"):
                self._end(record, "stopped")
        await self._notify()

    async def fail(self, error: str) -> None:
        """A pack is gone for good: whoever waits learns why."""
        self._error = error
        await self._notify()

    async def snapshot(self, after: int) -> tuple[list[Record], list[dict[str, Any]], int]:
        """All records, the log lines after cursor `after`, and the new cursor."""
        return list(self.records.values()), self._logs[after:], len(self._logs)

    async def seconds(self) -> dict[str, float]:
        """Seconds that the packs' first workers spent, by what on; `processor` seconds of all workers. Of packs that
        have ended."""
        return self._seconds

    # ---------------------------------------------------------------- for packs

    async def sync(self, pack: str, reports: Sequence[Report], held: dict[str, int], free: int) -> Orders:
        """Bring a step's reports and what the pack holds (job -> slot); take away what to do next."""
        if pack not in self._packs:
            self._packs[pack] = 0.0
            await self._notify()
        for report in reports:
            self._take(report)
        self._queue.put(reports)
        for name, slot in held.items():
            self.records[name].slot = slot
        if self._moves.arrived(self.records, pack, held) or reports:
            await self._notify()
        await self._gather(pack, held, free)
        if not self._waiting and not self._more:
            self._moves.begin(self.records, pack, held, self._share)
        orders = self._orders(pack, held, free)
        if orders.close:
            self._packs.pop(pack)
        for job in orders.join:
            record = self.records[job.name]
            record.status, record.pack = "running", pack
            record.started = record.started or time.time()
        return orders

    async def note(self, name: str, notes: Sequence[str]) -> None:
        """What a job's workers found, for whoever watches."""
        self.records[name].notes += notes

    async def saved(self, names: Sequence[str]) -> None:
        """These jobs' states were written on request."""
        self._saves -= set(names)
        self._moves.note(names)
        await self._notify()

    async def spent(self, seconds: dict[str, float]) -> None:
        """What a worker of a pack that ends has spent its time on."""
        for what, value in seconds.items():
            self._seconds[what] = self._seconds.get(what, 0.0) + value

    async def _gather(self, pack: str, held: dict[str, int], free: int) -> None:
        """Wait, for a moment, until the pack's next step is worth taking.

        Members of one pace share passes best, and what joins a step late stays late: so a pack waits for members on
        hold, and for jobs that are about to come, at the start and after others have ended. Without anything to do it
        waits for something.
        """
        began = time.monotonic()

        def vacant(now: Orders) -> bool:
            return self._more and free > len(now.join)

        def until() -> float:
            now = self._orders(pack, held, free)
            if now.leave or now.save or now.close:
                return began
            if not now.join and len(held) == len(now.hold):  # no step could be taken
                return began + _IDLE_S
            decided = max(began, self._queue.moved) + _DECIDE_S if now.hold else began
            if any(self.records[name].announced for name in now.hold):  # nobody is there yet to decide
                decided = max(decided, self._came + _GATHER_S)
            gathered = max(self._packs[pack], self._came) + self._patience if vacant(now) else began
            return max(decided, gathered)

        while (left := until() - time.monotonic()) > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._until(lambda: until() <= time.monotonic()), left)
        if not vacant(self._orders(pack, held, free)):
            self._patience = _GATHER_S
        elif time.monotonic() - began >= self._patience:  # who limits a search by other means keeps slots free for ever
            self._patience = max(_LEAST_S, self._patience / 4)

    @property
    def _coming(self) -> bool:
        """Whether a job is trained whose trial has not come yet."""
        return any(record.announced and record.status == "running" for record in self.records.values())

    @property
    def _active(self) -> int:
        return sum(record.status in ("waiting", "running") for record in self.records.values())

    @property
    def _waiting(self) -> list[Job]:
        return [record.job for record in self.records.values() if record.status == "waiting"]

    @property
    def _more(self) -> bool:
        """Whether jobs are still to come."""
        more = len(self.records) < self.expected and self._active < (self.at_once or self.expected)
        return more and not self._closing

    @property
    def _share(self) -> int:
        """Packs share all jobs evenly: how many one holds at most; so the one with the fewest can take one more."""
        return -(-self._active // max(1, len(self._packs)))

    def _orders(self, pack: str, held: dict[str, int], free: int) -> Orders:
        wanted = [r.job for r in self.records.values() if r.status == "running" and r.pack == pack]
        stay = {job.name for job in wanted} - self._moves.saved
        leave = tuple(name for name in held if name not in stay)
        join = [job for job in wanted if job.name not in held]
        waiting, share = self._waiting, self._share - (len(held) - len(leave) + len(join))
        join += waiting[: max(0, min(share, free + len(leave) - len(join)))]
        asked = self._moves.asked
        save = tuple(name for name in held if name in self._saves | asked and name not in leave)
        idle = not (join or waiting or held or self._moves.possible(self.records, self._share))
        hold = tuple(name for name in held if name not in leave and (self.records[name].held or name in asked))
        return Orders(tuple(join), leave, save, hold, close=self._closing and idle)

    def _take(self, report: Report) -> None:
        record = self.records.get(report.job)
        if record is None or record.status != "running":
            return  # stopped while this step ran
        record.step, record.total, record.epoch = report.step, report.total, report.epoch
        if report.saved:
            record.saved_step = report.step
        if report.loss is not None:
            record.loss = report.loss
        metrics = report.logged
        if metrics and report.error is None:
            self._logs.append({"job": report.job, "step": report.step, "time": time.time(), "metrics": metrics})
        if report.metrics is not None or (report.done and not record.metrics):
            record.metrics, record.rows = report.metrics or {}, report.rows
            record.held = record.followed
            place = {"step": report.step, "epoch": report.epoch, "total_steps": report.total, "done": report.done}
            record.inbox.append(metrics | report.rung | place)
        if report.error is not None:
            record.error = report.error
            self._end(record, "failed")
        elif report.done:
            self._end(record, "finished")

    def _queue_up(self, record: Record) -> None:
        self.records[record.job.name] = record
        self._came = time.monotonic()
        if self._is_halted(record.job.name):
            self._end(record, "stopped")

    def _is_halted(self, name: str) -> bool:
        return self._over or name in self._halted

    async def _turn(self, name: str) -> None:
        """Wait until a job's evaluation may be told."""

        def told() -> bool:
            return self._queue.may(name, lambda other: self.records[other].status == "running")

        while not told():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._until(told), self._queue.patience(self._coming))
        self._queue.told(name)
        await self._notify()

    def _end(self, record: Record, status: Status) -> None:
        record.status, record.ended = status, time.time()
        if record.pack is not None:
            self._packs[record.pack] = time.monotonic()

    async def _until(self, reached: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(reached)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
