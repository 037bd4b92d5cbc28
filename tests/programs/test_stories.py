"""What a newcomer runs first: the README's block and the examples, as they are."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from tests.documents import ROOT, furnish, run_blocks

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_the_readmes_block_runs(
    tmp_path: Path, tiny_bert_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    furnish(tmp_path, tiny_bert_folder)
    monkeypatch.chdir(tmp_path)
    run_blocks(ROOT / "README.md")
    assert "'label'" in capsys.readouterr().out


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, as `python -m pipelines.rated_texts` makes it."""
    folder = tmp_path_factory.mktemp("examples")
    run([sys.executable, "-m", "pipelines.rated_texts"], folder)
    return folder


@pytest.fixture(scope="module")
def shortened(furnished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, whose short files have an eighth of their rows: what an example does is the same of fewer."""
    folder = tmp_path_factory.mktemp("shortened")
    for file in furnished.glob("data/*/*.parquet"):
        short = folder / file.relative_to(furnished)
        short.parent.mkdir(parents=True, exist_ok=True)
        rows = pq.read_table(file)
        pq.write_table(rows.slice(0, rows.num_rows // 8) if "-" in file.name else rows, short)
    return folder


@pytest.mark.network
@pytest.mark.usefixtures("running_ray")
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_example_runs(script: Path, shortened: Path) -> None:
    assert len(script.read_text().splitlines()) <= 60, "an example is short"
    assert run([sys.executable, str(script)], shortened).strip()


@pytest.mark.network
@pytest.mark.usefixtures("running_ray")
@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_notebook_runs(page: Path, shortened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own, as somebody runs all its cells; it is kept without outputs."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(page, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(shortened)}}).execute()
    answer = ast.literal_eval(notebook.cells[-2].outputs[-1]["data"]["text/plain"])
    assert {"model", "version", "predictions"} <= set(answer)
    assert answer["predictions"][0]["label"] in ("negative", "positive")
    assert any("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))


@pytest.mark.network
def test_the_demo_runs(furnished: Path, own_ray: dict[str, str]) -> None:
    """Where no Ray runs."""
    assert "domains@1" in run([sys.executable, "-m", "pipelines.sentiment", "--smoke"], furnished, own_ray)


def run(command: list[str], folder: Path, environment: Mapping[str, str] = os.environ) -> str:
    environment = {**environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
