"""Searches whose trials share one base: equal to each configuration alone, with Ray's schedulers, and after a kill."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import tune
from ray.tune.search.optuna import OptunaSearch

import ray_lora
from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import DataError, RayLoraError, RecipeError
from ray_lora.recipe import Recipe
from ray_lora.running.claims import claimed
from ray_lora.running.progress import describe
from ray_lora.search import stopping
from ray_lora.search.stopping import tell
from ray_lora.search.tuner import LoraTuner, search_recipe
from ray_lora.training.history import read_history
from tests.mlflow_world import database
from tests.ray.kills import kill
from tests.ray.own import TYPE
from tests.ray.rows import alone, history, tiny_recipe, write_rows

GRID = {"lora.r": {"grid_search": [1, 16]}, "training.learning_rate": {"grid_search": [1e-2, 1e-3]}}


@pytest.mark.usefixtures("cluster")
def test_every_trial_equals_its_configuration_alone(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """Four trials on two slots: two wait for a slot, and one of them diverges without harming the others."""
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, name="grid", scaling__slots=2, scaling__packs=1)
    space = {
        "lora.r": tune.grid_search([1, 16]),
        "training.learning_rate": tune.grid_search([1e-2, 1e-3]),
        "training.per_device_train_batch_size": tune.choice([8]),
    }
    tuner = LoraTuner(recipe, param_space=space, quiet=True)
    grid = tuner.fit()
    assert len(grid) == 4
    assert not grid.errors
    logged = history(tmp_path / "runs/grid")
    for trial in tuner.summary.trials:
        single, adapter = alone(recipe.override(trial.config), tmp_path / f"alone-{trial.name}")
        packed = [values["loss"] for _, values in sorted(logged[trial.name].items())]
        assert packed == pytest.approx(single, abs=1e-4)
        assert trial.adapter is not None
        mine = Adapter.load(Path(trial.adapter))
        assert all((mine.tensors[name] - tensor).abs().max() < 1e-3 for name, tensor in adapter.tensors.items())
    drawn = {Path(plot).stem for plot in tuner.summary.plots if Path(plot).exists()}
    assert drawn == {"learning_curves", "rank_by_rate", "parallel_coordinates"}  # four trials: no importances
    assert (tmp_path / "runs/grid/leaderboard.csv").read_text().count("\n") == 1 + 4
    assert tuner.summary.best is not None
    assert tuner.summary.best.metrics["accuracy"] > 0.5
    assert all(tuner.costs[what] > 0 for what in ("load", "wait", "forward", "backward", "optimizer", "evaluate"))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("searcher", ["basic", "optuna"])
def test_a_search_for_several_metrics(searcher: str, tiny_bert_folder: Path, tmp_path: Path) -> None:
    """A score, a size and a gap between groups: each trial has all of them, the table marks the Pareto set, and the
    champion is the one that the rule chooses."""
    recipe = tiny_recipe(
        tiny_bert_folder,
        tmp_path,
        search__space={"lora.r": {"choice": [1, 2, 4, 8]}, "training.learning_rate": {"loguniform": [1e-3, 3e-2]}},
        search__searcher=searcher,
        search__num_samples=6,
        search__metrics=[{"name": "accuracy"}, {"name": "parameters"}, {"name": "accuracy_gap"}],
        search__groups="region",
        scaling__packs=1,
    )
    lines = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    regions = ["north" if row % 2 else "south" for row in range(len(lines))]
    told = [json.dumps(line | {"region": region}) for line, region in zip(lines, regions, strict=True)]
    (tmp_path / "validation.jsonl").write_text("\n".join(told) + "\n")
    found = search_recipe(recipe, quiet=True)
    trials = found["trials"]
    assert len(trials) == 6
    for trial in trials:
        scores = trial["metrics"]
        north, south = scores["accuracy_worst_group"], scores["accuracy_worst_group"] + scores["accuracy_gap"]
        assert (north + south) / 2 == pytest.approx(scores["accuracy"])  # the groups are of one size
        assert scores["parameters"] * 4 == scores["adapter_bytes"] < trial["bytes"]  # the file has a head line too
    sizes = {trial["config"]["lora.r"]: trial["metrics"]["parameters"] for trial in trials}
    assert [sizes[rank] for rank in sorted(sizes)] == sorted(sizes.values())
    costs = [[-t["metrics"]["accuracy"], t["metrics"]["parameters"], t["metrics"]["accuracy_gap"]] for t in trials]
    beaten = [
        any(other != mine and all(o <= m for o, m in zip(other, mine, strict=True)) for other in costs)
        for mine in costs
    ]
    assert [trial["pareto"] for trial in trials] == [not lost for lost in beaten]
    assert found["choice"].startswith(describe(found["best"]["config"]))
    assert found["best"]["pareto"]
    run = tmp_path / "runs/tiny"
    assert (run / "pareto.png").exists()
    assert (run / "leaderboard.csv").read_text().splitlines()[0].endswith(",pareto,status")


@pytest.mark.usefixtures("cluster")
def test_groups_that_rows_do_not_have_are_refused(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, search__space=GRID, search__groups="region")
    with pytest.raises(DataError, match="no column 'region'"):
        LoraTuner(recipe, quiet=True).fit()


@pytest.mark.usefixtures("cluster")
def test_asha_stops_trials_and_their_slots_go_on(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tiny_bert_folder, tmp_path, name="asha", scaling__slots=2, scaling__packs=1, training__eval_steps=2
    )
    scheduler = tune.schedulers.ASHAScheduler(
        time_attr="training_iteration", grace_period=1, reduction_factor=2, max_t=99
    )
    space = {
        "training.learning_rate": tune.grid_search([1e-2, 1e-5, 1e-6, float("1e18")]),
        "training.max_grad_norm": tune.choice([0.0]),
    }
    config = tune.TuneConfig(scheduler=scheduler, metric="accuracy", mode="max")
    tuner = LoraTuner(recipe, param_space=space, tune_config=config, quiet=True)
    grid = tuner.fit()
    states = {trial.config["training.learning_rate"]: trial.status for trial in tuner.summary.trials}
    assert len(states) == 4
    assert "stopped" in states.values()
    assert "finished" in states.values()
    assert states[1e18] in ("failed", "stopped")  # it diverges, alone
    assert tuner.summary.best is not None
    for trial in tuner.summary.trials:
        assert (trial.adapter is None) == (trial.status == "failed")
        if trial.adapter is not None:  # of a stopped one, as its last evaluation found it
            assert Adapter.load(Path(trial.adapter)).card.metrics["accuracy"] == trial.metrics["accuracy"]
    assert len(grid.errors) == sum(state == "failed" for state in states.values())


def test_the_same_command_goes_on_after_a_killed_driver(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tiny_bert_folder,
        tmp_path,
        name="killed",
        scaling__slots=2,
        scaling__packs=1,
        training__num_train_epochs=12,
        training__eval_steps=24,
        search__space=GRID,
        tracking__uri=database(tmp_path),
    )
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())  # JSON is YAML
    command = [sys.executable, "-m", "ray_lora", "search", str(tmp_path / "recipe.yaml"), "--json"]
    run = tmp_path / "runs/killed"
    first = subprocess.Popen(command, cwd=Path.cwd(), start_new_session=True, stderr=subprocess.DEVNULL)
    while not list(run.glob("jobs/*/adapter")):
        time.sleep(0.05)
        assert first.poll() is None
    kill(first, run)
    finished = {path.parent.name: Adapter.load(path).sha256 for path in run.glob("jobs/*/adapter")}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(answer["trials"]) == 4
    assert all(trial["status"] == "finished" for trial in answer["trials"])
    for name, sha256 in finished.items():
        assert Adapter.load(run / "jobs" / name / "adapter").sha256 == sha256
        steps = [line["step"] for line in read_history(run / "jobs" / name) if "loss" in line["metrics"]]
        assert len(steps) == len(set(steps)) == 144  # no step was trained twice
    from mlflow import MlflowClient

    client = MlflowClient(recipe.tracking.uri)
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 + 4
    assert all(found.info.status == "FINISHED" for found in runs)


class Heard(tune.Callback):
    """Counts what Tune tells its callbacks."""

    def __init__(self) -> None:
        self.results: list[int] = []
        self.ended = 0

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.results.append(result["step"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.ended += 1


@pytest.mark.usefixtures("cluster")
def test_optuna_a_stopper_and_callbacks_work_as_they_are(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """A trial that Tune stops at its second evaluation has trained not one step beyond it."""
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, name="optuna", scaling__slots=2, scaling__packs=1)
    space = {"lora.r": tune.randint(1, 9), "training.learning_rate": tune.loguniform(1e-4, 1e-2)}
    heard = Heard()
    tuner = LoraTuner(
        recipe,
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(metric="accuracy", mode="max", seed=0),
            scheduler=tune.schedulers.MedianStoppingRule(time_attr="training_iteration", grace_period=5),
            num_samples=4,
            max_concurrent_trials=2,
        ),
        run_config=tune.RunConfig(stop=tune.stopper.MaximumIterationStopper(2), callbacks=[heard]),
        quiet=True,
    )
    grid = tuner.fit()
    assert len(grid) == 4
    assert not grid.errors
    assert len({tuple(sorted(result.config.items())) for result in grid}) == 4
    assert sorted(heard.results) == [6, 6, 6, 6, 12, 12, 12, 12]
    assert heard.ended == 4
    assert {trial.status for trial in tuner.summary.trials} == {"stopped"}
    assert {max(steps) for steps in history(tmp_path / "runs/optuna").values()} == {12}
    assert tuner.summary.best is not None
    assert tuner.summary.best.adapter is not None
    assert tuner.summary.best.metrics["accuracy"] == grid.get_best_result().metrics["accuracy"]


class Enough(tune.Stopper):
    """Ends the whole search after some evaluations, as a time budget does."""

    def __init__(self, results: int) -> None:
        self.left = results

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.left -= 1
        return False

    def stop_all(self) -> bool:
        return self.left <= 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("cluster")
def test_a_search_that_is_ended_keeps_the_best_so_far(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """Four trials on two slots, ended while the first two train between two evaluations."""
    recipe = tiny_recipe(
        tiny_bert_folder, tmp_path, name="ended", scaling__slots=2, scaling__packs=1, training__num_train_epochs=999
    )
    space = {"training.learning_rate": tune.grid_search([1e-2, 3e-3, 1e-3, 1e-4])}
    tuner = LoraTuner(recipe, param_space=space, run_config=tune.RunConfig(stop=Enough(5)), quiet=True)
    grid = tuner.fit()
    trials = tuner.summary.trials
    evaluated = [trial for trial in trials if "accuracy" in trial.metrics]
    assert {trial.status for trial in evaluated} == {"stopped"}
    assert len(evaluated) == 2
    for trial in evaluated:
        assert trial.adapter is not None
        assert Adapter.load(Path(trial.adapter)).card.metrics["accuracy"] == trial.metrics["accuracy"]
    assert tuner.summary.best == trials[0]
    assert trials[0].metrics["accuracy"] == max(trial.metrics["accuracy"] for trial in evaluated)
    assert all(trial.adapter is None for trial in trials if trial not in evaluated)
    assert {result.metrics["trial_id"] for result in grid if "accuracy" in (result.metrics or {})} == {
        trial.name for trial in evaluated
    }
    gc.collect()  # Tune leaves a log file open; here, not in the next test


@pytest.mark.usefixtures("cluster")
def test_population_based_training_clones_and_perturbs(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """A bad trial goes on from a good one's state with another rate, which `save` and `restore` of a trial carry."""
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, name="pbt", scaling__slots=2, scaling__packs=1)
    scheduler = tune.schedulers.PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=1,
        quantile_fraction=0.5,
        hyperparam_mutations={"training.learning_rate": [2e-2, 5e-3]},
        synch=True,
    )
    space = {"training.learning_rate": tune.grid_search([1e-2, 1e-9])}
    config = tune.TuneConfig(scheduler=scheduler, metric="loss", mode="min")
    grid = LoraTuner(recipe, param_space=space, tune_config=config, quiet=True).fit()
    assert not grid.errors
    rates = {result.config["training.learning_rate"] for result in grid}
    assert 1e-9 not in rates  # the one that could not learn was replaced
    assert all(result.metrics["step"] == 24 for result in grid)


