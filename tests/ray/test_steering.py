"""A running search that people steer: trials stopped, cloned and resumed, each equal to its configuration alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.cli import main
from ray_lora.errors import RecipeError
from ray_lora.recipe import Recipe
from ray_lora.search.asking import Request, ask, read_state
from ray_lora.search.summary import Summary, Trial
from ray_lora.search.tuner import LoraTuner, resume_search
from ray_lora.training.history import read_history
from ray_lora.training.state import step_of
from tests.documents import ROOT, blocks
from tests.mlflow_world import database
from tests.ray.kills import kill
from tests.ray.rows import alone, tiny_recipe
from tests.ray.test_search import rung_recipe

LONG = 900  # epochs of a trial that does not end by itself before somebody stops it
RATE = "training.learning_rate"


def long_recipe(base: Path, folder: Path, name: str, **overrides: Any) -> Recipe:
    """Two trials on three slots."""
    told = {
        "scaling__slots": 3,
        "scaling__packs": 1,
        "training__num_train_epochs": LONG,
        "search__space": {RATE: {"grid_search": [1e-2, 1e-3]}},
    }
    return tiny_recipe(base, folder, name=name, **told | overrides)


class Running:
    """A search in a thread of its own."""

    def __init__(self, recipe: Recipe) -> None:
        self.folder = Path(recipe.output_dir) / recipe.name
        self.tuner = LoraTuner(recipe, quiet=True)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.tuner.fit()
        except BaseException as error:
            self.error = error

    def wait(self, reached: Callable[[dict[str, dict[str, Any]]], bool]) -> dict[str, dict[str, Any]]:
        """Its trials by name, once they are as wanted."""
        while True:
            trials = self.trials()
            if trials and reached(trials):
                return trials
            assert self.thread.is_alive(), self.error
            time.sleep(0.1)

    def trials(self) -> dict[str, dict[str, Any]]:
        if not (self.folder / "steering" / "state.json").exists():
            return {}
        return {trial["name"]: trial for trial in read_state(self.folder)["trials"]}

    def ask(self, do: Any, *trials: str, fresh: bool = False, **changes: Any) -> dict[str, Any]:
        told = {key.replace("__", "."): value for key, value in changes.items()}
        return ask(self.folder, Request(do=do, trials=trials, changes=told, fresh=fresh))


@contextmanager
def running(recipe: Recipe) -> Iterator[Running]:
    search = Running(recipe)
    search.thread.start()
    try:
        yield search
    except BaseException:
        if search.thread.is_alive():
            search.ask("stop")
        raise
    finally:
        search.thread.join()
    assert search.error is None, search.error


def evaluated(trials: dict[str, dict[str, Any]]) -> bool:
    return len(trials) >= 2 and all(trial["score"] is not None for trial in trials.values())


def by_rate(trials: dict[str, dict[str, Any]], rate: float) -> str:
    [name] = [name for name, trial in trials.items() if trial["config"][RATE] == rate and trial["parent"] is None]
    return name


def losses(folder: Path, name: str) -> list[float]:
    lines = {line["step"]: line["metrics"]["loss"] for line in read_history(folder / "jobs" / name)}
    return [loss for _, loss in sorted(lines.items())]


def summary_of(search: Running) -> dict[str, Trial]:
    return {trial.name: trial for trial in search.tuner.summary.trials}


def assert_same(trial: Trial, adapter: Adapter) -> None:
    assert trial.adapter is not None
    mine = Adapter.load(Path(trial.adapter))
    assert mine.tensors.keys() == adapter.tensors.keys()
    assert all((mine.tensors[name] - tensor).abs().max() < 1e-3 for name, tensor in adapter.tensors.items())


@pytest.mark.usefixtures("cluster")
def test_a_clone_equals_its_configuration_alone(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """One from nothing, of another rank; one from its parent's checkpoint, with another rate; the stopped parent keeps
    the adapter of its last evaluation."""
    recipe = long_recipe(tiny_bert_folder, tmp_path, "cloned", search__space={
        RATE: {"grid_search": [1e-2, 1e-3]}, "lora.r": {"choice": [4]}, "lora.lora_alpha": {"choice": [8]},
    })  # fmt: skip
    with running(recipe) as search:
        trials = search.wait(evaluated)
        good, bad = by_rate(trials, 1e-2), by_rate(trials, 1e-3)
        fresh = search.ask("clone", good, lora__r=2, training__num_train_epochs=2)
        assert (fresh["step"], fresh["total"]) == (0, 24)
        assert fresh["why"] == "its lora.r differs, so the checkpoint is of another form"
        assert search.ask("stop", good)["stopped"] == [good]
        state = search.folder / "jobs" / good / "state"
        search.wait(lambda trials: trials[good]["status"] == "stopped" and (state.parent / "adapter").is_dir())
        step = step_of(state)
        assert step
        shutil.copytree(state, tmp_path / "warm" / "alone" / "state")
        epochs = step // 12 + 2
        warm = search.ask("clone", good, training__learning_rate=3e-3, training__num_train_epochs=epochs)
        assert (warm["step"], warm["begins"], warm["total"]) == (step, f"from step {step} of {good}", 12 * epochs)
        ended = search.wait(lambda trials: all(trials[one["trial"]]["status"] == "finished" for one in (fresh, warm)))
        assert (ended[warm["trial"]]["parent"], ended[warm["trial"]]["since"]) == (good, step)
        search.ask("stop", bad)
    trials_ended = summary_of(search)
    assert {name: trial.status for name, trial in trials_ended.items()} == {
        good: "stopped", bad: "stopped", fresh["trial"]: "finished", warm["trial"]: "finished",
    }  # fmt: skip
    for name in (good, bad):
        trial = trials_ended[name]
        assert trial.adapter is not None
        assert Adapter.load(Path(trial.adapter)).card.metrics["accuracy"] == trial.metrics["accuracy"]

    begun = trials_ended[fresh["trial"]]
    single, adapter = alone(recipe.override(begun.config), tmp_path / "fresh")
    assert losses(search.folder, begun.name) == pytest.approx(single, abs=1e-4)
    assert_same(begun, adapter)
    assert "origin" not in (Adapter.load(Path(str(begun.adapter))).card.recipe or {})

    gone_on = trials_ended[warm["trial"]]
    single, adapter = alone(recipe.override(gone_on.config), tmp_path / "warm", tmp_path / "warm" / "alone" / "state")
    assert len(single) == 12 * epochs - step
    assert losses(search.folder, gone_on.name) == pytest.approx(single, abs=1e-4)
    assert_same(gone_on, adapter)
    origin = (Adapter.load(Path(str(gone_on.adapter))).card.recipe or {})["origin"]
    assert (origin["trial"], origin["step"], origin["training"]["learning_rate"]) == (good, step, 1e-2)
    assert (gone_on.parent, gone_on.since) == (good, step)
    assert (
        Summary.recall(json.loads((search.folder / "summary.json").read_text())).trials == search.tuner.summary.trials
    )


def test_a_killed_search_goes_on_with_what_was_asked_of_it(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """Killed right after a clone was promised, before Tune has written it down; what was stopped stays stopped."""
    recipe = long_recipe(tiny_bert_folder, tmp_path, "steered", training__num_train_epochs=30, training__eval_steps=12)
    (tmp_path / "recipe.yaml").write_text(recipe.model_dump_json())  # JSON is YAML
    command = [sys.executable, "-m", "ray_lora", "search", str(tmp_path / "recipe.yaml"), "--json"]
    run = tmp_path / "runs/steered"
    first = subprocess.Popen(command, cwd=Path.cwd(), start_new_session=True, stderr=subprocess.DEVNULL)
    trials: dict[str, dict[str, Any]] = {}
    while not evaluated(trials):
        time.sleep(0.1)
        assert first.poll() is None
        if (run / "steering/state.json").exists():
            trials = {trial["name"]: trial for trial in read_state(run)["trials"]}
    good, bad = by_rate(trials, 1e-2), by_rate(trials, 1e-3)
    told = ask(run, Request(do="clone", trials=(good,), changes={RATE: 5e-3}))
    assert ask(run, Request(do="stop", trials=(bad,)))["stopped"] == [bad]
    kill(first, run)
    assert not read_state(run)["running"]
    with pytest.raises(RecipeError, match=r"is not running; `ray-lora search resume steered` or its own command"):
        ask(run, Request(do="stop", trials=(good,)))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    ended = {trial["name"]: trial for trial in answer["trials"]}
    assert {name: trial["status"] for name, trial in ended.items()} == {
        good: "finished", bad: "stopped", told["trial"]: "finished",
    }  # fmt: skip
    clone = ended[told["trial"]]
    assert (clone["parent"], clone["since"], clone["config"]) == (good, told["step"], {RATE: 5e-3})
    steps = {line["step"] for line in read_history(run / "jobs" / clone["name"])}
    assert steps == set(range(told["step"] + 1, 361))


@pytest.mark.usefixtures("cluster")
def test_the_page_s_commands_steer_a_search(
    tiny_bert_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/steering.md: trials and a whole search are stopped and go on where they were, each still one MLflow run."""
    recipe = long_recipe(
        tiny_bert_folder, tmp_path, "tweets", training__num_train_epochs=40, training__eval_steps=12,
        tracking__uri=database(tmp_path),
    )  # fmt: skip
    [block] = blocks(ROOT / "docs" / "steering.md", "sh")
    status, stop, warm, fresh, resume, stop_all, resume_all = block.splitlines()

    def typed(line: str) -> list[str]:
        words = line.replace("1a2b3_00000", good).replace("1a2b3_00001", bad).split()
        assert words.pop(0) == "ray-lora"
        return [*words, "--output-dir", recipe.output_dir, "--json"]

    def command(line: str) -> dict[str, Any]:
        code = main(typed(line))
        said = capsys.readouterr()
        assert code == 0, said.err
        answer: dict[str, Any] = json.loads(said.out.strip().splitlines()[-1])
        return answer

    with running(recipe) as search:
        trials = search.wait(evaluated)
        good, bad = by_rate(trials, 1e-2), by_rate(trials, 1e-3)
        assert command(status)["running"]
        assert command(stop)["stopped"] == [bad]
        search.wait(lambda trials: trials[bad]["status"] == "stopped")
        cloned, begun = command(warm), command(fresh)
        assert (cloned["parent"], begun["parent"]) == (good, good)
        assert cloned["step"] > 0
        assert (begun["step"], begun["total"]) == (0, 24)
        assert command(resume)["trial"] == bad
        search.wait(lambda trials: trials[bad]["status"] == "running")
        for line, said in [
            (stop.replace("1a2b3_00001", "nobody"), "no trial 'nobody' in this search"),
            (resume, "has not ended"),
            (f"{warm} base.model=other", "not base.model; run one search for each value"),
            (f"{warm} lora.rank=2", "'lora.rank' is not a key of the recipe"),
            (f"{warm} lora.r=64", "rank 64 exceeds this search's max_rank 4"),
            (f"{warm} training.num_train_epochs=0.1", "the clone would have 2 steps"),
            (f"{warm.rpartition(' ')[0]} {RATE}=0.01", "at least one key=value that differs"),
        ]:
            assert main(typed(line)) == 2
            assert said in capsys.readouterr().err
        told = command(stop_all)
        assert told["search"]
        assert {good, bad} <= set(told["stopped"])
    assert {trial.status for trial in summary_of(search).values()} <= {"stopped", "finished"}
    assert command(status)["ended"] == "stopped"
    for line in (stop_all, warm):
        assert main(typed(line)) == 2
        assert "is over: it was stopped; `ray-lora search resume tweets` goes on" in capsys.readouterr().err
    answer = command(resume_all)
    ended = {trial["name"]: trial for trial in answer["trials"]}
    assert set(ended) == {good, bad, cloned["trial"], begun["trial"]}
    assert {trial["status"] for trial in ended.values()} == {"finished"}
    single, adapter = alone(recipe.override(ended[bad]["config"]), tmp_path / "alone")
    assert losses(search.folder, bad) == pytest.approx(single, abs=1e-4)
    assert_same(Trial(**ended[bad]), adapter)
    from mlflow import MlflowClient

    client = MlflowClient(recipe.tracking.uri)
    experiment = client.get_experiment_by_name("tweets")
    assert experiment is not None
    jobs = {run.data.tags.get("ray_lora.job"): run for run in client.search_runs([experiment.experiment_id])}
    assert {jobs[name].info.status for name in ended} == {"FINISHED"}
    assert jobs[cloned["trial"]].data.params["origin.trial"] == good
    with pytest.raises(RecipeError, match="has come to its end"):
        resume_search(search.folder)


