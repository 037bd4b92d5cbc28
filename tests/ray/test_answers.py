"""Files of rows answered by actors of a cluster: every row once, by its own adapter, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import ray.data

from ray_lora import LoraPredictor
from ray_lora.errors import DataError, RayLoraError, RecipeError
from ray_lora.running.answer_plan import Asked
from ray_lora.running.answers import answer_files
from ray_lora.store import open_store
from tests.ray.answered import FILES, GROUP, ROWS, check, make_world, right_answers
from tests.unit.serving_world import WORDS

SMALL = 10  # rows of a piece of the run that is killed, so that it does not end before


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("answers"))


@pytest.fixture(scope="module")
def right(world: Path) -> list[dict[str, Any]]:
    return right_answers(world)


def asked(world: Path, output: Path, **more: Any) -> Asked:
    told = {"data": [str(world / "rows")], "store": str(world / "store"), "adapter_column": "customer"}
    return Asked(output=str(output), **(told | more))


def run(wanted: Asked, **more: Any) -> dict[str, Any]:
    return answer_files(wanted, **({"most_rows": GROUP, "dtype": "float32", "workers": 1, "quiet": True} | more))


def workers() -> list[psutil.Process]:
    """The processes of actors that answer."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "MapWorker(MapBatches(Answering" in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


@pytest.fixture
def killer(tmp_path: Path) -> Iterator[list[int]]:
    """Kills an actor that answers whenever two more parts are there, twice; whom it killed."""
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.05) and len(killed) < 2:
            if len(list((tmp_path / "out").glob("part-*"))) > 2 * len(killed):
                for process in workers()[:1]:
                    process.kill()
                    killed.append(process.pid)
                    process.wait(30)

    thread = threading.Thread(target=kill)
    thread.start()
    yield killed
    ended.set()
    thread.join()


def test_every_row_is_answered_once_whoever_is_killed(
    world: Path, right: list[dict[str, Any]], tmp_path: Path, killer: list[int]
) -> None:
    result = run(asked(world, tmp_path / "out"), workers=2)
    assert killer, "nobody was killed"
    check(tmp_path / "out", right)
    assert (result["rows"], result["errors"], result["parts"]) == (360, 6, 12)
    where = f"{world}/rows/0.parquet"
    assert result["wrong"][0].startswith(f"{where}, row 10: 'nobody' is not in the store ")
    assert result["wrong"][1] == f"{where}, row 8: text ' ' is empty or not a string; give a non-empty string"
    assert sum(result["adapters"].values()) == 354


def test_a_killed_run_goes_on(world: Path, right: list[dict[str, Any]], tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "ray_lora", "predict", "--data", world / "rows", "--adapter-column", "customer"]
    command += ["--output", output, "--store", world / "store"]
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    script = (
        "import sys; from ray_lora.cli import main; import ray_lora.running.answers as a; "
        f"a.answer_files.__kwdefaults__.update(most_rows={SMALL}, dtype='float32'); sys.exit(main(sys.argv[1:]))"
    )
    command[1:3] = ["-c", script]
    first = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(list(output.glob("part-*"))) < 2:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    while workers():
        time.sleep(0.05)
    kept = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert 2 <= len(kept) < FILES * ROWS // SMALL
    (output / ".part-left-behind").write_text("torn")
    spoilt = sorted(kept)[0]
    (output / spoilt).write_bytes((output / spoilt).read_bytes()[:-20])
    open_store(str(world / "store")).alias("c1", "later", 1)  # the run keeps to the versions that it began with
    second = subprocess.run([*command, "--json"], env=env, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    told = json.loads(second.stdout.splitlines()[-1])
    assert (told["rows"], told["errors"], len(told["wrong"])) == (360, 6, 6)
    check(output, right)
    for name, changed in kept.items():
        assert ((output / name).stat().st_mtime_ns == changed) == (name != spoilt)
    assert not list(output.glob(".part-*"))
    assert run(asked(world, output), most_rows=SMALL)["adapters"] == told["adapters"]
    with pytest.raises(RecipeError, match="was begun with other prefix"):
        run(asked(world, output, prefix="x_"), most_rows=SMALL)


def test_too_many_errors_end_a_run(world: Path, tmp_path: Path) -> None:
    with pytest.raises(RayLoraError, match="rows have errors, more than the 2 that may") as raised:
        run(asked(world, tmp_path / "out"), max_errors=2)
    assert type(raised.value) is RayLoraError  # exit code 1
    assert str(raised.value).count(".parquet, row ") >= 3
    result = run(asked(world, tmp_path / "out"), max_errors=6)  # the same command goes on
    assert result["errors"] == 6


def test_jsonl_in_and_out_and_partitions(world: Path, tmp_path: Path) -> None:
    for name in ("c0", "c3"):
        folder = tmp_path / "rows" / f"customer={name}"
        folder.mkdir(parents=True)
        lines = [json.dumps({"id": f"00{row}", "review": f"a {word} day"}) for row, word in enumerate(WORDS[:5])]
        (folder / "rows.jsonl").write_text("\n".join(lines))
    wanted = asked(
        world, tmp_path / "out", data=[str(tmp_path / "rows")], format="jsonl", columns={"text": "review"},
        parameters={"top_k": 2}, prefix="our_",
    )  # fmt: skip
    assert run(wanted)["rows"] == 10
    parts = sorted((tmp_path / "out").glob("part-*.jsonl"))
    rows = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    assert [(row["id"], row["customer"], row["our_adapter"]) for row in rows[4:6]] == [
        ("004", "c0", "c0"),
        ("000", "c3", "c3"),
    ]
    assert [len(row["our_prediction"]) for row in rows] == [2] * 10


def test_what_cannot_be_answered_is_said_before_anything_is(world: Path, tmp_path: Path) -> None:
    mine = {"text": "a day", "customer": "c0"}
    with pytest.raises(DataError, match="has no column 'text'"):
        run(asked(world, tmp_path / "a", data=[_write(tmp_path / "x.jsonl", {"tekst": "a", "customer": "c0"})]))
    with pytest.raises(DataError, match="has a column 'error' already"):
        run(asked(world, tmp_path / "b", data=[_write(tmp_path / "y.jsonl", mine | {"error": 1})]))
    with pytest.raises(RecipeError, match="is inside the data"):
        run(asked(world, world / "rows" / "out"))
    with pytest.raises(DataError, match="no column 'client' that names adapters"):
        run(asked(world, tmp_path / "c", adapter_column="client"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(RecipeError, match="holds 'mine\\.txt'"):
        run(asked(world, tmp_path / "full"))


def _write(path: Path, row: dict[str, Any]) -> str:
    path.write_text(json.dumps(row) + "\n")
    return str(path)


def test_map_batches_answers(world: Path, right: list[dict[str, Any]]) -> None:
    dataset = ray.data.read_parquet(str(world / "rows"))
    told = {"store": str(world / "store"), "adapter_column": "customer", "dtype": "float32"}
    answered = dataset.map_batches(
        LoraPredictor,
        fn_constructor_kwargs=told,
        batch_format="pyarrow",
        batch_size=256,
        concurrency=(1, 2),
        num_cpus=1,
    )
    found = sorted(answered.take_all(), key=lambda row: int(row["id"]))
    assert [row["id"] for row in found] == [row["id"] for row in right]
    assert [row["error"] for row in found] == [row["error"] for row in right]
    for row, wanted in zip(found, right, strict=True):
        assert (row["prediction"] or {}).get("label") == (wanted["prediction"] or {}).get("label")
