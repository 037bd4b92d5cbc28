"""MLflow shows each job as one run with every value once, whatever happens to MLflow or to the process that reports."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import BaseModelError, RecipeError
from ray_lora.inference.predict import predict
from ray_lora.recipe import BaseSpec, LoraSpec, Recipe
from ray_lora.store.mlflow_client import write_mlmodel
from ray_lora.store.mlflow_store import MlflowStore
from ray_lora.tasks import build_task
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.tracking import Tracker, send
from ray_lora.tracking.journal import Journal
from tests.mlflow_world import MLFLOW_WARNINGS, database

pytestmark = [pytest.mark.filterwarnings(known) for known in MLFLOW_WARNINGS]

IDENTITY = {"train.path": "data/train.parquet", "train.rows": "100", "train.sha256": "ab" * 32}
PARAMS = {"r": 4, "lora_alpha": 8.0, "target_modules": ["query", "value"], "learning_rate": 1e-3, "task": "sentiment"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return database(tmp_path / "db")


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "out" / "unsent.jsonl"


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that refuses connections; the port stays ours, so nobody else can answer there."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def opened(uri: str | None, record: Path | None, run_key: str = "here") -> Tracker:
    tracker = Tracker(uri, "tweets", record=record)
    tracker.open_parent(run_key, Recipe(name="tweets"), IDENTITY)
    return tracker


def runs(uri: str, experiment: str = "tweets") -> dict[str, Any]:
    """Run name -> run, of all runs; a name that occurs twice fails."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    listed = client.search_runs([found.experiment_id])
    named = {run.info.run_name: run for run in listed}
    assert len(named) == len(listed)
    return named


def history(uri: str, run: Any, metric: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return sorted((point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, metric))


def artifacts(uri: str, run: Any, folder: str | None = None) -> set[str]:
    from mlflow import MlflowClient

    return {info.path for info in MlflowClient(uri).list_artifacts(run.info.run_id, folder)}


# --------------------------------------------------------------------------------------------- what MLflow shows


def test_a_search_in_mlflow(uri: str, record: Path, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "minilm"}')
    tracker = opened(uri, record)
    for job in ("r4", "r8"):
        tracker.open_child(job, PARAMS, {"ray_lora.training.pack": "0"})
        for step in range(1, 21):
            tracker.log(job, step, {"loss": 1 / step, "learning_rate": 0.1})
        tracker.log(job, 20, {"accuracy": 0.9})
        tracker.finish_child(job, "FINISHED" if job == "r4" else "FAILED", {"accuracy": 0.9}, folder)
    tracker.leaderboard([{"r": 4, "accuracy": 0.9}, {"r": 8, "status": "failed, badly"}])
    tracker.log_text("# notes", "notes.md")
    tracker.log_figure(Figure(), "curves.png")
    tracker.finish_parent("FINISHED", {"job": "r4", "config": {"lora.r": 4}}, {"accuracy": 0.9})
    assert tracker.close() == 0

    found = runs(uri)
    assert set(found) == {"tweets", "r4", "r8"}
    parent, child = found["tweets"], found["r4"]
    assert [found[name].info.status for name in ("tweets", "r4", "r8")] == ["FINISHED", "FINISHED", "FAILED"]
    assert parent.data.params["data.train.sha256"] == "ab" * 32
    assert parent.data.params["task.type"] == "text-classification"
    assert parent.data.tags["best.job"] == "r4"
    assert parent.data.tags["best.config.lora.r"] == "4"
    assert parent.data.metrics == {"accuracy": 0.9}
    (dataset,) = parent.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.profile) == ("train.parquet", '{"num_rows": "100"}')
    assert artifacts(uri, parent) == {"recipe.yaml", "leaderboard.csv", "notes.md", "curves.png"}
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.data.tags["ray_lora.job"], child.data.tags["ray_lora.training.pack"]) == ("r4", "0")
    assert child.data.params == {
        "r": "4",
        "lora_alpha": "8.0",
        "target_modules": '["query", "value"]',
        "learning_rate": "0.001",
        "task": "sentiment",
    }
    assert history(uri, child, "loss") == [(step, 1 / step) for step in range(1, 21)]
    assert history(uri, child, "accuracy") == [(20, 0.9)]
    assert artifacts(uri, child, "adapter") == {"adapter/MLmodel", "adapter/adapter_config.json"}


