"""Jobs that move from a pack that holds many to one that has nothing left: saved first, in one pack at a time, and only
where it is worth it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.recipe import Recipe
from ray_lora.running import coordinator as module
from ray_lora.running.coordinator import Coordinator
from ray_lora.running.records import Orders
from ray_lora.running.sources import check_tables, read_tables
from ray_lora.tasks import build_task
from ray_lora.training.history import read_history
from ray_lora.training.job import Job, Report
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Split, Splits
from tests.ray.rows import alone, tiny_recipe
from tests.unit.test_coordinator import asynchronous, evaluated, job, short_waits  # noqa: F401

HELD = {"a": 1, "b": 2, "c": 3, "d": 4}


def stepped(name: str, step: int, total: int = 100) -> Report:
    return Report(name, step, total, step / 50, loss=0.5, saved=True)


async def uneven(*, followed: bool = False, total: int = 100, expected: int = 0) -> Coordinator:
    """Two packs: the first holds four jobs, of which the second has made more steps, the other one none."""
    made = Coordinator(expected)
    for name in HELD:
        await made.submit(job(name), {}, followed=followed)
    assert len((await made.sync("pack-0", [], {}, 4)).join) == 4
    assert not (await made.sync("pack-1", [], {}, 4)).join
    made._take(stepped("b", 20, total))
    for name in "acd":
        made._take(stepped(name, 10, total))
    return made


def names(orders: Orders) -> list[str]:
    return [joined.name for joined in orders.join]


@asynchronous
async def test_half_of_a_packs_jobs_go_to_the_one_that_has_none() -> None:
    made = await uneven()
    orders = await made.sync("pack-0", [], HELD, 0)
    assert orders == Orders(save=("a", "c"), hold=("a", "c")), "those that have most left; they make no step"
    assert not names(await made.sync("pack-1", [], {}, 4)), "nobody takes what is not written"
    await made.saved(orders.save)
    assert (await made.sync("pack-0", [], HELD, 0)) == Orders(leave=("a", "c"))
    assert not names(await made.sync("pack-1", [], {}, 4)), "nor what the other pack still holds"
    left = {"b": 2, "d": 4}
    taking = asyncio.create_task(made.sync("pack-1", [], {}, 4))
    assert await made.sync("pack-0", [], left, 2) == Orders(), "and does not take back"
    assert names(await taking) == ["a", "c"]
    assert {name: made.records[name].pack for name in HELD} == {
        "a": "pack-1",
        "b": "pack-0",
        "c": "pack-1",
        "d": "pack-0",
    }
    assert await made.sync("pack-1", [evaluated("a", 15)], {"a": 1, "c": 2}, 2) == Orders()
    assert made.records["a"].metrics == {"accuracy": 0.5}
    assert await made.sync("pack-0", [], left, 2) == Orders(), "two and two stay"


@asynchronous
async def test_whom_nobody_has_decided_on_stays_and_so_does_who_is_nearly_done() -> None:
    made = await uneven(followed=True)
    for name in "abc":
        made._take(replace(evaluated(name, 30), total=100))
    syncing = asyncio.create_task(made.sync("pack-0", [], HELD, 0))
    await asyncio.sleep(0.01)
    assert not syncing.done(), "three are on hold"
    for name in "abc":
        await made.next_evaluation(name)
        asking = asyncio.create_task(made.next_evaluation(name))  # goes on
        await asyncio.sleep(0.01)
        asking.cancel()
    assert (await syncing).save == ("a", "d"), "d has most left, and of those at 30 the first"
    near = await uneven(total=17)
    assert await near.sync("pack-0", [], HELD, 0) == Orders(), "seven steps are not worth it"


@asynchronous
async def test_nobody_moves_while_jobs_wait_or_are_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GATHER_S", 0.05)
    coming = await uneven(expected=6)
    assert await coming.sync("pack-0", [], HELD, 0) == Orders()
    waiting = await uneven()
    await waiting.submit(job("e"), {})
    assert await waiting.sync("pack-0", [], HELD, 0) == Orders()
    assert names(await waiting.sync("pack-1", [], {}, 4)) == ["e"]


@asynchronous
async def test_who_ends_on_the_way_moves_no_more() -> None:
    made = await uneven()
    orders = await made.sync("pack-0", [], HELD, 0)
    await made.stop("a")
    await made.saved(orders.save)
    assert (await made.sync("pack-0", [], HELD, 0)).leave == ("a", "c")
    taking = asyncio.create_task(made.sync("pack-1", [], {}, 4))
    await made.sync("pack-0", [], {"b": 2, "d": 4}, 2)
    assert names(await taking) == ["c"]
    assert made.records["a"].status == "stopped"
    assert not made._moves.asked | made._moves.saved


@asynchronous
async def test_a_pack_that_is_killed_meanwhile_loses_nobody() -> None:
    made = await uneven()
    await made.sync("pack-0", [], HELD, 0)  # killed before it has saved anybody
    again = names(await made.sync("pack-0", [], {}, 4))
    assert again == ["b", "d"]
    assert names(await made.sync("pack-1", [], {}, 4)) == ["a", "c"]


@asynchronous
async def test_a_pack_without_work_waits_for_those_who_may_come_and_then_ends() -> None:
    made = await uneven()
    await made.close()
    assert not (await made.sync("pack-1", [], {}, 4)).close
    orders = await made.sync("pack-0", [], HELD, 0)
    await made.saved(orders.save)
    await made.sync("pack-0", [], HELD, 0)
    assert not (await made.sync("pack-1", [], {}, 4)).close
    await made.sync("pack-0", [], {"b": 2, "d": 4}, 2)
    assert names(await made.sync("pack-1", [], {}, 4)) == ["a", "c"]
    ended = [Report(name, 100, 100, 2.0, done=True) for name in "ac"]
    assert (await made.sync("pack-1", ended, {}, 4)).save == ()
    assert (await made.sync("pack-0", [], {"b": 2, "d": 4}, 2)).save == ("d",), "one of two goes to who has none"
    made.records["b"].step = made.records["d"].step = 99
    made._moves.asked.clear()
    assert (await made.sync("pack-1", [], {}, 4)).close
    assert await made.sync("pack-0", [], {"b": 2, "d": 4}, 2) == Orders(), "who has ended takes nobody"


class Worker:
    """One pack's worker, as `running.worker` has it, whose coordinator is in this process."""

    def __init__(self, name: str, recipe: Recipe, output: Path, made: Coordinator) -> None:
        self.name, self.output, self.made = name, output, made
        tables = read_tables(recipe, None)
        self.spec = check_tables(recipe, tables)
        engine = AdapterEngine(load_base(recipe.base), slots=4, max_rank=8, train=True)
        task = build_task(self.spec, engine.base.processor)
        encoded = {split: task.encode(rows.table.to_pylist()) for split, rows in tables.items()}
        splits = {split: Split(dict(enumerate(rows)), len(rows)) for split, rows in encoded.items()}
        self.pack = Pack(engine, {"data": Splits(splits["train"], splits["validation"])}, output=output)
        self.reports: list[Report] = []
        self.steps = 0

    async def turn(self) -> bool:
        """Orders and a step; False once there is nothing left."""
        held = {name: member.slot for name, member in self.pack.members.items()}
        orders = await self.made.sync(self.name, self.reports, held, len(self.pack.engine.free_slots))
        self.reports = []
        for name in orders.save:
            self.pack.save(name)
        for name in orders.leave:
            self.pack.stop(name)
        for joining in orders.join:
            self.pack.join(joining, self.output / joining.name / "state")
        if orders.save:
            await self.made.saved(orders.save)
        if len(self.pack.members) > len(orders.hold):
            self.reports = self.pack.step(orders.hold)
            self.steps += 1
        return not orders.close


