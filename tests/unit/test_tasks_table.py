"""The table of all pipelines: where it is written, and what makes a pipeline run again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tasks
from pipelines.lines import HEADERS, cells, markdown

LINE: dict[str, Any] = {
    "name": "tweets", "task": "text-classification", "base": "minilm", "metric": "f1_macro", "mode": "max",
    "source": "movies", "before": 0.5, "after": [0.8, 0.9], "head_only": [0.7], "full": [], "trainable": 1500,
    "total": 22_700_000, "adapter_bytes": 12_345, "seconds": 61.4, "refs": ["tweets@1"], "served": {},
}  # fmt: skip


def test_a_line_says_mean_and_spread() -> None:
    told = dict(zip(HEADERS, cells(LINE), strict=True))
    assert told["before"] == "0.500 (movies)"
    assert (told["adapter"], told["head only"], told["full"]) == ("0.850 ± 0.071", "0.700", "-")
    assert (told["parameters"], told["file"], told["seconds"]) == ("1,500 of 22.7 M", "0.01 MB", "61")
    assert {row.count("|") for row in markdown([LINE, LINE]).splitlines()} == {len(HEADERS) + 1}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of two pipelines that tell how often they ran."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/__init__.py").touch()
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/one.yaml").write_text("a: 1")
    (tmp_path / "pipelines/rows.py").write_text("x = 1\n")
    (tmp_path / "pipelines/more.py").write_text("x = 1\n")
    for name, mode in (("one", "from pipelines import rows, more\nRECIPE = 'one.yaml'"), ("two", "")):
        (tmp_path / f"pipelines/{name}.py").write_text(
            f"{mode}\nimport json, sys\nopen('ran', 'a').write('{name} ' + ' '.join(sys.argv[1:]) + ';')\n"
            f"print('words')\nprint(json.dumps({LINE!r} | {{'name': '{name}', 'more': [{LINE!r}]}}))\n"
        )
    (tmp_path / "README.md").write_text(f"above\n{tasks.BEGIN}\nold\n{tasks.END}\nbelow\n")
    for name, value in {"ROOT": tmp_path, "README": tmp_path / "README.md", "RESULTS": tmp_path / "results"}.items():
        monkeypatch.setattr(tasks, name, value)
    monkeypatch.setattr(tasks, "PIPELINES", ("one", "two"))
    monkeypatch.setattr(tasks, "machine", dict)
    return tmp_path


def ran(root: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What `python -m benchmarks.tasks` ran this time."""
    (root / "ran").write_text("")
    monkeypatch.setattr(sys, "argv", ["tasks", *arguments])
    tasks.main()
    return (root / "ran").read_text()


def test_what_is_known_is_not_run_again_unless_its_code_has_changed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ran(root, monkeypatch) == "one --seeds 3 --json;two --seeds 3 --json;"
    kept = json.loads((root / "results/tasks.json").read_text())["pipelines"]
    assert [line["name"] for line in kept["one"]["lines"]] == ["one", "tweets"]
    text = (root / "README.md").read_text()
    assert text.startswith("above\n")
    assert text.endswith(f"{tasks.END}\nbelow\n")
    assert "old" not in text
    assert text.count("| one |") == text.count("| two |") == 1
    assert ran(root, monkeypatch) == ""
    assert ran(root, monkeypatch, "--again", "two") == "two --seeds 3 --json;"
    for changed in ("pipelines/more.py", "examples/one.yaml"):
        (root / changed).write_text("x = 2\n")
        assert ran(root, monkeypatch) == "one --seeds 3 --json;"
    assert ran(root, monkeypatch, "--seeds", "2") == "one --seeds 2 --json;two --seeds 2 --json;"


def test_a_pipeline_that_fails_ends_it_and_what_was_found_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "pipelines/two.py").write_text("raise SystemExit(3)")
    with pytest.raises(SystemExit, match=r"pipelines\.two failed with 3"):
        ran(root, monkeypatch)
    assert list(json.loads((root / "results/tasks.json").read_text())["pipelines"]) == ["one"]
    (root / "README.md").write_text("no markers")
    with pytest.raises(SystemExit, match=r"README\.md lacks the lines"):
        tasks.put(root / "README.md", "x")
