"""The table of model types: the script tells right from wrong and refused, and the page shows its result file."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import model_types
from benchmarks.machine import RESULTS
from benchmarks.tiny_models import Kind
from ray_lora.engine.layers import TargetLayer


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("bert", "text"),
        ("gemma2", "text"),
        ("gpt_neo", "text"),
        ("mpnet", "text"),
        ("vit", "image"),
        ("resnet", "image"),
        ("convnext", "image"),
        ("swin", "image"),
        ("dinov2", "image"),
        ("clip", "image"),
    ],
)
def test_types_that_work_equal_plain_peft(model_type: str, kind: Kind) -> None:
    entry = model_types.examine(model_type, kind)
    assert (entry["outcome"], entry["note"]) == ("right", "")
    assert 0 < entry["difference"] <= 1e-5


def test_a_type_that_is_refused_says_why() -> None:
    entry = model_types.examine("poolformer", "image")
    assert entry["outcome"] == "refused"
    assert "PEFT would take 'poolformer.encoder.patch_embeddings.0.norm' for it" in entry["note"]


def test_a_wrong_answer_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TargetLayer, "holds", lambda self, routing: "query" not in self.name)
    entry = model_types.examine("tapas", "text")
    assert entry["outcome"] == "wrong"
    assert entry["difference"] > 1e-3


def test_the_page_shows_the_result_file() -> None:
    types: dict[str, Any] = json.loads((RESULTS / "model_types.json").read_text())["types"]
    page = model_types.PAGE.read_text()
    shown = page.split(model_types.MARKS[0])[1].split(model_types.MARKS[1])[0]
    assert shown.strip() == model_types.table(types).strip()
    known = {(kind, name) for kind, entries in types.items() for name in entries}
    assert known == set(model_types.candidates())
