"""What people have reported of MLflow and Ray under tools like this one, tried here with small inputs: see
`docs/reports.md`. Nothing here starts Ray."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import ScalingConfig

from ray_lora.errors import RecipeError
from ray_lora.recipe import Recipe
from ray_lora.running.devices import afforded
from ray_lora.running.packs import Prepared, spread
from ray_lora.running.people_pool import PeoplePool
from ray_lora.tracking import Tracker
from ray_lora.tracking.names import LONGEST_KEY, Names, key_of
from tests.mlflow_world import database

LABELS = [f"the {number}th of many labels" for number in range(500)]  # more letters than a parameter has
ODD = ("f1 of a//b", "/f1", "f1/", "..", ".", "../../x", "a/./b", "", "50%", "mean@1", "é ü", "🙂", "m" * 300)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database; each test has an experiment of its own."""
    return database(tmp_path_factory.mktemp("mlflow"))


def recipe(**task: Any) -> Recipe:
    told = {"type": "image-classification", **task}
    return Recipe.parse({"name": "tried", "base": {"model": "any"}, "task": told, "data": {"train": "rows.csv"}})


def tracked(uri: str, experiment: str, record: Path, **task: Any) -> Tracker:
    tracker = Tracker(uri, experiment, record=record)
    tracker.open_parent(
        "a run", recipe(**task), {"train.path": "rows.csv", "train.rows": "3", "train.sha256": "ab" * 32}
    )
    return tracker


def runs(uri: str, experiment: str) -> dict[str, Any]:
    """MLflow's runs by name."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, "ray_lora.tracking"):
        yield caplog


# ----------------------------------------------------------------------------------------------------------- MLflow


def test_metrics_may_be_called_anything(uri: str, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    """verl-project/verl#4446, #119, #984, pytorch/ignite#630, mlflow/mlflow#7807, open-mmlab/mmocr#1558: one name that
    MLflow does not allow lost all metrics of its step, and the run that they closed stayed RUNNING."""
    tracker = tracked(uri, "names", tmp_path / "names.jsonl")
    tracker.log("job", 1, {name: float(at) for at, name in enumerate(ODD)} | {"loss": 0.5})
    tracker.finish_child("job", "FINISHED", {"f1 of c//d": 0.25, "accuracy": 1.0})
    tracker.finish_parent("FINISHED", metrics={"f1 of c//d": 0.25, "accuracy": 1.0})
    assert tracker.close() == 0
    found = runs(uri, "names")
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["tried"].data.metrics == {"f1 of c/_/d": 0.25, "accuracy": 1.0}
    metrics = found["job"].data.metrics
    assert (metrics["loss"], metrics["accuracy"], metrics["f1 of a/_/b"]) == (0.5, 1.0, 0.0)
    assert sorted(metrics.values()) == sorted([*map(float, range(len(ODD))), 0.5, 0.25, 1.0])
    assert said.text == ""


def test_two_names_that_become_one_stay_two() -> None:
    """mlflow/mlflow#9425: what is not allowed was replaced, and one value stood over another."""
    names = Names()
    found = [names.of(name) for name in ("f1@1", "f1#1", "f1@1", "m" * 300, "m" * 301)]
    assert found[0] == found[2] == "f1_1"
    assert len(set(found)) == 4
    assert all(len(name) <= LONGEST_KEY for name in found)