@pytest.mark.usefixtures("cluster")
def test_the_same_search_goes_on_after_a_killed_coordinator(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tiny_bert_folder,
        tmp_path,
        name="orphaned",
        scaling__slots=2,
        scaling__packs=1,
        training__num_train_epochs=12,
        training__eval_steps=24,
        search__space={"lora.r": {"grid_search": [1, 4, 16]}},
    )
    jobs, killed = tmp_path / "runs/orphaned/jobs", []

    def kill() -> None:
        while not list(jobs.glob("*/adapter")):
            time.sleep(0.02)
        for process in psutil.Process().children(recursive=True):
            if "ray::Coordinator" in " ".join(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RayLoraError, match="coordinator has died; give the same command again"):
        LoraTuner(recipe, quiet=True).fit()
    killer.join()
    assert killed
    gc.collect()  # files that Tune has not closed are errors here, and not in a later test
    finished = {path.parent.name: Adapter.load(path).sha256 for path in jobs.glob("*/adapter")}
    half = tmp_path / "runs/orphaned/tune/.unfinished-0"  # what a killed driver leaves of a state
    half.write_text("{")
    again = LoraTuner(recipe, quiet=True)
    again.fit()
    assert not half.exists()
    assert {trial.status for trial in again.summary.trials} == {"finished"}
    assert len(again.summary.trials) == 3
    for name, sha256 in finished.items():
        assert Adapter.load(jobs / name / "adapter").sha256 == sha256
    for trial in again.summary.trials:
        steps = [line["step"] for line in read_history(jobs / trial.name) if "loss" in line["metrics"]]
        assert sorted(set(steps)) == list(range(1, 145))
        assert len(steps) - len(set(steps)) <= recipe.training.save_steps


