"""Adapters as ExecuTorch programs: the library's answers, and one sentence where none is made."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ray_lora.errors import RecipeError
from ray_lora.export import program
from ray_lora.export.exporting import export_refs
from ray_lora.recipe import LoraSpec
from ray_lora.tasks.sequential_recommendation import SequentialRecommendationSpec
from ray_lora.tasks.text_options import TextClassificationSpec
from tests.unit import histories
from tests.unit.exported import like, put
from tests.unit.test_export_pictures import _close


@pytest.fixture(scope="module")
def with_executorch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This Python's packages, and executorch with what it brings in a folder of its own."""
    folder = tmp_path_factory.mktemp("executorch") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    here = Path(pytest.__file__).parents[1]
    (site,) = (folder / "lib").glob("python3*/site-packages")
    (site / "tests.pth").write_text(f"{here}\n")
    pinned = ["-c", str(Path(__file__).parents[2] / "constraints.txt")]
    install = [folder / "bin" / "python", "-m", "pip", "install", "-q", *pinned, "executorch>=1.0"]
    subprocess.run(install, check=True)
    return folder / "bin" / "python"


@pytest.mark.network
def test_programs_answer_as_the_library(with_executorch: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    """Rows of any length on BERT, boxes, and masks with transposed convolutions and norms of the adapter's own."""
    done = subprocess.run(
        [with_executorch, "-m", "tests.unit.programs", tmp_path, tiny_bert_folder],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert set(told) == {"texts", "boxes", "masks"}
    for name, one in told.items():
        figures = one["card"]["figures"]["float"]
        assert figures["parity"]["same"] == 1.0
        assert figures["parity"]["largest"] < 1e-5
        assert figures["executorch_ms"] > 0
        assert (one["card"]["merged"], one["card"]["int8"]) == (True, False)
        same = like if name == "texts" else lambda mine, theirs: all(map(_close, mine, theirs))
        assert same(one["found"], one["wanted"]), name
        assert same([one["first"]], one["wanted"][:1]), name
        assert any(one["wanted"])
        files = {path.name for path in (tmp_path / name).iterdir()}
        assert {"graph.pte", "card.json", "runner.py", "rows.py", "arrays.py", "adapters"} <= files
    assert told["texts"]["card"]["tokens"][0] == 2


def test_what_makes_no_program_is_refused_in_one_sentence(
    tiny_bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    spec = TextClassificationSpec(labels=("no", "yes"))
    for name in ("one", "two"):
        put(store, tiny_bert_folder, name, spec, LoraSpec(r=2))
    put(store, histories.tiny(tmp_path / "sasrec"), "items", SequentialRecommendationSpec(), LoraSpec(r=2))
    where = {"store": str(store)}
    with pytest.raises(RecipeError, match=r"executorch, which is not installed: pip install 'ray_lora\[executorch\]'"):
        export_refs(["one"], out, format="executorch", **where)
    with pytest.raises(RecipeError, match=r"--int8 makes ONNX graphs, .* stay floats"):
        export_refs(["one"], out, format="executorch", int8=True, **where)
    find = importlib.util.find_spec
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: name == "executorch" or find(name))
    with pytest.raises(RecipeError, match="an ExecuTorch program has one adapter in the weights, and 2 are given"):
        export_refs(["one", "two"], out, format="executorch", **where)
    with pytest.raises(RecipeError, match="a program of sequential-recommendation on such a base was not compared"):
        export_refs(["items"], out, format="executorch", **where)
    assert not out.exists()