def test_a_run_is_called_by_what_it_tried_and_names_its_data(uri: str, record: Path) -> None:
    tracker = opened(uri, record)
    tracker.open_child("a1b2_00000", {"r": 4}, {}, named="r=4 learning_rate=0.00084", data=IDENTITY)
    assert tracker.close() == 0
    run = runs(uri)["r=4 learning_rate=0.00084"]
    assert run.data.tags["ray_lora.job"] == "a1b2_00000"
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == ("ab" * 32)[:36]


def test_a_stopped_job_hands_in_what_it_leaves_once_it_is_written(uri: str, record: Path, tmp_path: Path) -> None:
    tracker = opened(uri, record)
    tracker.open_child("r4", {}, {})
    tracker.finish_child("r4", "KILLED", {"accuracy": 0.7})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "minilm"}')
    tracker.finish_child("r4", "KILLED", {"accuracy": 0.7}, adapter)
    assert tracker.close() == 0
    run = runs(uri)["r4"]
    assert run.info.status == "KILLED"
    assert history(uri, run, "accuracy") == [(0, 0.7)]
    assert "adapter/adapter_config.json" in artifacts(uri, run, "adapter")


def test_the_recipe_can_be_run_again_from_mlflow(uri: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    tracker = opened(uri, None)
    tracker.close()
    file = MlflowClient(uri).download_artifacts(runs(uri)["tweets"].info.run_id, "recipe.yaml", str(tmp_path))
    assert Recipe.load(file) == Recipe(name="tweets")


def test_what_is_not_finite_is_kept_out_and_counted(uri: str, record: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = opened(uri, record)
    tracker.open_child("r4", {}, {})
    for step, loss in enumerate([0.5, math.nan, math.inf, 0.25], 1):
        tracker.log("r4", step, {"loss": loss, "rate": 0.1})
    assert tracker.close() == 0
    run = runs(uri)["r4"]
    assert history(uri, run, "loss") == [(1, 0.5), (4, 0.25)]
    assert len(history(uri, run, "rate")) == 4
    assert run.data.metrics["not_finite"] == 2
    assert "2 metric values were not finite" in caplog.text


def test_where_to_look(uri: str, record: Path, nobody: str) -> None:
    tracker = opened(uri, record)
    tracker.close()
    run = runs(uri)["tweets"]
    place = f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert tracker.link() == f"mlflow ui --backend-store-uri {uri}  (then open http://127.0.0.1:5000{place})"
    assert Tracker(nobody, "tweets").link() == nobody
    assert "off" in Tracker(None, "tweets").link()


# --------------------------------------------------------------------------- killed, continued, sent again, refused


def test_the_same_record_continues_the_same_runs(uri: str, record: Path) -> None:
    first = opened(uri, record)
    first.open_child("done", PARAMS, {})
    first.log("done", 1, {"loss": 0.5})
    first.finish_child("done", "FINISHED", {"accuracy": 0.9})
    first.open_child("killed", PARAMS, {})
    for step in range(1, 11):
        first.log("killed", step, {"loss": 1 / step})
    assert first.close() == 0
    before = runs(uri)

    second = opened(uri, record)  # the same command; the job goes on from its checkpoint at step 6
    for job in ("done", "killed"):
        second.open_child(job, PARAMS, {})
    second.finish_child("done", "FINISHED", {"accuracy": 0.9})
    for step in range(7, 16):
        second.log("killed", step, {"loss": 1 / step})
    second.finish_child("killed", "FINISHED", {"accuracy": 0.8})
    second.finish_parent("FINISHED")
    assert second.close() == 0

    after = runs(uri)
    assert {name: run.info.run_id for name, run in after.items()} == {
        name: run.info.run_id for name, run in before.items()
    }
    assert history(uri, after["killed"], "loss") == [(step, 1 / step) for step in range(1, 16)]
    assert history(uri, after["done"], "accuracy") == [(1, 0.9)]
    assert after["done"].info.end_time == before["done"].info.end_time
    assert {run.info.status for run in after.values()} == {"FINISHED"}


def test_a_run_that_had_ended_goes_on(uri: str, record: Path) -> None:
    first = opened(uri, record)
    first.log("r4", 1, {"loss": 0.5})
    first.finish_child("r4", "FAILED", {})
    first.finish_parent("FAILED")
    first.close()
    second = opened(uri, record)
    second.log("r4", 2, {"loss": 0.4})
    second.close()
    assert {run.info.status for run in runs(uri).values()} == {"RUNNING"}


def test_another_record_is_another_run(uri: str, tmp_path: Path) -> None:
    opened(uri, tmp_path / "a.jsonl").close()
    opened(uri, tmp_path / "b.jsonl").close()
    with pytest.raises(AssertionError):
        runs(uri)


def test_without_a_record_the_key_finds_the_run(uri: str) -> None:
    for step in (1, 2):
        tracker = opened(uri, None)
        tracker.log("r4", step, {"loss": 0.5})
        assert tracker.close() == 0
    assert history(uri, runs(uri)["r4"], "loss") == [(1, 0.5), (2, 0.5)]


def test_sending_everything_again_changes_nothing(uri: str, record: Path) -> None:
    tracker = opened(uri, record)
    tracker.open_child("r4", PARAMS, {})
    for step in range(1, 6):
        tracker.log("r4", step, {"loss": 1 / step})
    tracker.finish_child("r4", "FINISHED", {"accuracy": 0.9})
    tracker.finish_parent("FINISHED")
    assert tracker.close() == 0
    before = runs(uri)
    record.with_name("unsent.jsonl.sent").unlink()
    assert send(record) == 0
    after = runs(uri)
    for name, run in before.items():
        assert (after[name].info.run_id, after[name].info.end_time) == (run.info.run_id, run.info.end_time)
    assert history(uri, after["r4"], "loss") == [(step, 1 / step) for step in range(1, 6)]
    assert len(after["tweets"].inputs.dataset_inputs) == 1


def test_another_mlflow_gets_the_whole_story(uri: str, record: Path, tmp_path: Path) -> None:
    first = opened(uri, record)
    first.log("r4", 1, {"loss": 0.5})
    first.close()
    other = database(tmp_path / "other")
    second = opened(other, record)
    second.log("r4", 2, {"loss": 0.4})
    assert second.close() == 0
    assert history(other, runs(other)["r4"], "loss") == [(1, 0.5), (2, 0.4)]


def test_a_half_written_last_line_costs_only_itself(uri: str, record: Path) -> None:
    first = opened(uri, record)
    first.log("r4", 1, {"loss": 0.5})
    first.close()
    with record.open("ab") as file:
        file.write(b'{"event": "log", "job": "r4", "st')
    second = opened(uri, record)
    second.log("r4", 2, {"loss": 0.4})
    assert second.close() == 0
    assert history(uri, runs(uri)["r4"], "loss") == [(1, 0.5), (2, 0.4)]


def test_a_spoilt_acknowledgement_sends_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path / "r.jsonl", "here")
    journal.append("text", text="a", to="b")
    journal.acknowledge(journal.unsent(10)[1])
    assert Journal(tmp_path / "r.jsonl", "here").count_unsent() == 0
    assert Journal(tmp_path / "r.jsonl", "elsewhere").count_unsent() == 1
    (tmp_path / "r.jsonl.sent").write_text("{")
    assert Journal(tmp_path / "r.jsonl", "here").count_unsent() == 1
    assert "sent again" in caplog.text


def test_what_mlflow_refuses_is_left_out_and_said(uri: str, record: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = opened(uri, record)
    tracker.open_child("r4", {}, {})
    tracker.log_artifact(Path("/nowhere/at/all.png"))
    tracker.finish_child("r4", "FINISHED", {"f1@10": 0.5}, Path("/nowhere"))
    tracker.log("r8", 1, {"loss": 0.5})
    assert tracker.close() == 0
    found = runs(uri)
    assert history(uri, found["r8"], "loss") == [(1, 0.5)]
    assert found["r4"].data.metrics == {"f1_10": 0.5}
    assert "MLflow did not take artifact of the parent run" in caplog.text
    assert "MLflow did not take end of 'r4'" in caplog.text


def test_a_run_deleted_in_mlflow_stops_nothing(uri: str, record: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow import MlflowClient

    first = opened(uri, record)
    first.log("gone", 1, {"loss": 0.5})
    first.log("kept", 1, {"loss": 0.5})
    first.close()
    MlflowClient(uri).delete_run(runs(uri)["gone"].info.run_id)
    second = opened(uri, record)
    for job in ("gone", "kept"):
        for step in range(2, 5):
            second.log(job, step, {"loss": 0.5})
    assert second.close() == 0
    assert len(history(uri, runs(uri)["kept"], "loss")) == 4
    assert "MLflow did not take metrics of 'gone'" in caplog.text


def test_a_deleted_experiment_can_be_restored(uri: str, record: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    number = client.create_experiment("tweets", artifact_location=str(record.parent / "artifacts"))
    client.delete_experiment(number)
    tracker = opened(uri, record)
    tracker.log("r4", 1, {"loss": 0.5})
    assert tracker.close() > 0
    assert "mlflow experiments restore" in caplog.text
    client.restore_experiment(number)
    assert send(record) == 0
    assert history(uri, runs(uri)["r4"], "loss") == [(1, 0.5)]


# --------------------------------------------------------------------------------------------------- MLflow is away


def test_mlflow_away_costs_one_warning(nobody: str, record: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tracker = opened(nobody, record)
        for step in range(1, 101):
            tracker.log("r4", step, {"loss": 0.5})
        tracker.finish_child("r4", "FINISHED", {"accuracy": 0.9}, record.parent)
        tracker.finish_parent("FINISHED")
        left = tracker.close()
    assert left == tracker.unsent == 104  # parent, child, 100 steps, two ends
    assert caplog.text.count("training goes on") == 1
    assert f"python -m ray_lora.tracking {record}" in caplog.text


def test_a_record_holds_no_password(nobody: str, record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = nobody.replace("//", "//me:secret@")
    opened(secret, record).close()
    assert not [file for file in record.parent.iterdir() if "secret" in file.read_text()]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RecipeError, match="set MLFLOW_TRACKING_URI"):
        send(record)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
    assert send(record) == 1


def test_what_was_kept_is_sent_by_a_command(uri: str, nobody: str, record: Path) -> None:
    away = opened(nobody, record)
    away.log("r4", 1, {"loss": 0.5})
    assert away.close() > 0
    told = [json.loads(line) for line in record.read_text().splitlines()]
    record.write_text("".join(json.dumps(event | ({"uri": uri} if "uri" in event else {})) + "\n" for event in told))
    command = [sys.executable, "-m", "ray_lora.tracking", str(record)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (0, "everything is in MLflow\n"), done.stderr
    assert history(uri, runs(uri)["r4"], "loss") == [(1, 0.5)]


def test_a_record_that_cannot_be_written_stops_nothing(
    nobody: str, record: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = opened(nobody, record)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Journal, "append", full)
    for step in range(5):
        tracker.log("r4", step, {"loss": 0.5})
    tracker.close()
    assert caplog.text.count("no space left") == 1


def test_tracking_off(tmp_path: Path) -> None:
    tracker = opened(None, tmp_path / "r.jsonl")
    tracker.open_child("r4", {}, {})
    tracker.log("r4", 1, {"loss": 0.5})
    tracker.finish_child("r4", "FINISHED", {}, tmp_path)
    tracker.leaderboard([{"a": 1}])
    tracker.log_artifact(tmp_path)
    tracker.finish_parent("FINISHED")
    assert tracker.register(tmp_path, "tweets") is None
    assert (tracker.close(), tracker.unsent) == (0, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "mlruns", ""])
def test_addresses_that_cannot_be_tracked_to(uri: str) -> None:
    with pytest.raises(RecipeError, match=r"give a server .* or a database"):
        Tracker(uri, "tweets")


def test_a_record_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist") as caught:
        send(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), RecipeError)


def test_importing_the_tracker_imports_no_mlflow() -> None:
    code = "import sys, ray_lora.tracking; sys.exit(str(f) if (f := {'mlflow', 'torch'} & set(sys.modules)) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr


# --------------------------------------------------------------------------------------- the registry, and pyfunc


@pytest.fixture
def trained(tiny_bert_folder: Path, tmp_path: Path) -> Path:
    """An adapter folder on the tiny base."""
    engine = AdapterEngine(load_base(BaseSpec(model=str(tiny_bert_folder), dtype="float32")), slots=1)
    slot = engine.init(LoraSpec(r=2), HeadSpec("AutoModelForSequenceClassification", 3), seed=1)
    card = Card(task=TextClassificationSpec(labels=("bad", "fine", "good")), metrics={"accuracy": 0.75})
    engine.export(slot, card).save(tmp_path / "trained")
    return tmp_path / "trained"


def test_the_best_adapter_becomes_a_version_once(uri: str, record: Path, trained: Path) -> None:
    tracker = opened(uri, record)
    tracker.open_child("r2", PARAMS, {})
    (trained.parent / "figures").mkdir()
    (trained.parent / "figures" / "confusion_matrix.png").write_bytes(b"a picture")
    tracker.finish_child("r2", "FINISHED", {"accuracy": 0.75}, trained, trained.parent / "figures")
    assert tracker.register(trained, "tweets", tags={"why": "best of 16"}) == 1
    assert tracker.register(trained, "tweets") == 1
    assert tracker.close() == 0
    again = opened(uri, record)
    assert again.register(trained, "tweets", alias="canary") == 1
    assert again.close() == 0
    (entry,) = MlflowStore(uri).list()
    assert entry.aliases == ("canary", "champion")
    assert entry.sha256 == Adapter.load(trained).sha256

    from mlflow import MlflowClient

    version = MlflowClient(uri).get_model_version("tweets", "1")
    assert version.run_id == runs(uri)["r2"].info.run_id
    kept = MlflowClient(uri).list_artifacts(version.run_id, "figures")
    assert [file.path for file in kept] == ["figures/confusion_matrix.png"]
    assert (version.tags["why"], version.tags["score"], version.tags["rank"]) == ("best of 16", "0.75", "2")


def test_registering_waits_for_mlflow(nobody: str, record: Path, trained: Path) -> None:
    tracker = opened(nobody, record)
    assert tracker.register(trained, "tweets") is None
    assert tracker.close() == 2


@pytest.mark.parametrize("where", ["models:/tweets@champion", "runs:/{run}/adapter"])
def test_pyfunc_answers_as_the_engine_does(where: str, uri: str, trained: Path) -> None:
    import mlflow
    import numpy as np
    import pandas as pd

    tracker = opened(uri, None)
    tracker.finish_child("r2", "FINISHED", {}, trained)
    tracker.register(trained, "tweets")
    assert tracker.close() == 0
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model(
            where.format(run=runs(uri)["r2"].info.run_id), model_config={"dtype": "float32"}
        )
    finally:
        mlflow.set_tracking_uri(before)

    adapter = Adapter.load(trained)
    assert adapter.card.base is not None
    assert adapter.card.task is not None
    engine = AdapterEngine(load_base(BaseSpec(model=adapter.card.base, dtype="float32")), slots=4)
    slot = engine.load(adapter)
    task = build_task(adapter.card.task, engine.base.processor)
    texts = ["the movie was good", "bad bad bad", "a slow story"]
    answers = predict(engine, {slot: task}, task.encode([{"text": text} for text in texts]), [slot] * 3)
    for given in (
        texts,
        tuple(texts),
        np.array(texts),
        pd.DataFrame({"text": texts}),
        pd.DataFrame({"whatever": texts}),
        pd.DataFrame({"label": ["good"] * 3, "text": texts}),
        [{"text": text, "label": "unheard of"} for text in texts],
    ):
        found = model.predict(given)
        assert (found.to_dict(orient="records") if isinstance(given, pd.DataFrame) else found) == answers
    assert model.predict(texts[0]) == answers[:1]
    with pytest.raises(RecipeError, match="has no 'text'"):
        model.predict([{"txt": "good"}])


@pytest.mark.filterwarnings("ignore")  # of MLflow's evaluator, which calls pandas the old way
def test_mlflow_evaluates_a_registered_adapter_as_we_do(uri: str, trained: Path, tmp_path: Path) -> None:
    import mlflow
    import pandas as pd

    from ray_lora.pyfunc import _load_pyfunc

    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    write_mlmodel(folder, None, Adapter.load(trained).card.base)
    texts = [f"{word} story number {number}" for number in range(4) for word in ("good", "bad", "slow")]
    rows = pd.DataFrame({"text": texts, "truth": ["good", "bad", "fine"] * 4}, index=range(100, 112))
    alone = _load_pyfunc(str(trained), {"dtype": "float32"}).predict(rows[["text"]])
    assert list(alone.columns) == ["label", "score"]
    assert list(alone.index) == list(rows.index)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        told = mlflow.models.evaluate(
            str(folder),
            rows,
            targets="truth",
            model_type="classifier",
            model_config={"answer": "label"},
            evaluator_config={"log_explainer": False},
        )
    finally:
        mlflow.set_tracking_uri(before)
    assert told.metrics["accuracy_score"] == pytest.approx((alone["label"] == rows["truth"]).mean())


def test_a_parameter_of_mlflow_chooses_a_part_of_answers(trained: Path) -> None:
    import mlflow
    from mlflow.models.utils import load_serving_example

    write_mlmodel(trained, None, None)
    model = mlflow.pyfunc.load_model(str(trained), model_config={"dtype": "float32", "answer": "score"})
    label, score = model.predict("good", params={"answer": "label"})[0], model.predict("good")[0]
    assert label in ("bad", "fine", "good")
    assert isinstance(score, float)
    model = mlflow.pyfunc.load_model(str(trained), model_config={"dtype": "float32"})
    assert model.predict("good") == [{"label": label, "score": score}]
    assert len(model.predict("good", params={"top_k": 3})[0]) == 3
    request = json.loads(load_serving_example(str(trained)))["inputs"]  # as `mlflow models serve` passes it on
    assert [set(answer) for answer in model.predict(request)] == [{"label", "score"}] * 2


@pytest.mark.parametrize("task", [None, {"type": "shop.tasks:Rating"}])
def test_mlflow_is_told_nothing_of_tasks_that_nobody_knows(task: Any, trained: Path) -> None:
    import mlflow

    card = json.loads((trained / "ray_lora.json").read_text())
    (trained / "ray_lora.json").write_text(json.dumps({**card, "task": task}))
    write_mlmodel(trained, None, None)
    model = mlflow.models.Model.load(str(trained / "MLmodel"))
    assert (model.signature, model.saved_input_example_info) == (None, None)


def test_pyfunc_says_which_parts_answers_have(trained: Path) -> None:
    from ray_lora.pyfunc import _load_pyfunc

    model = _load_pyfunc(str(trained), {"dtype": "float32", "answer": "word"})
    with pytest.raises(RecipeError, match="they have label, score"):
        model.predict("good")


def test_pyfunc_gives_a_frame_of_answers_without_named_parts() -> None:
    from ray_lora.pyfunc import _framed

    framed = _framed([[{"word": "a"}], []], [7, 9])
    assert list(framed["prediction"]) == [[{"word": "a"}], []]
    assert list(framed.index) == [7, 9]


def test_pyfunc_takes_a_base_from_elsewhere_but_not_another_one(
    trained: Path, tiny_bert_folder: Path, other_bert_folder: Path, tmp_path: Path
) -> None:
    from ray_lora.pyfunc import _load_pyfunc

    moved = tmp_path / "moved"
    moved.symlink_to(tiny_bert_folder)
    answer = _load_pyfunc(str(trained), {"base": str(moved), "dtype": "float32"}).predict("good", {"top_k": 3})
    assert {part["label"] for part in answer[0]} == {"bad", "fine", "good"}
    with pytest.raises(BaseModelError, match="serve it on its own base"):
        _load_pyfunc(str(trained), {"base": str(other_bert_folder)})