def test_a_space_that_cannot_be_searched_is_refused(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path)
    for space, message in [
        ({"lora.rank": tune.grid_search([2])}, "'lora.rank' is not a key of the recipe"),
        ({"base.model": tune.grid_search(["a", "b"])}, "run one search for each value"),
        ({"lora.r": tune.grid_search([0])}, "greater than or equal to 1"),
        ({}, "search space is empty"),
    ]:
        with pytest.raises(RecipeError, match=message):
            LoraTuner(recipe, param_space=space)
    for given, message in [
        ({"lora.r": {"gridsearch": [1]}}, "did you mean 'grid_search'"),
        ({"lora.r": {"grid_search": []}}, "has nothing to try"),
    ]:
        with pytest.raises(RecipeError, match=message):
            LoraTuner(recipe.override({"search.space": given}))


def test_a_run_is_written_by_one_process_and_keeps_its_name_to_itself(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_bert_folder, tmp_path)
    again = claimed(recipe, "search", "one")
    with claimed(recipe, "search", "one"), pytest.raises(RecipeError, match="another process is writing"), again:
        pass
    with claimed(recipe, "search", "one"):  # free again: the same command goes on
        pass
    with pytest.raises(RecipeError, match="another run of that name"), claimed(recipe, "search", "two"):
        pass


