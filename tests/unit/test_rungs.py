"""Evaluations before a trial's end: when they are, on which rows, and that Ray Tune's own scheduler decides by them."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import RecipeError
from ray_lora.recipe import LoraSpec, Recipe
from ray_lora.running.progress import Progress
from ray_lora.running.records import Record
from ray_lora.running.time_left import TimeLeft, foreseen_of, keep_foreseen, said_range, said_time, work
from ray_lora.search.alarms import few_members, unreached
from ray_lora.search.space import adds_default, configured, count_trials, default_of
from ray_lora.search.stopping import Remembered, check_stopping, stopping_of, tell
from ray_lora.search.summary import Trial
from ray_lora.search.trial import recalled
from ray_lora.training.history import read_history, write_history
from ray_lora.training.job import Job, Report
from ray_lora.training.rungs import LEAST_ROWS, WHOLE, part_of, rows_at, rungs_of
from ray_lora.training.shards import Split, Splits
from tests.unit.bases import save_base
from tests.unit.packs import LABELS, WatchedPack, assert_same, letter_rows, losses, make_job, make_pack

RATE, RANK = "training.learning_rate", "lora.r"
ROWS = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


@pytest.mark.parametrize(
    ("total", "rungs"),
    [
        (128, {16: 1, 32: 2, 64: 4}),
        (100, {13: 1, 25: 2, 50: 4}),
        (5, {1: 1, 2: 2, 3: 4}),
        (4, {1: 2, 2: 4}),
        (2, {1: 4}),
        (1, {}),
    ],
)
def test_rungs_are_shares_of_the_steps(total: int, rungs: dict[int, int]) -> None:
    assert rungs_of(total) == rungs


def test_parts_of_the_rows_lie_within_each_other_and_are_drawn_once() -> None:
    assert [rows_at(eighths, 512) for eighths in (1, 2, 4, WHOLE)] == [64, 128, 256, 512]
    assert [rows_at(1, total) for total in (40, 64, 100, 8000)] == [40, LEAST_ROWS, LEAST_ROWS, 1000]
    parts = [part_of(512, count) for count in (64, 128, 256, 512)]
    assert [len(part) for part in parts] == [64, 128, 256, 512]
    assert parts[0] < parts[1] < parts[2] < parts[3] == frozenset(range(512))
    assert parts[0] != frozenset(range(64))
    part_of.cache_clear()
    assert part_of(512, 64) == parts[0]


def pack_of(folder: Path, output: Path | None = None, slots: int = 3) -> WatchedPack:
    """A pack whose rows of two labels are more than a rung's least."""
    pack = make_pack(folder, slots=slots, output=output)
    rows = Split(dict(enumerate(letter_rows(2, ROWS, 3))), ROWS)
    pack.data["2"] = Splits(rows, rows, {"train.rows": str(ROWS), "validation.rows": str(ROWS)})
    return pack


def run(pack: WatchedPack) -> list[Report]:
    reports = []
    while pack.members:
        reports += pack.step()
    return reports


def test_a_job_with_rungs_is_scored_on_more_rows_each_time(folder: Path, tmp_path: Path) -> None:
    job = replace(make_job("a", max_steps=16, logging_steps=16), rungs=True)
    pack = pack_of(folder, tmp_path)
    pack.join(job)
    reports = [report for report in run(pack) if report.metrics is not None]
    assert [(r.step, r.eighths, r.rows, r.done) for r in reports] == [
        (2, 1, 64, False),
        (4, 2, 64, False),
        (8, 4, 100, False),
        (16, 8, ROWS, True),
    ]
    lines = read_history(tmp_path / "a")
    assert [line["rung"] for line in lines] == [r.rung for r in reports]
    assert [line["metrics"]["validation_rows"] for line in lines] == [64, 64, 100, ROWS]
    card = Adapter.load(tmp_path / "a" / "adapter").card
    assert card.recipe is not None
    assert "evaluated" not in card.recipe  # its scores are of all rows
    again = recalled(tmp_path / "a")  # what a killed search tells its scheduler once more: not the end
    assert [(line["step"], line["eighths"], line["validation_rows"]) for line in again] == [
        (2, 1, 64),
        (4, 2, 64),
        (8, 4, 100),
    ]
    assert [line["accuracy"] for line in again] == [r.metrics["accuracy"] for r in reports[:3] if r.metrics]


