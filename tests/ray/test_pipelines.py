"""Every quick pipeline with few rows, on the cluster that is there: its table, its object, and answers over HTTP."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tasks import PIPELINES
from ray_lora.errors import DataError

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.network]
ROOT = Path(__file__).parents[2]
KEYS = {
    "name", "task", "base", "metric", "mode", "source", "before", "after", "head_only", "full", "trainable", "total",
    "adapter_bytes", "seconds", "refs", "served",
}  # fmt: skip
SHAPES: dict[str, tuple[type, set[str]]] = {
    "text-classification": (dict, {"label", "score"}),
    "image-classification": (dict, {"label", "score"}),
    "token-classification": (list, {"entity", "score", "index", "word", "start", "end"}),
    "sequential-recommendation": (list, {"item", "score"}),
    "question-answering": (dict, {"answer", "score", "start", "end"}),
    "automatic-speech-recognition": (dict, {"text"}),
    "image-segmentation": (list, {"score", "label", "mask"}),
}


# Photographs, speech, mails, a language model and people take minutes even of few steps: `make demo-all` runs
# them. What `sentiment` does beside is the demo (tests/programs/). What is done with finished adapters has tests of its
# own; exporting and explaining trains one as other pipelines do, and `make demo-all` runs them.
SLOW = ("sentiment", "mails", "pictures", "inspection", "detection", "segmentation", "generation", "speech", "personal")
OWN = ("distill", "prune", "export", "explain")
QUICK = [name for name in PIPELINES if name not in (*SLOW, *OWN)]


@pytest.mark.parametrize("name", QUICK)
def test_a_pipeline_ends_in_its_table_and_its_object(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = importlib.import_module(f"pipelines.{name}")
    try:
        pipeline.main(["--smoke", "--json"])
    except DataError as error:
        pytest.skip(str(error))
    *told, last = capsys.readouterr().out.strip().splitlines()
    first = json.loads(last)
    lines = [first, *first.pop("more", [])]
    for line in lines:
        assert line.keys() >= KEYS
        assert any(line["name"][:12] in text for text in told), "the table has the line"
        assert line["mode"] in ("max", "min")
        assert len(line["after"]) == len(line["full"]) == len(line["head_only"]) == 1
        assert all(0 <= score <= 1 for key in ("after", "full", "head_only") for score in line[key])
        assert 0 < line["trainable"] < line["total"]
        assert list(line["served"]) == line["refs"]
        for answer in line["served"].values():
            check_answer(line["task"], answer)


def check_answer(task: str, answer: Any) -> None:
    kind, keys = SHAPES[task]
    assert isinstance(answer, kind)
    for part in answer if isinstance(answer, list) else [answer]:
        assert part.keys() == keys


def test_the_pruned_base_stands_beside_the_whole_and_a_random_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    from pipelines import prune

    try:
        prune.main(["--smoke", "--json"])
    except DataError as error:
        pytest.skip(str(error))
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert line.keys() >= KEYS
    whole, scored, drawn = line["cuts"]
    assert [one["how"] for one in line["cuts"]] == ["whole", "lora", "random"]
    assert scored["layer_parameters"] == drawn["layer_parameters"] <= prune.SHARE * whole["layer_parameters"]
    assert whole["scores"] == [line["before"]]
    assert scored["scores"] == line["after"]
    assert len({one["base"] for one in line["cuts"]}) == 3
    for answer in line["served"].values():
        check_answer(line["task"], answer)
