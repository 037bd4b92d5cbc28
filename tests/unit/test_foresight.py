"""What a run will take: arithmetic over what probes measured, and a probe itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_lora.errors import RayLoraError
from ray_lora.recipe import Recipe
from ray_lora.running.measuring import fitted
from ray_lora.running.plan import plan_recipe, slots_for
from ray_lora.running.probes import Asked, Measured, Probed, ProbeError, Probes
from ray_lora.search.foresight import foresee, plan_and_foresee, run_of, show
from tests.ray.rows import tiny_recipe

NOTHING = {
    "load": 0.0, "encode_row": 0.0, "step": 0.0, "step_row": 0.0, "evaluate_row": 0.0, "head": 0.0, "head_row": 0.0,
    "peak_bytes": 1000, "grown_bytes": 0, "members": 1, "steps": 1,
}  # fmt: skip


def probed(**found: float) -> Probed:
    return Probed(0.0, (Measured.model_validate(NOTHING | found),))


@pytest.fixture
def recipe(tiny_bert_folder: Path, tmp_path: Path) -> Recipe:
    return tiny_recipe(tiny_bert_folder, tmp_path)  # 96 rows, batches of 8, 24 steps; 40 validation rows, every 6 steps


def seconds(recipe: Recipe, **found: float) -> list[float]:
    plan = plan_recipe(recipe)
    told: list[float] = foresee(recipe, plan, run_of(recipe, plan), probed(**found))["seconds"]
    return told


def test_a_line_through_what_was_timed() -> None:
    assert fitted([(16, 3.6), (64, 8.4), (128, 14.8)]) == pytest.approx((2.0, 0.1))
    assert fitted([(16, 1.0), (16, 3.0)]) == pytest.approx((0.0, 0.125))  # of one size: nothing is known beside rows
    assert fitted([(16, 4.0), (64, 1.0)]) == pytest.approx((0.0, 5 / 80))  # noise: more rows are not quicker


def test_training_is_its_steps_and_its_evaluations(recipe: Recipe) -> None:
    assert seconds(recipe, step=1.0) == [24.0, 24.0]
    assert seconds(recipe, step_row=1.0) == [192.0, 192.0]
    assert seconds(recipe, evaluate_row=1.0) == [160.0, 160.0]
    assert seconds(recipe.override({"training.eval_steps": None}), evaluate_row=1.0) == [80.0, 80.0]  # two epochs
    assert seconds(recipe, encode_row=1.0) == [136.0, 136.0]
    assert seconds(recipe, load=3.0, head=2.0) == [5.0, 5.0]


def test_a_search_shares_steps_and_ends_early(recipe: Recipe) -> None:
    rates = {"training.learning_rate": {"grid_search": [1e-3] * 16}}
    search = recipe.override({"search.space": rates, "training.eval_steps": None, "scaling.packs": 2})
    every = search.override({"search.early_stopping": "none"})
    assert seconds(every, step=1.0) == [24.0, 24.0]  # eight trials in each pack, all in the same steps
    assert seconds(every.override({"scaling.slots": 4}), step=1.0) == [48.0, 48.0]
    assert seconds(every, step_row=1.0) == [8 * 192.0] * 2
    halved = search.override({"search.early_stopping": "rungs"})
    low, high = seconds(halved, step_row=1.0)
    assert high == 8 * 192.0
    assert low == pytest.approx(high * (16 / 8 + 10 / 8 + 6 / 4 + 4 / 2) / 16)  # of 1.7 one goes on: 10, 6 and 4
    low, high = seconds(halved, evaluate_row=1.0)
    assert (low, high) == (40 * (16 + 10 + 6 + 4) / 2, 8 * 40 * 4)  # of 40 rows every rung answers all


def test_batches_that_are_searched_count_each_their_own(recipe: Recipe) -> None:
    space = {"training.per_device_train_batch_size": {"grid_search": [8, 16]}, "lora.r": {"randint": [1, 5]}}
    search = recipe.override({"search.space": space, "scaling.packs": 1})
    plan = plan_recipe(search)
    run = run_of(search, plan)
    assert [config["training.per_device_train_batch_size"] for config in run.configs] == [8, 16]
    assert all(1 <= config["lora.r"] < 5 for config in run.configs)
    assert seconds(search, step=1.0)[1] == 18.0  # the mean of 24 and 12, both in the same steps


def test_memory_is_the_probes_peak_and_the_slots_that_it_had_not(recipe: Recipe) -> None:
    search = recipe.override({"search.space": {"lora.r": {"grid_search": [1, 2, 3, 4]}}, "scaling.packs": 1})
    plan = plan_recipe(search)
    told = foresee(search, plan, run_of(search, plan), probed())
    assert told["worker_bytes"] == 1000 + 3 * plan["slot_bytes"] + 4 * plan["adapter_bytes"]
    grown = foresee(search, plan, run_of(search, plan), probed(grown_bytes=10, steps=4))
    assert grown["worker_bytes"] - told["worker_bytes"] == 10 * (24 - 4)  # a run has 24 steps


def test_a_search_starts_a_process_for_each_trial_that_runs_at_once(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_lora.search.foresight.os.cpu_count", lambda: 2)
    rates = {"training.learning_rate": {"grid_search": [1e-3] * 20}}
    told = {"search.space": rates, "scaling.packs": 2, "scaling.slots": 5, "search.early_stopping": "none"}
    search = recipe.override(told)

    def start(wanted: Recipe) -> float:
        plan, began = plan_recipe(wanted), Probed(10.0, probed().found)
        return float(foresee(wanted, plan, run_of(wanted, plan), began)["parts"]["start"])

    assert start(recipe.override({"search.space": None})) == 25.0
    assert start(search) == 25.0 + 10 * 0.36 * 10 / 2  # of twenty ten have a slot
    assert start(search.override({"search.max_concurrent_trials": 4})) == 25.0 + 10 * 0.36 * 4 / 2
    assert start(search.override({"search.space": {"lora.r": {"grid_search": [1, 2]}}})) == 25.0 + 10 * 0.36 * 2 / 2


def test_processor_seconds_are_those_that_the_probes_had(recipe: Recipe) -> None:
    search = recipe.override({"search.space": {"lora.r": {"grid_search": [1, 2, 3, 4]}}, "scaling.packs": 2})
    plan = plan_recipe(search)
    run = run_of(search, plan)
    told = foresee(search, plan, run, probed(step=1.0, load=4.0, share=0.5, imports=3.0))
    assert told["seconds"] == [28.0, 28.0]  # 24 steps in either pack
    assert told["processor_seconds"] == [2 * (0.5 * 28.0 + 3.0)] * 2
    assert "others use this machine: a probe had 50% of a processor" in show(plan | {"foreseen": told})
    alone = foresee(search, plan, run, probed(step=1.0, share=0.97))
    assert "others use" not in show(plan | {"foreseen": alone})


def test_a_probe_trains_and_answers_for_real(recipe: Recipe) -> None:
    search = recipe.override({"search.space": {"lora.r": {"grid_search": [1, 2, 3, 4]}}, "scaling.packs": 1})
    search = search.override({"training.head_start": "random", "training.head_teacher": 0.5})
    with Probes(1) as probes:
        told = plan_and_foresee(search, probes)["foreseen"]
    assert told["timed_members"] == 4
    assert told["timed_steps"] >= 3
    assert 0 < told["seconds"][0] <= told["seconds"][1]
    assert all(told["parts"][part] >= 0 for part in ("start", "load", "heads", "steps", "answers"))
    assert told["parts"]["heads"] > 0  # of the head that teaches
    assert 0 < told["share"] <= 1
    assert 0 < told["processor_seconds"][0] <= told["processor_seconds"][1]
    assert told["worker_bytes"] > 200e6  # torch alone is as much
    shown = show(plan_and_foresee(search, None) | {"foreseen": told})
    assert "4 trials in 1 packs" in shown
    assert "in each of 1 workers, by a probe's peak" in shown


def test_a_probe_that_fails_says_with_what(recipe: Recipe) -> None:
    asked = Asked(
        recipe=recipe.override({"base.model": "nowhere/at-all"}).model_dump_json(),
        task=recipe.task.model_dump_json(), configs=[{}], members=[1], max_rank=4, max_rows=8,
    )  # fmt: skip
    with Probes(1) as probes, pytest.raises(ProbeError, match="nowhere/at-all") as raised:
        probes.ask(asked, 1)
    assert isinstance(raised.value, RayLoraError)


def test_without_a_probe_the_plan_is_what_it_was(recipe: Recipe) -> None:
    told, plain = plan_and_foresee(recipe, None), plan_recipe(recipe)
    moving = {"free_bytes", "room"}  # others on this machine take and give memory
    assert {key: told[key] for key in told.keys() - moving} == {key: plain[key] for key in plain.keys() - moving}


def test_the_last_few_of_a_search_share_the_first_round() -> None:
    assert slots_for(slots=4, room=100, jobs=5) == 5  # eight configurations and the default one, in two packs
    assert slots_for(slots=4, room=100, jobs=7) == 4  # two rounds, as full as passes are
    assert slots_for(slots=4, room=4, jobs=5) == 4
    assert slots_for(slots=4, room=100, jobs=2) == 2