def test_a_task_of_the_users_own_reaches_trials_and_packs(
    tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster was started before the task was allowed."""
    monkeypatch.setenv("RAY_LORA_ALLOW", "")
    recipe = tiny_recipe(tiny_bert_folder, tmp_path, scaling__packs=1)
    own = {"type": TYPE, "labels": None, "loud": True}
    with pytest.raises(RecipeError, match="is not allowed"):
        recipe.override({"task": own})
    ray_lora.allow("tests.ray.own")
    found = search_recipe(
        recipe.override({"task": own, "search.space": {"lora.r": {"grid_search": [2, 4]}}}), quiet=True
    )
    assert [trial["status"] for trial in found["trials"]] == ["finished", "finished"]
    task = Adapter.load(Path(found["trials"][0]["adapter"])).card.task
    assert task is not None
    assert task.model_dump() == {"type": TYPE, "labels": ("no", "yes"), "max_length": 16, "loud": True}
    assert len(list((tmp_path / "runs" / "tiny").glob("jobs/*/figures/confusion_matrix.png"))) == 2


def rung_recipe(base: Path, folder: Path, name: str, **overrides: Any) -> Recipe:
    """As the others, evaluated at rungs on 100 validation rows: 24 steps, rungs after 3, 6 and 12. The training loss
    decides, which differs between any two rates."""
    if not (folder / "validation-100.jsonl").exists():
        write_rows(folder / "validation-100.jsonl", 100, seed=2)
    told = {
        "data__validation": str(folder / "validation-100.jsonl"),
        "training__eval_steps": None,
        "search__early_stopping": "rungs",
        "search__metric": "loss",
        "search__mode": "min",
        "scaling__slots": 4,
        "scaling__packs": 1,
    }
    return tiny_recipe(base, folder, name=name, **told | overrides)


RATES = [1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6]


@pytest.mark.usefixtures("cluster")
def test_a_search_ends_early_and_never_counts_a_part_as_the_whole(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """Eight trials on four slots, the recipe's own values among them; those that are stopped free their slots."""
    recipe = rung_recipe(
        tiny_bert_folder,
        tmp_path,
        "early",
        lora__r=2,
        training__learning_rate=2e-3,
        search__try_default=True,
        search__space={"training.learning_rate": {"grid_search": RATES}},
    )
    heard = HeardInOrder()
    tuner = LoraTuner(recipe, run_config=tune.RunConfig(callbacks=[heard]), quiet=True)
    grid = tuner.fit()
    summary = tuner.summary
    assert not grid.errors
    assert len(summary.trials) == 1 + 7
    assert summary.default is not None
    assert summary.default.config == {"training.learning_rate": 2e-3}
    ended = {trial.name: trial for trial in summary.trials}
    assert {trial.status for trial in summary.trials} == {"stopped", "finished"}
    logged = {name: read_history(tmp_path / "runs/early/jobs" / name) for name in ended}
    for name, lines in logged.items():
        rungs = [(line["step"], *line["rung"].values()) for line in lines if "rung" in line]
        assert rungs == [(3, 1, 64), (6, 2, 64), (12, 4, 64), (24, 8, 100)][: len(rungs)]
        assert lines[-1]["step"] == rungs[-1][0]  # not one step beyond the rung where it was stopped
        trial = ended[name]
        assert trial.rows == (None if trial.status == "finished" else 64)
        assert trial.adapter is not None
        card = Adapter.load(Path(trial.adapter)).card
        assert card.metrics["accuracy"] == trial.metrics["accuracy"]
        assert ("evaluated" in (card.recipe or {})) == (trial.status == "stopped")
    best = summary.best
    assert best is not None
    assert best.rows is None
    assert best.metrics["loss"] == min(t.metrics["loss"] for t in summary.trials if t.status == "finished")
    assert grid.get_best_result().metrics["trial_id"] == best.name
    assert sum(max(line["step"] for line in lines) for lines in logged.values()) < 8 * 24
    # Ray Tune's ASHA alone, told the same results in the same order, decides the same
    assert len(heard.told) == sum(len(trial.rungs) for trial in summary.trials)
    plain = plain_asha()
    decided = [(name, tell(plain, name, result)) for name, result in heard.told]
    last = dict(decided)
    assert set(last.values()) == {"STOP"}
    assert [action for name, action in decided if action == "STOP"] == ["STOP"] * len(ended)


class HeardInOrder(tune.Callback):
    """What Tune's scheduler decided on, in its order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self.told.append((trial.trial_id, dict(result)))


def plain_asha() -> tune.schedulers.ASHAScheduler:
    return tune.schedulers.ASHAScheduler(
        time_attr="eighths", metric="loss", mode="min", max_t=8, grace_period=1, reduction_factor=1.7
    )


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("kind", ["hyperband", "median"])
def test_other_schedulers_of_tunes_see_rungs(tiny_bert_folder: Path, tmp_path: Path, kind: str) -> None:
    """HyperBand pauses trials at rungs, and they go on from them; all are there at once, in two brackets."""
    recipe = rung_recipe(tiny_bert_folder, tmp_path, kind, scaling__slots=8)
    scheduler: Any = tune.schedulers.MedianStoppingRule(time_attr="eighths", grace_period=1, min_samples_required=2)
    if kind == "hyperband":
        scheduler = tune.schedulers.HyperBandScheduler(time_attr="eighths", max_t=8, reduction_factor=2)
    space = {"training.learning_rate": tune.grid_search([1e-2, 3e-3, 1e-3, 3e-4, 1e-5, 1e-6, 1e-7, 1e-8])}
    config = tune.TuneConfig(scheduler=scheduler, metric="loss", mode="min")
    tuner = LoraTuner(recipe, param_space=space, tune_config=config, quiet=True)
    grid = tuner.fit()
    assert not grid.errors
    assert len(grid) == 8
    reached = {trial.name: max(map(int, trial.rungs)) for trial in tuner.summary.trials}
    assert 8 in reached.values()
    assert min(reached.values()) < 8
    for name in reached:  # no step was made twice, whoever paused
        steps = [line["step"] for line in read_history(tmp_path / "runs" / kind / "jobs" / name)]
        assert len(steps) == len(set(steps))


@pytest.mark.usefixtures("cluster")
def test_a_killed_search_goes_on_from_the_same_rungs(
    tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler that goes on knows what the killed one was told, and trials go on from their rungs."""
    recipe = rung_recipe(
        tiny_bert_folder,
        tmp_path,
        "rekindled",
        training__num_train_epochs=40,
        search__space={"training.learning_rate": {"grid_search": RATES}},
    )
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())
    command = [sys.executable, "-m", "ray_lora", "search", str(tmp_path / "recipe.yaml"), "--json"]
    run = tmp_path / "runs/rekindled"
    first = subprocess.Popen(command, cwd=Path.cwd(), start_new_session=True, stderr=subprocess.DEVNULL)
    while not any(b"eighths" in path.read_bytes() for path in run.rglob("callback-states*.pkl")):
        time.sleep(0.05)  # until Tune has written down what its scheduler was told
        assert first.poll() is None
    kill(first, run)
    told_again: list[tuple[Any, str, float]] = []

    def spy(scheduler: Any, name: str, result: dict[str, float]) -> str:
        told_again.append((scheduler, name, result["eighths"]))
        return tell(scheduler, name, result)

    monkeypatch.setattr(stopping, "tell", spy)
    again = LoraTuner(Recipe.load(tmp_path / "recipe.yaml"), quiet=True)
    again.fit()
    assert told_again
    [memory] = {id(scheduler): scheduler for scheduler, _, _ in told_again}.values()
    recorded = [set(scores) for _, scores in reversed(memory._brackets[0]._rungs)]  # after 1/8, 1/4, 1/2 and all
    names = {trial.name for trial in again.summary.trials}
    assert len(names) == 7
    assert recorded[0] == names  # it was told by both searches
    for eighths, came in zip((1, 2, 4), recorded, strict=False):
        assert came <= {trial.name for trial in again.summary.trials if str(eighths) in trial.rungs}
    assert again.summary.best is not None
    assert again.summary.best.status == "finished"
    for trial in again.summary.trials:
        steps = {line["step"] for line in read_history(run / "jobs" / trial.name) if "rung" in line}
        assert sorted(steps) == [60, 120, 240, 480][: len(trial.rungs)]