def test_the_scores_at_a_rung_are_those_of_its_rows(folder: Path) -> None:
    """The oracle: the same job, stopped at the rung, answers those rows alone."""
    job = replace(make_job("a", max_steps=16, logging_steps=16), rungs=True)
    pack = pack_of(folder)
    pack.join(job)
    reports = pack.step() + pack.step()
    [at_rung] = [report for report in reports if report.metrics is not None]
    part = part_of(ROWS, 64)
    rows = pack.data["2"].train.rows
    own = pack_of(folder)
    own.data["2"] = Splits(pack.data["2"].train, Split({n: rows[n] for n in rows if n in part}, len(part)))
    own.join(make_job("a", max_steps=16, logging_steps=16, eval_steps=2))
    [alone] = [report for report in own.step() + own.step() if report.metrics is not None]
    assert at_rung.metrics == pytest.approx(alone.metrics, abs=1e-12)


def test_a_job_stopped_at_a_rung_says_on_how_many_rows_it_was_scored(folder: Path, tmp_path: Path) -> None:
    pack = pack_of(folder, tmp_path)
    pack.join(replace(make_job("a", max_steps=16), rungs=True))
    for _ in range(3):
        pack.step()
    pack.stop("a")
    card = Adapter.load(tmp_path / "a" / "adapter").card
    assert card.recipe is not None
    assert card.recipe["evaluated"] == {"eighths": 1, "validation_rows": 64}
    page = (tmp_path / "a" / "adapter" / "README.md").read_text()
    assert f"64 of {ROWS} validation rows" in page


def test_rungs_move_no_jobs_numbers(folder: Path) -> None:
    """Packed = alone, and evaluated early = not: beside one of other steps, and one that is stopped at its rung."""
    spec = LoraSpec(r=4, lora_dropout=0.1)
    pack = pack_of(folder)
    pack.join(replace(make_job("early", 2, spec, max_steps=9, seed=3), rungs=True))
    pack.join(replace(make_job("other", 2, LoraSpec(r=2), max_steps=24, per_device_train_batch_size=5), rungs=True))
    pack.join(replace(make_job("stopped", 2, max_steps=16), rungs=True))
    reports = pack.step() + pack.step()
    pack.stop("stopped")
    reports += run(pack)
    alone = pack_of(folder)
    alone.join(make_job("early", 2, spec, max_steps=9, seed=3))
    single = run(alone)
    assert losses(reports, "early") == pytest.approx(losses(single, "early"), abs=1e-9)
    assert_same(pack.left["early"], alone.left["early"], 1e-9)


# -------------------------------------------------------------------- who decides


def recipe_of(**search: Any) -> Recipe:
    return Recipe.parse({"search": search})


GRID = {RANK: tune.grid_search([2, 4, 8, 16]), RATE: tune.grid_search([1e-4, 1e-3])}


@pytest.mark.parametrize(
    ("search", "enough", "rungs", "scheduler", "said"),
    [
        ({}, {}, True, ASHAScheduler, "after 1/8, 1/4 and 1/2"),
        ({}, {"trials": 7}, False, None, "7 trials are too few"),
        ({}, {"rows": 40}, False, None, "40 validation rows are too few"),
        ({}, {"steps": 9}, False, None, "9 steps are too few"),
        ({"scheduler": "fifo"}, {}, False, None, "nobody asked"),
        ({"scheduler": "asha"}, {"trials": 3}, True, ASHAScheduler, "after 1/8"),
        ({"scheduler": "median"}, {}, True, MedianStoppingRule, "median rule"),
        ({"early_stopping": "none"}, {}, False, None, "early_stopping is none"),
        ({"early_stopping": "none", "scheduler": "asha"}, {}, False, ASHAScheduler, "at their evaluations"),
        ({"early_stopping": "rungs"}, {"trials": 2, "rows": 9, "steps": 3}, True, ASHAScheduler, "after 1/8"),
    ],
)
def test_who_stops_trials_is_said(
    search: dict[str, Any], enough: dict[str, int], rungs: bool, scheduler: type | None, said: str
) -> None:
    counts = {"trials": 8, "steps": 128, "rows": 512} | enough
    how = stopping_of(recipe_of(**search), GRID, None, **counts)
    assert how.rungs is rungs
    assert type(how.scheduler) is (scheduler or type(None))
    assert said in how.said