def test_parameters_longer_than_mlflow_has_room_for(uri: str, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    """huggingface/transformers#9210, #8849, Lightning-AI/pytorch-lightning#5892, microsoft/qlib#1317,
    optuna/optuna#1340: many labels, and training ended or the run had no parameters."""
    from mlflow import MlflowClient

    tracker = tracked(uri, "long", tmp_path / "long.jsonl", labels=LABELS)
    tracker.open_child("job", {"a@": "x" * 9_000, "a#": 2, "k" * 300: 3}, {"t" * 300: "y" * 9_000}, named="n" * 400)
    tracker.finish_child("job", "FINISHED", {"accuracy": 1.0})
    tracker.finish_parent("FINISHED", best={"config": "z" * 9_000})
    assert tracker.close() == 0
    found = runs(uri, "long")
    whole, job = found["tried"], next(run for name, run in found.items() if name.startswith("nnn"))
    assert whole.data.params["task.labels"].endswith("…")
    assert whole.data.params["training.seed"] == "0"
    assert [one.dataset.name for one in whole.inputs.dataset_inputs] == ["rows.csv"]
    client = MlflowClient(uri)
    assert LABELS[-1] in Path(client.download_artifacts(whole.info.run_id, "recipe.yaml", str(tmp_path))).read_text()
    assert sorted(len(value) for value in job.data.params.values()) == [1, 1, 6000]
    assert (job.info.status, job.data.metrics) == ("FINISHED", {"accuracy": 1.0})
    assert said.text == ""


def test_a_job_may_be_called_anything(uri: str, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    """vllm-project/speculators#623, opendatahub-io/odh-dashboard#9086: a quote in a name ended the filter by which a
    run is found again."""
    jobs = ["o'brien's", 'say "hi"', "back\\slash", "`tick`", "new\nline", "🙂", "x" * 600]
    for _ in range(2):  # a later process with the same record goes on in the same runs
        tracker = tracked(uri, "quotes", tmp_path / "quotes.jsonl")
        for number, job in enumerate(jobs):
            tracker.open_child(job, {}, {}, named=f"run {number}")
            tracker.log(job, 1, {"loss": float(number)})
            tracker.finish_child(job, "FINISHED", {})
        tracker.finish_parent("FINISHED")
        assert tracker.close() == 0
        (tmp_path / "quotes.jsonl.sent").unlink()  # so that all of it is told again
    found = runs(uri, "quotes")
    assert [found[f"run {number}"].data.metrics["loss"] for number in range(len(jobs))] == list(range(len(jobs)))
    assert len(found) == len(jobs) + 1
    assert said.text == ""
    assert len({key_of("parent", job) for job in jobs}) == len(jobs)
    assert key_of("parent", "r=4 lr=1e-3") == "parent/r=4 lr=1e-3"


def test_what_mlflow_refuses_costs_nothing_else(uri: str, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    """mlflow/mlflow#7402, #7152, #7046, ecmwf/WeatherGenerator#2437: a parameter told twice, and none was there."""
    from mlflow import MlflowClient

    first = tracked(uri, "twice", tmp_path / "twice.jsonl")
    first.open_child("job", {"r": 4, "seed": 0}, {})
    assert first.close() == 0
    record = tmp_path / "twice.jsonl"
    record.write_text(record.read_text().replace('"r": 4', '"r": 8, "lora_alpha": 16'))  # as another program might
    (tmp_path / "twice.jsonl.sent").unlink()
    second = tracked(uri, "twice", record)
    second.log("job", 1, {"loss": 0.5})
    second.finish_child("job", "FAILED", {})
    assert second.close() == 0
    run = runs(uri, "twice")["job"]
    assert run.data.params == {"r": "4", "seed": "0", "lora_alpha": "16"}
    assert (run.info.status, run.data.metrics) == ("FAILED", {"loss": 0.5})
    assert said.text.count("MLflow did not take child of 'job'") == 1
    assert MlflowClient(uri).get_run(run.info.run_id).info.end_time is not None


def test_what_is_no_number_is_counted_and_closes_no_run(uri: str, tmp_path: Path) -> None:
    """mlflow/mlflow#26108, #25640, #16555, #22826: NaN was found as 0, inf became 1.8e308, and pages did not open."""
    tracker = tracked(uri, "none", tmp_path / "none.jsonl")
    for step, loss in enumerate((0.5, math.nan, math.inf, -math.inf), start=1):
        tracker.log("job", step, {"loss": loss})
    tracker.finish_child("job", "FAILED", {"accuracy": math.nan})
    assert tracker.close() == 0
    run = runs(uri, "none")["job"]
    assert run.data.metrics == {"loss": 0.5, "not_finite": 4.0}
    assert run.info.status == "FAILED"


def test_a_run_that_was_killed_is_closed_by_the_next(uri: str, tmp_path: Path) -> None:
    """NovaSky-AI/SkyRL#1516, Lightning-AI/pytorch-lightning#10397, mlflow/mlflow#7078: RUNNING for ever."""
    killed = tracked(uri, "killed", tmp_path / "killed.jsonl")
    killed.log("job", 1, {"loss": 0.5})
    assert killed.close() == 0  # what it had to send is sent, and it ends no run
    assert {run.info.status for run in runs(uri, "killed").values()} == {"RUNNING"}
    again = tracked(uri, "killed", tmp_path / "killed.jsonl")
    again.finish_child("job", "KILLED", {})
    again.finish_parent("FAILED")
    assert again.close() == 0
    assert {name: run.info.status for name, run in runs(uri, "killed").items()} == {"tried": "FAILED", "job": "KILLED"}


# -------------------------------------------------------------------------------------------------------------- Ray


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What Ray says that it has: machines of other sizes than the tests'."""
    devices = {"CPU": 2.0}
    monkeypatch.setattr(ray, "cluster_resources", lambda: devices)
    return devices


@dataclass
class Room:
    """Of a plan what counts packs."""

    slots: int
    room: int


def prepared(**scaling: Any) -> Prepared:
    """What a small cluster is asked for; nothing else of it is looked at."""
    told = recipe().override({f"scaling.{key}": value for key, value in scaling.items()})
    plan: Any = Room(slots=4, room=64)
    return Prepared({"tried": told}, {}, None, plan)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "has", "why"),
    [
        ({"workers": 3}, {}, "3 workers, the cluster has 2 CPUs; lower scaling.num_workers"),
        ({"workers": 1, "packs": 3}, {}, "3 packs of 1 workers, the cluster has 2 CPUs; lower scaling.packs"),
        ({"workers": 2, "packs": 2}, {}, "2 packs of 2 workers"),
        ({"workers": 1, "use_gpu": True}, {}, "the cluster has 0 GPUs; .* set scaling.use_gpu: false"),
        ({"workers": 1, "use_gpu": True, "packs": 2}, {"GPU": 1.0}, "2 packs of 1 workers, the cluster has 1 GPUs"),
    ],
)
def test_what_no_cluster_can_place_is_refused(
    cluster: dict[str, float], asked: Mapping[str, Any], has: dict[str, float], why: str
) -> None:
    """ray-project/ray#18332, #17957, #3389, ray-project/tune-sklearn#51: PENDING for ever, without a word."""
    cluster |= has
    with pytest.raises(RecipeError, match=why):
        afforded(**({"use_gpu": False} | dict(asked)))


def test_what_fits_is_placed(cluster: dict[str, float]) -> None:
    """ray-project/ray#28292: one at a time where there was room for more."""
    assert spread(prepared(), ScalingConfig(num_workers=1), jobs=8)[1] == 2
    assert spread(prepared(), ScalingConfig(num_workers=1), jobs=1)[1] == 1
    assert spread(prepared(packs=2), ScalingConfig(num_workers=1), jobs=8)[1] == 2
    half = ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5})
    assert spread(prepared(packs=4), half, jobs=8)[1] == 4
    with pytest.raises(RecipeError, match="3 packs"):
        spread(prepared(packs=3), ScalingConfig(num_workers=1), jobs=8)


def test_people_wait_for_no_device_that_is_not_there(cluster: dict[str, float]) -> None:
    """As above, of one adapter a person: an actor that could not be placed kept its people for ever."""
    with pytest.raises(RecipeError, match="the cluster has 0 GPUs"):
        PeoplePool(prepared(use_gpu=True), people=10)
    with pytest.raises(RecipeError, match="4 packs of 1 workers, the cluster has 2 CPUs"):
        PeoplePool(prepared(packs=4), people=1_000)
