"""Bundles that say what comes next: mixed histories as each alone, merged, and by the runner where no torch is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_lora.errors import AdapterError
from ray_lora.export.edge.runner import Bundle
from ray_lora.export.exporting import export_refs
from ray_lora.recipe import LoraSpec
from ray_lora.tasks.sequential_recommendation import SequentialRecommendationSpec
from tests.unit import histories
from tests.unit.exported import like, put, said

ROWS: list[Any] = [{"items": row["items"]} for row in histories.rows(7, histories.WORDS)]
LORA = LoraSpec(r=4, target_modules="all-linear")


@pytest.mark.parametrize("layer", ["base", "adapter"])
def test_histories_are_answered_as_the_library_answers_them(layer: Any, tmp_path: Path) -> None:
    base, store = histories.tiny(tmp_path / "base", histories.WORDS), tmp_path / "store"
    whole = SequentialRecommendationSpec(output_layer=layer)
    short = SequentialRecommendationSpec(output_layer=layer, max_length=5, exclude_seen=False)
    for seed, (name, spec) in enumerate((("one", whole), ("two", short))):
        put(store, base, name, spec, LORA.model_copy(update={"r": 4 - 2 * seed}), seed, head=0.3)
    wanted = {name: said(store, name, ROWS) for name in ("one", "two")}
    assert wanted["one"] != wanted["two"]
    card = export_refs(["one", "two"], tmp_path / "shared", store=str(store))
    assert card["figures"]["float"]["parity"]["same"] == 1.0
    asked = [(row, name) for row in ROWS for name in wanted]
    found = Bundle(tmp_path / "shared").answer([row for row, _ in asked], [name for _, name in asked])
    for name, answers in wanted.items():
        same([one for one, (_, owner) in zip(found, asked, strict=True) if owner == name], answers)
    export_refs(["one"], tmp_path / "merged", merge=True, store=str(store))
    same(Bundle(tmp_path / "merged").answer(ROWS, ["one"] * len(ROWS)), wanted["one"])


def same(given: Any, wanted: Any) -> None:
    for mine, theirs in zip(given, wanted, strict=True):
        assert [one["item"] for one in mine] == [one["item"] for one in theirs]
        assert like([one["score"] for one in mine], [one["score"] for one in theirs])


def test_a_runner_names_what_it_does_not_know(tmp_path: Path) -> None:
    base, store = histories.tiny(tmp_path / "base"), tmp_path / "store"
    put(store, base, "one", SequentialRecommendationSpec(), LORA)
    put(store, base, "own", SequentialRecommendationSpec(output_layer="adapter"), LORA)
    with pytest.raises(AdapterError, match=r"heads differ: 'scores\.weight' is not in all; export them apart"):
        export_refs(["one", "own"], tmp_path / "out", store=str(store))
    card = export_refs(["one"], tmp_path / "out", int8=True, store=str(store))
    assert 0 < card["figures"]["int8"]["parity"]["largest"] < 0.5
    bundle = Bundle(tmp_path / "out")
    assert len(bundle.answer([json.loads('{"items": [900, 905]}')], ["one"])[0]) == 10
    for items, said_of in (([900, 1], "1 is none of the 23 items"), (["900"], "'900' is none"), ([], "is no history")):
        with pytest.raises(SystemExit, match=said_of):
            bundle.answer([{"items": items}], ["one"])
