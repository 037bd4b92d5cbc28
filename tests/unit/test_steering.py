"""What people ask of a running search: found, refused, answered; and the page that only its own machine may use."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ray_lora.atomic import write_atomic
from ray_lora.cli import main
from ray_lora.errors import RecipeError
from ray_lora.recipe import Recipe
from ray_lora.running.claims import claimed
from ray_lora.search import asking
from ray_lora.search.asking import Request, answer, ask, find_search, kept_recipe, read_state, take, tell
from ray_lora.search.board import board_app, serve_board
from ray_lora.search.ledger import Ledger

HERE = {"host": "127.0.0.1:8400", "origin": "http://127.0.0.1:8400", "content-type": "application/json"}
EVIL = "<img src=x onerror=alert(1)>"


def recipe_in(folder: Path, name: str = "moods") -> Recipe:
    return Recipe.parse({"name": name, "data": {"train": "rows.jsonl"}, "output_dir": str(folder)})


def state_of(name: str, ended: str = "") -> dict[str, Any]:
    trial = {
        "name": "a_0", "config": {"lora.r": 4}, "status": "running", "step": 3, "total": 12, "loss": 0.5, "score": 0.75,
        "said": "0.7500 ±0.134", "rows": None, "parent": None, "since": None, "error": None,
    }  # fmt: skip
    clone = trial | {
        "name": EVIL,
        "parent": "a_0",
        "since": 3,
        "status": "failed",
        "error": EVIL,
        "said": "",
        "score": None,
    }
    told = {"name": name, "metric": "accuracy", "mode": "max", "rows": 40, "ended": ended, "left": "40 s left"}
    return told | {"trials": [trial, clone]}


@contextmanager
def searching(folder: Path, told: dict[str, Any] | None = None) -> Iterator[list[Request | str]]:
    """A search of that folder that answers each request with the same."""
    asked: list[Request | str] = []
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            for identity, request in take(folder / "moods"):
                asked.append(request)
                answer(folder / "moods", identity, told or {})
            time.sleep(0.01)

    with claimed(recipe_in(folder), "search", "text"):
        tell(folder / "moods", state_of("moods"))
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            over.set()
            thread.join()


def test_a_search_is_found_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no search 'moods' has begun in .*there is none"):
        find_search("moods", tmp_path)
    with searching(tmp_path):
        assert find_search("moods", tmp_path) == tmp_path / "moods"
    with pytest.raises(RecipeError, match=r"no search 'mods'.*there are moods; did you mean 'moods'\?"):
        find_search("mods", tmp_path)
    with claimed(recipe_in(tmp_path, "single"), "train", "text"), pytest.raises(RecipeError, match="is no search"):
        find_search("single", tmp_path)


def test_what_is_asked_arrives_whole_and_is_answered(tmp_path: Path) -> None:
    folder = tmp_path / "moods"
    with searching(tmp_path, {"trial": "a_0-1"}) as asked:
        request = Request(do="clone", trials=("a_0",), changes={"training.learning_rate": 1e-3}, fresh=True)
        assert ask(folder, request) == {"trial": "a_0-1"}
        assert asked == [request]
        write_atomic(folder / "steering/requests/1.json", '{"do": "burn"}')
        while len(asked) < 2:
            time.sleep(0.01)
        assert "this is no request" in str(asked[1])
    with searching(tmp_path, {"error": "no trial 'b'"}), pytest.raises(RecipeError, match="no trial 'b'"):
        ask(folder, request)
    assert list((folder / "steering/requests").iterdir()) == []


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ("stopped", "is over: it was stopped; `ray-lora search resume moods` goes on with it"),
        ("finished", "is over; begin another one"),
        ("", "is not running; `ray-lora search resume moods` or its own command goes on with it"),
    ],
)
def test_who_asks_a_search_that_does_not_run_learns_why(
    tmp_path: Path, ended: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with searching(tmp_path):
        pass
    tell(tmp_path / "moods", state_of("moods", ended))
    for command in (["stop", "moods"], ["clone", "moods", "a_0", "lora.r=2"], ["resume", "moods", "a_0"]):
        assert main(["search", *command, "--output-dir", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err


def test_who_waits_when_a_search_dies_learns_it(tmp_path: Path) -> None:
    folder, errors = tmp_path / "moods", []

    def wait() -> None:
        try:
            ask(folder, Request(do="stop"))
        except RecipeError as error:
            errors.append(str(error))

    with claimed(recipe_in(tmp_path), "search", "text"):
        thread = threading.Thread(target=wait)
        thread.start()
        while not asking.is_asked(folder):
            time.sleep(0.01)
    thread.join()
    assert "is not running" in errors[0]
    assert not asking.is_asked(folder)  # it is not done behind anybody's back when the search goes on


def test_status_says_how_each_trial_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with claimed(recipe_in(tmp_path), "search", "text"):
        assert main(["search", "status", "moods", "--output-dir", str(tmp_path)]) == 2
        assert "has no trials yet; it is starting" in capsys.readouterr().err
    with searching(tmp_path):
        assert main(["search", "status", "moods", "--output-dir", str(tmp_path)]) == 0
        shown = capsys.readouterr().out
        assert "r=4" in shown
        assert "3/12 25%" in shown
        assert "0.7500 ±0.134" in shown
        assert "r=4 (from step 3 of a_0)" in shown
        assert shown.rstrip().endswith("40 s left")
        assert main(["search", "status", "moods", "--output-dir", str(tmp_path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["running"] is True
    assert main(["search", "status", "moods", "--output-dir", str(tmp_path)]) == 0
    assert "it is not running; `ray-lora search resume moods`" in capsys.readouterr().out


def test_the_command_line_reads_values_as_recipes_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {"trial": "a_0-1", "begins": "from nothing", "why": "it was asked for", "total": 24}
    with searching(tmp_path, told) as asked:
        command = ["search", "clone", "moods", "a_0", "training.learning_rate=1e-3", "lora.target_modules=[query]"]
        assert main([*command, "--fresh", "--output-dir", str(tmp_path)]) == 0
        changes = {"training.learning_rate": 1e-3, "lora.target_modules": ["query"]}
        assert asked == [Request(do="clone", trials=("a_0",), changes=changes, fresh=True)]
        assert "a_0-1 begins from nothing (it was asked for); it has 24 steps in all" in capsys.readouterr().out
        assert main(["search", "clone", "moods", "a_0", "lora.r", "--output-dir", str(tmp_path)]) == 2
        assert "has no '='" in capsys.readouterr().err


def test_a_recipe_may_be_called_as_a_command_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["./status"], ["RECIPE"], ["--json", "mine.yaml"], ["mine.yaml", "lora.r=2"]):
        assert main(["search", *words]) == 2
        assert "does not exist; give the path of a YAML recipe" in capsys.readouterr().err
    assert main(["search", "--help"]) == 0
    assert "RECIPE [KEY=VALUE]... | COMMAND" in capsys.readouterr().out


def test_a_ledger_remembers(tmp_path: Path) -> None:
    ledger = Ledger.read(tmp_path)
    ledger.clones["a_0-1"] = {"lora.r": 4}
    ledger.stopped.append("a_1")
    ledger.over, ledger.ended = True, ["a_0", "a_0-1"]
    ledger.write()
    again = Ledger.read(tmp_path)
    assert again == ledger
    assert again.keys == ["lora.r"]
    again.reopen()
    kept = Ledger.read(tmp_path)
    assert (kept.over, kept.ended, kept.resumed, kept.stopped) == (False, [], ["a_0", "a_0-1"], ["a_1"])
    assert kept.steered("a_0")
    assert not kept.steered("a_1")


def test_a_program_s_search_is_gone_on_with_by_the_program(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="was begun by a program; run that again"):
        kept_recipe(tmp_path)
    asking.keep_recipe(tmp_path, recipe_in(tmp_path), plain=True)
    assert kept_recipe(tmp_path) == recipe_in(tmp_path)


def test_the_page_answers_this_machine_and_itself_alone(tmp_path: Path) -> None:
    with searching(tmp_path, {"stopped": ["a_0"], "search": False}) as asked:
        client = TestClient(board_app(tmp_path / "moods"), base_url="http://127.0.0.1:8400")
        page = client.get("/")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert not {word for word in page.text.split('"') if word.startswith(("http:", "https:", "//"))} - {
            "http://www.w3.org/2000/svg"
        }
        state = client.get("/state").json()
        assert [trial["name"] for trial in state["trials"]] == ["a_0", EVIL]
        assert state["curves"]["a_0"] == []
        body = {"do": "stop", "trials": ["a_0"]}
        for spoiled, status in [
            ({"host": "evil.example"}, 403),
            ({"host": "127.0.0.1.evil.example:8400"}, 403),
            ({"origin": "https://evil.example"}, 403),
            ({"origin": "http://127.0.0.1:9000"}, 403),
            ({"origin": "null"}, 403),
            ({"content-type": "text/plain"}, 415),
        ]:
            reply = client.post("/ask", content=json.dumps(body), headers=HERE | spoiled)
            assert reply.status_code == status, spoiled
            assert client.get("/state", headers={"host": "evil.example"}).status_code == 403
        without = {key: value for key, value in HERE.items() if key != "origin"}
        assert client.post("/ask", content=json.dumps(body), headers=without).status_code == 403
        assert asked == []
        assert client.post("/ask", content=json.dumps(body), headers=HERE).json()["stopped"] == ["a_0"]
        assert asked == [Request(do="stop", trials=("a_0",))]
        for wrong in (
            b"[]",
            b'{"do": "burn"}',
            b'{"do": "clone", "assign": ["lora.r"]}',
            b"\xff",
            b'{"do": "stop", "x": 1}',
        ):
            reply = client.post("/ask", content=wrong, headers=HERE)
            assert reply.status_code == 400, wrong
            assert reply.json()["error"]
        assert client.post("/ask", content=b" " * 70_000, headers=HERE).status_code == 413


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    _, listening = serve_board(tmp_path, 0)
    try:
        listening.listen()
        with pytest.raises(RecipeError, match=r"cannot be used: .*--port"):
            serve_board(tmp_path, listening.getsockname()[1])
    finally:
        listening.close()
    with pytest.raises(RecipeError, match="cannot be used"):
        serve_board(tmp_path, 99_999)


def test_state_is_read_with_whether_it_runs(tmp_path: Path) -> None:
    with searching(tmp_path):
        assert read_state(tmp_path / "moods")["running"] is True
    assert read_state(tmp_path / "moods")["running"] is False