def test_rays_own_tune_config_keeps_its_scheduler_and_its_evaluations() -> None:
    given = tune.TuneConfig(scheduler=MedianStoppingRule())
    counts = {"trials": 8, "steps": 128, "rows": 512}
    how = stopping_of(recipe_of(), GRID, given, **counts)
    assert (how.rungs, how.scheduler) == (False, given.scheduler)
    how = stopping_of(recipe_of(early_stopping="rungs"), GRID, given, **counts)
    assert (how.rungs, how.scheduler) == (True, given.scheduler)


def test_rungs_and_eval_steps_exclude_each_other() -> None:
    spaced = Recipe.parse({"training": {"eval_steps": 8}})
    assert not stopping_of(spaced, GRID, None, 8, 128, 512).rungs
    both = spaced.override({"search.early_stopping": "rungs"})
    with pytest.raises(RecipeError, match="evaluates after 1/8"):
        check_stopping(both, GRID)
    with pytest.raises(RecipeError, match="evaluates after 1/8"):
        check_stopping(recipe_of(early_stopping="rungs"), {"training.eval_steps": tune.choice([2, 4])})


def results(seed: int, trials: int = 16) -> list[tuple[str, dict[str, float]]]:
    """Scores of trials that come to their rungs together, in any order."""
    draw = random.Random(seed)
    quality = {f"t{n}": draw.random() for n in range(trials)}
    told = []
    for eighths in (1, 2, 4, WHOLE):
        names = draw.sample(sorted(quality), trials)
        told += [(name, {"eighths": eighths, "accuracy": quality[name] + draw.gauss(0, 0.1)}) for name in names]
    return told


def decisions(scheduler: ASHAScheduler, told: list[tuple[str, dict[str, float]]]) -> list[tuple[str, float, str]]:
    """What a scheduler decides on each result of those that it has not stopped."""
    stopped: set[str] = set()
    decided = []
    for name, result in told:
        if name not in stopped:
            action = tell(scheduler, name, result)
            decided.append((name, result["eighths"], action))
            if action == "STOP":
                stopped.add(name)
    return decided


def searched() -> ASHAScheduler:
    scheduler = stopping_of(recipe_of(), GRID, None, 16, 128, 512).scheduler
    assert isinstance(scheduler, ASHAScheduler)
    scheduler.set_search_properties("accuracy", "max")
    return scheduler


@pytest.mark.parametrize("seed", range(4))
def test_the_default_scheduler_decides_as_tunes_asha_does_alone(seed: int) -> None:
    told = results(seed)
    plain = ASHAScheduler(
        time_attr="eighths", metric="accuracy", mode="max", max_t=8, grace_period=1, reduction_factor=1.7
    )
    mine = decisions(searched(), told)
    assert mine == decisions(plain, told)
    went = {e: sum(at == e and action == "CONTINUE" for _, at, action in mine) for e in (1, 2, 4)}
    assert 16 > went[1] > went[2] >= went[4] >= 1
    first = next(result for name, result in told if name == mine[0][0])
    assert first["eighths"] == 1


@pytest.mark.parametrize("killed_after", [1, 5, 16, 20, 25])
def test_a_killed_searchs_scheduler_decides_as_if_it_had_gone_on(killed_after: int) -> None:
    told = results(7)
    whole = decisions(searched(), told)
    before = whole[:killed_after]
    first = searched()
    memory = Remembered(first)
    scores = {(name, result["eighths"]): result for name, result in told}
    for name, at, _ in before:
        result = scores[name, int(at)]
        tell(first, name, result)
        memory.on_trial_result(0, [], _Named(name), result | {"done": False, "trial_id": name})  # type: ignore[arg-type]
    again = searched()
    Remembered(again).set_state(json.loads(json.dumps(memory.get_state())))
    after = [(name, at, tell(again, name, scores[name, int(at)])) for name, at, _ in whole[killed_after:]]
    assert after == whole[killed_after:]
    last_name, last_at, last_action = before[-1]
    if last_action == "CONTINUE":  # told once more by the trial itself, it decides nothing anew
        assert tell(again, last_name, scores[last_name, int(last_at)] | {"accuracy": -1.0}) == "CONTINUE"


class _Named:
    def __init__(self, name: str) -> None:
        self.trial_id = name


# -------------------------------------------------------------------- the recipe's own values


