"""A real `mlflow server` that is not there yet, that is killed in the middle, and that comes back: nothing is lost or
told twice, and what was fetched once goes on being served."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.adapters.peft_folder import LowRank
from ray_lora.recipe import LoraSpec, Recipe
from ray_lora.store import StoreAwayError, open_store
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.tracking import Tracker
from tests.mlflow_world import MLFLOW_WARNINGS, database

pytestmark = [pytest.mark.filterwarnings(known) for known in MLFLOW_WARNINGS]


class Server:
    """`mlflow server` on 127.0.0.1 with SQLite, artifacts through the server."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.database = database(folder)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--workers", "1"],
                stdout=log,
                stderr=log,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health") as response:
                return bool(response.status == 200)
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def settle(self, tracker: Tracker) -> None:
        """Wait until everything has arrived."""
        while tracker.unsent:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.05)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))
    server = Server(tmp_path / "server")
    yield server
    server.kill()


def small_adapter(folder: Path) -> Adapter:
    layers = {"bert.encoder.layer.0.attention.self.query": LowRank(torch.ones(2, 8), torch.ones(8, 2))}
    card = Card(task=TextClassificationSpec(labels=("no", "yes")), base="tiny", metrics={"accuracy": 0.9})
    adapter = Adapter(LoraSpec(r=2), layers, {"classifier.weight": torch.ones(2, 8)}, card, "SEQ_CLS", ("classifier",))
    adapter.save(folder)
    return adapter


def test_every_value_arrives_once(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from mlflow import MlflowClient

    record = tmp_path / "out" / "unsent.jsonl"
    adapter = small_adapter(tmp_path / "adapter")

    def opened() -> Tracker:
        tracker = Tracker(server.uri, "tweets", record=record)
        tracker.open_parent("here", Recipe(name="tweets"), {"train.path": "x", "train.sha256": "ab" * 32})
        for job in ("r4", "r8"):
            tracker.open_child(job, {"r": 4, "learning_rate": 1e-3}, {})
        return tracker

    def log(tracker: Tracker, first: int, last: int) -> None:
        for step in range(first, last + 1):
            for job in ("r4", "r8"):
                tracker.log(job, step, {"loss": 1 / step})

    # not there at the start
    tracker = opened()
    log(tracker, 1, 10)
    while "training goes on" not in caplog.text:
        time.sleep(0.05)
    server.start()
    server.settle(tracker)
    store = open_store("mlflow", server.uri)
    entry = store.put(adapter, "other", ["champion"])
    assert store.get("other@champion")[0] == entry

    # killed while it is being told things
    log(tracker, 11, 400)
    while tracker.unsent == 780:
        time.sleep(0.005)
    server.kill()
    log(tracker, 401, 410)
    tracker.finish_child("r4", "FINISHED", {"accuracy": 0.9}, tmp_path / "adapter")
    assert tracker.register(tmp_path / "adapter", "tweets") is None
    assert tracker.close() > 0
    assert caplog.text.count("training goes on") == 2

    # what is known is served without it
    for known in (store, open_store("mlflow", server.uri)):
        assert known.get("other")[0] == known.resolve("other@1") == entry
        with pytest.raises(StoreAwayError):
            known.get("tweets")

    # the same command later
    server.start()
    again = opened()
    log(again, 405, 420)
    again.finish_child("r4", "FINISHED", {"accuracy": 0.9}, tmp_path / "adapter")
    again.finish_child("r8", "FINISHED", {"accuracy": 0.8})
    assert again.register(tmp_path / "adapter", "tweets") == 1
    again.finish_parent("FINISHED")
    assert again.close() == 0

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("tweets")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert len(client.search_runs([experiment.experiment_id])) == len(runs) == 3
    for job in ("r4", "r8"):
        assert runs[job].info.status == "FINISHED"
        assert runs[job].data.tags["mlflow.parentRunId"] == runs["tweets"].info.run_id
        points = client.get_metric_history(runs[job].info.run_id, "loss")
        assert sorted((point.step, point.value) for point in points) == [(s, 1 / s) for s in range(1, 421)]
    held = {info.path for info in client.list_artifacts(runs["r4"].info.run_id, "adapter")}
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/MLmodel"} <= held
    assert again.link().endswith(f"/runs/{runs['tweets'].info.run_id}")
    (version,) = client.search_model_versions("name = 'tweets'")
    assert version.run_id == runs["r4"].info.run_id
    assert store.get("tweets@champion")[0].sha256 == adapter.sha256