@pytest.mark.usefixtures("cluster")
def test_a_trial_that_asha_stopped_is_resumed_to_its_next_rung(tiny_bert_folder: Path, tmp_path: Path) -> None:
    """And is compared there with those that came to it before; no step is made twice."""
    space = {RATE: {"grid_search": [1e-2, 1e-3, 1e-5, 1e-6]}}
    recipe = rung_recipe(
        tiny_bert_folder, tmp_path, "asha", training__num_train_epochs=80, search__space=space, scaling__packs=1
    )

    def rungs(name: str) -> list[int]:
        """The steps at which a trial was evaluated; what a search shows of it may be half a second old."""
        return [line["step"] for line in read_history(search.folder / "jobs" / name) if "rung" in line]

    with running(recipe) as search:
        found = search.wait(lambda trials: any(t["status"] == "stopped" and t["step"] for t in trials.values()))
        name = next(name for name, trial in found.items() if trial["status"] == "stopped" and trial["step"])
        before = rungs(name)
        assert search.ask("resume", name) == {"trial": name, "step": before[-1]}
        search.wait(lambda trials: len(rungs(name)) > len(before))
        with pytest.raises(RecipeError, match=r"evaluated at rungs; leave training\.eval_steps out"):
            search.ask("clone", name, training__eval_steps=4)
        search.ask("stop")
    trial = summary_of(search)[name]
    assert list(trial.rungs)[: len(before) + 1] == [str(eighths) for eighths in (1, 2, 4, 8)[: len(before) + 1]]
    steps = [line["step"] for line in read_history(search.folder / "jobs" / name)]
    assert len(steps) == len(set(steps))