def test_the_recipes_own_values_are_tried_first_and_once() -> None:
    recipe = Recipe.parse({"lora": {"r": 8}, "training": {"learning_rate": 2e-3}})
    assert default_of(recipe, GRID) == {RANK: 8, RATE: 2e-3}
    assert adds_default(recipe, GRID)
    config = configured(recipe, GRID)
    assert config.num_samples == 2
    assert count_trials(GRID, config.num_samples, 1) == 1 + 8
    config.search_alg.add_configurations(_experiment(GRID, 2))
    tried = []
    while (trial := config.search_alg.next_trial()) is not None:
        tried.append(trial.config)
    assert tried[0] == {RANK: 8, RATE: 2e-3}
    assert len(tried) == 1 + 8
    assert {(one[RANK], one[RATE]) for one in tried[1:]} == {(r, rate) for r in (2, 4, 8, 16) for rate in (1e-4, 1e-3)}


def _experiment(space: dict[str, Any], samples: int) -> Any:
    from ray.tune.experiment import Experiment

    def nothing(config: dict[str, Any]) -> None: ...

    return Experiment("tried", nothing, config=space, num_samples=samples)


@pytest.mark.parametrize(
    ("told", "space", "added"),
    [
        ({"training": {"learning_rate": 1e-3}}, GRID, False),  # the grid has them
        ({"training": {"learning_rate": 1e-3}}, {RANK: tune.choice([8]), RATE: GRID[RATE]}, True),  # may have them
        ({"search": {"try_default": False}}, {RANK: tune.grid_search([2])}, False),
        ({}, {"augmentation": tune.grid_search([[], []])}, False),  # no preset of Tune's
        ({}, {"lora.rank_pattern.query": tune.grid_search([2, 4])}, False),  # the recipe has no such value
        ({"search": {"searcher": "optuna"}}, {RATE: tune.loguniform(1e-4, 1e-2)}, True),
        ({"search": {"searcher": "optuna"}}, {RATE: tune.loguniform(1e-2, 1e-1)}, False),  # Optuna would refuse it
    ],
)
def test_when_the_recipes_own_values_are_a_trial_of_their_own(
    told: dict[str, Any], space: dict[str, Any], added: bool
) -> None:
    assert adds_default(Recipe.parse(told), space) is added


# -------------------------------------------------------------------- alarms and the time left


def trial(rank: int, rate: float, loss: float, step: int = 16) -> Trial:
    metrics = {"accuracy": 0.5, "loss": loss, "grad_norm": 1.0, "learning_rate": rate, "step": step}
    return Trial(f"{rank}-{rate}", {RANK: rank, RATE: rate}, metrics, "finished", "a")


def test_a_key_that_reaches_nothing_is_an_alarm() -> None:
    same = [trial(r, rate, 0.1 * r) for r in (2, 4) for rate in (1e-3, 1e-4)]
    [alarm] = unreached(same)
    assert alarm.startswith(f"{RATE} reaches nothing: trials that differ in it alone (0.0001, 0.001)")
    assert not unreached([*same[:-1], trial(4, 1e-4, 0.41)])
    assert not unreached([trial(2, 1e-3, 0.2), trial(2, 1e-4, 0.2, step=32)])  # stopped at other steps: not comparable


def test_fewer_members_than_were_asked_for_are_an_alarm() -> None:
    plan = _plan(slots=4, room=99)
    assert not few_members(Recipe(), plan, 2, trials=16, at_once=8)
    [few] = few_members(Recipe.parse({"scaling": {"slots": 8}}), plan, 2, trials=10, at_once=10)
    assert "scaling.slots asks for 8 adapters in each of 2 packs, and the search has 10 trials" in few
    [narrow] = few_members(Recipe(), plan, 2, trials=16, at_once=3)
    assert "search.max_concurrent_trials lets 3 trials" in narrow
    [tight] = few_members(Recipe(), _plan(slots=2, room=2), 2, trials=16, at_once=4)
    assert "memory has room for 2 adapters in a pack where 4 would fill a pass" in tight


def _plan(slots: int, room: int) -> Any:
    from ray_lora.running.plan import Plan

    return Plan("base", "", "float32", "cpu", 16, 1, 1, 1, 1, 1, 1, slots, room, 64)


def record(name: str, status: Any, step: int, total: int = 10, rows: int | None = None, score: float = 0.9) -> Record:
    job = Job(name, "data", LABELS[2], LoraSpec(), make_job(name).training)
    metrics = {"accuracy": score} if step else {}
    return Record(job, {"lora.r": name}, status, step=step, total=total, rows=rows, metrics=metrics)


