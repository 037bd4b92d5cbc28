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
from ray_lora.errors import RayLoraError, RecipeError
from ray_lora.running.claims import claimed
from ray_lora.search.tuner import LoraTuner, search_recipe
from ray_lora.training.history import read_history
from tests.ray.own import TYPE
from tests.ray.rows import alone, history, tiny_recipe

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
        tracking__uri=f"sqlite:///{tmp_path}/mlflow.db",
    )
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())  # JSON is YAML
    command = [sys.executable, "-m", "ray_lora", "search", str(tmp_path / "recipe.yaml"), "--json"]
    run = tmp_path / "runs/killed"
    first = subprocess.Popen(command, cwd=Path.cwd(), start_new_session=True, stderr=subprocess.DEVNULL)
    while not list(run.glob("jobs/*/adapter")):
        time.sleep(0.05)
        assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
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
    finished = {path.parent.name: Adapter.load(path).sha256 for path in jobs.glob("*/adapter")}
    again = LoraTuner(recipe, quiet=True)
    again.fit()
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
    recipe = tiny_recipe(tiny_bert_folder, tmp_path)
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