@asynchronous
async def test_who_moves_equals_itself_alone(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, training__max_steps=30)
    made = Coordinator()
    one, two = (Worker(name, recipe, tmp_path / "jobs", made) for name in ("one", "two"))
    rates = {"a": 1e-2, "b": 3e-3, "c": 1e-3}
    recipes = {name: recipe.override({"training.learning_rate": rate}) for name, rate in rates.items()}
    for name, mine in recipes.items():
        await made.submit(Job(name, "data", one.spec, mine.lora, mine.training), {})
    for _ in range(5):  # the other one comes late
        await one.turn()
    await made.close()

    async def work(worker: Worker) -> None:
        while await worker.turn():
            await asyncio.sleep(0)

    await asyncio.gather(work(one), work(two))
    assert {record.pack for record in made.records.values()} == {"one", "two"}
    assert {record.status for record in made.records.values()} == {"finished"}
    assert two.steps >= 20
    for name, mine in recipes.items():
        losses, adapter = alone(mine, tmp_path / f"alone-{name}")
        told = [line["metrics"]["loss"] for line in read_history(tmp_path / "jobs" / name)]
        assert told == pytest.approx(losses, abs=1e-4)
        moved = Adapter.load(tmp_path / "jobs" / name / "adapter")
        assert all((moved.tensors[key] - tensor).abs().max() < 1e-4 for key, tensor in adapter.tensors.items())