def test_the_table_shows_intervals_rows_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("ray_lora.running.time_left.monotonic", lambda: float(next(clock)))
    shown = Progress("search", "accuracy", mode="max", rows={"data": 400}, time_left=TimeLeft(expected=4))
    assert work([record("a", "running", 5), record("b", "stopped", 5)], 4) == (1.0, 2.5)
    assert not shown.table([record("a", "running", 5), record("b", "running", 5)]).caption
    records = [record("a", "running", 7, rows=100), record("b", "finished", 10)]
    table = shown.table(records)  # 0.7 of a trial in 10 s, 2.3 are left
    assert table.caption == "33 s left"
    assert list(table.columns[3].cells) == ["0.9000 ±0.059 on 100 rows", "0.9000 ±0.029"]
    lowest = Progress("search", "loss", mode="min", rows={"data": 400})
    records[0].metrics["loss"] = 0.25
    assert list(lowest.table(records).columns[3].cells) == ["0.2500 on 100 rows", "-"]


def test_before_the_first_step_the_time_left_is_what_plan_foresaw(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ray_lora.running.time_left.monotonic", lambda: now[0])
    left = TimeLeft(expected=4, foreseen=(60.0, 200.0))
    assert not TimeLeft(expected=4).said([record("a", "waiting", 0)])  # nobody has planned it
    assert left.said([]) == "60 s to 3 min left, as plan foresaw"
    now[0] = 130.0
    assert left.said([record("a", "waiting", 0)]) == "0 s to 70 s left, as plan foresaw"
    now[0] = 140.0
    assert left.said([record("a", "running", 1)]) == "0 s to 60 s left, as plan foresaw"  # one step has no pace yet
    now[0] = 150.0
    assert left.said([record("a", "running", 2)]) == "6 min left"  # 0.1 of a trial in 10 s, 3.8 are left
    assert TimeLeft(foreseen=(10.0, 20.0)).said([]) == "10 s to 20 s left, as plan foresaw"
    late = TimeLeft(foreseen=(10.0, 20.0))
    now[0] = 171.0
    assert not late.said([])  # it was wrong


def test_the_time_left_is_a_range_while_the_pace_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ray_lora.running.time_left.monotonic", lambda: now[0])
    left = TimeLeft(expected=1)
    for at, step in [(0.0, 100), (40.0, 110), (50.0, 120)]:
        now[0] = at
        said = left.said([record("a", "running", step, total=1000)])
    assert said == "15 min to 37 min left"  # 20 steps in 50 s, the last 10 in 10 s, and 880 are left
    for step in range(130, 400, 10):
        now[0] += 10.0
        said = left.said([record("a", "running", step, total=1000)])
    assert said == "11 min left"  # in all and of late, ten steps took 10 s or a little more
    assert len(left._points) <= 64


def test_what_was_foreseen_is_found_by_a_run_of_the_same_recipe_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path))
    recipe, rows = Recipe(), {"train": 8, "validation": 4}
    assert foreseen_of(recipe, "search", rows) is None
    keep_foreseen(recipe, "search", rows, (3.0, 5.0))
    assert foreseen_of(recipe.override({"name": "again", "output_dir": "elsewhere"}), "search", rows) == (3.0, 5.0)
    assert foreseen_of(recipe, "training", rows) is None
    assert foreseen_of(recipe, "search", rows | {"train": 9}) is None
    assert foreseen_of(recipe.override({"lora.r": 3}), "search", rows) is None
    [kept] = tmp_path.glob("foreseen/*.json")
    kept.write_text("{")
    assert foreseen_of(recipe, "search", rows) is None
    monkeypatch.setenv("RAY_LORA_CACHE", "/dev/full")
    keep_foreseen(recipe, "search", rows, (3.0, 5.0))  # a cache that takes nothing


def test_times_as_people_say_them() -> None:
    assert said_range(9.5, 10.0) == "10 s"
    assert said_range(30, 125) == "30 s to 2 min"
    assert [said_time(seconds) for seconds in (5.4, 89, 300, 7500)] == ["5 s", "89 s", "5 min", "2 h 05 min"]


def test_a_history_without_rungs_has_nothing_to_recall(tmp_path: Path) -> None:
    assert recalled(tmp_path / "none") == []
    write_history(tmp_path, 4, {"accuracy": 0.5})
    write_history(tmp_path, 8, {"accuracy": math.pi}, {"eighths": 8, "validation_rows": 9})
    assert recalled(tmp_path) == []
