"""A task in the user's own package, the one that docs/add-a-task.md writes: allowed, checked, trained, answered."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ray_lora
from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.allowed import ENV
from ray_lora.data.check import learn
from ray_lora.data.read import canonical, read, roles
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, DataError, RecipeError
from ray_lora.inference.stored import evaluate_ref, predict_ref
from ray_lora.recipe import DataSpec, LoraSpec, Recipe, TaskSpec, TrainingSpec
from ray_lora.running.plan import plan_recipe, show
from ray_lora.search.trial import job_of
from ray_lora.store import open_store
from ray_lora.tasks import build_task, row_of, task_class
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack, Split, Splits
from tests.conformance import check_task
from tests.conftest import sentences
from tests.documents import ROOT, blocks
from tests.unit.bases import open_base

RATING = {"type": "ratings:Rating", "low": -4.0, "high": 4.0}


@pytest.fixture
def ratings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's ratings.py where Python finds it, not allowed."""
    (page,) = (block for block in blocks(ROOT / "docs" / "add-a-task.md") if block.startswith("# ratings.py\n"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "ratings.py").write_text(page)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setenv(ENV, "")
    sys.modules.pop("ratings", None)
    yield tmp_path
    sys.modules.pop("ratings", None)


@pytest.fixture
def allowed(ratings: Path) -> Path:
    ray_lora.allow("ratings")
    return ratings


def rated_rows(count: int) -> list[dict[str, Any]]:
    return [{"text": text, "rating": float(number % 5 - 2)} for number, text in enumerate(sentences(count, longest=9))]


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


@pytest.fixture
def store(allowed: Path, tiny_bert_folder: Path) -> str:
    """A store with the adapter `stars`, whose card names the task."""
    base = open_base(tiny_bert_folder, torch.float32)
    spec = TaskSpec.model_validate(RATING)
    engine = AdapterEngine(base, slots=1)
    slot = engine.init(LoraSpec(r=2), build_task(spec, base.processor).head, seed=0, peft_type="SEQ_CLS")
    open_store(str(allowed / "store")).put(engine.export(slot, Card(task=spec, base=str(tiny_bert_folder))), "stars")
    engine.close()
    return str(allowed / "store")


def test_it_keeps_the_rules(allowed: Path, tiny_bert_folder: Path, tmp_path: Path) -> None:
    base = open_base(tiny_bert_folder, torch.float64)
    engine = AdapterEngine(base, slots=1, max_rank=4, train=True)
    task = build_task(TaskSpec.model_validate(RATING | {"low": -2.0, "high": 2.0}), base.processor)
    check_task(task, rated_rows(7), engine, perfect=lambda row: {"rating": row["rating"]}, folder=tmp_path)


# -------------------------------------------------------------------- allowed or not


def test_a_recipe_that_names_it_is_refused_and_nothing_is_imported(ratings: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"task\.type: 'ratings:Rating' is not allowed; allowed are no modules"
    ) as error:
        Recipe.parse({"task": RATING})
    assert "ray_lora.allow('ratings')" in str(error.value)
    assert "ratings" not in sys.modules


def test_an_adapter_that_names_it_is_refused_and_nothing_is_imported(
    store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENV, "other")
    sys.modules.pop("ratings")
    with pytest.raises(AdapterError, match="'ratings:Rating' is not allowed; allowed are other"):
        open_store(store).resolve("stars")
    with pytest.raises(AdapterError, match="RAY_LORA_ALLOW=other,ratings"):
        Adapter.load(next(Path(store).glob("stars/**/ray_lora.json")).parent)
    with caplog.at_level(logging.WARNING):
        assert open_store(store).list() == []
    assert "is not allowed" in caplog.text
    assert "ratings" not in sys.modules


def test_what_is_no_task_says_so(allowed: Path) -> None:
    with pytest.raises(RecipeError, match=r"'ratings:RatingSpec' is not a task: it has no `spec_type`"):
        Recipe.parse({"task": {"type": "ratings:RatingSpec"}})


# -------------------------------------------------------------------- its options in a recipe


def test_its_options_are_the_recipes(allowed: Path) -> None:
    recipe = Recipe.parse({"task": RATING, "search": {"space": {"lora.r": {"choice": [1, 2]}}}})
    assert recipe.task.low == -4.0  # type: ignore[attr-defined]
    for again in (
        Recipe.parse(recipe.model_dump()),
        Recipe.model_validate_json(recipe.model_dump_json()),
        recipe.override({"lora.r": 4}).override({"lora.r": recipe.lora.r}),
    ):
        assert again == recipe
        assert again.task.model_dump() == recipe.task.model_dump()
    assert recipe.override({"task.max_length": 16}).task.max_length == 16  # type: ignore[attr-defined]
    with pytest.raises(
        RecipeError, match=r"'task\.max_lenght' is not a key of the recipe; did you mean 'task\.max_length'"
    ):
        recipe.override({"task.max_lenght": 16})
    with pytest.raises(RecipeError, match=r"'task\.labels' is not a key of the recipe"):
        Recipe.parse({"task": RATING | {"labels": ["a", "b"]}})
    with pytest.raises(RecipeError, match=r"'task\.higg' is not a key of the recipe; did you mean 'task\.high'"):
        Recipe.parse({"task": RATING, "search": {"space": {"task.higg": {"choice": [1, 2]}}}})


def test_a_change_of_task_leaves_what_nobody_set(allowed: Path) -> None:
    texts = Recipe.parse({"task": {"labels": ["a", "b"]}})
    images = texts.override({"task.type": "image-classification"})
    assert images.task.describe() == {"labels": ["a", "b"]}
    assert texts.override({"task": RATING}).task.type == "ratings:Rating"
    with pytest.raises(RecipeError, match=r"'task\.max_length' is not a key of the recipe"):
        Recipe.parse({"task": {"max_length": 8}}).override({"task.type": "image-classification"})


# -------------------------------------------------------------------- its rows


def test_it_reads_rows_of_a_csv_file_and_learns_from_them(allowed: Path, tiny_bert_folder: Path) -> None:
    (allowed / "rows.csv").write_text("text,rating\n007,4\n2020-01-01,-3.5\n")
    base = {"model": str(tiny_bert_folder), "dtype": "float32"}
    recipe = Recipe.parse(
        {"task": {"type": "ratings:Rating"}, "base": base, "data": {"train": str(allowed / "rows.csv")}}
    )
    plan = plan_recipe(recipe)
    assert plan["task"] == {"type": "ratings:Rating", "from": -3.5, "to": 4.0}
    assert "ratings:Rating" in show(plan)
    task = task_class("ratings:Rating")
    table = canonical(
        read(recipe.data.train or "", roles(DataSpec(), task.columns)), DataSpec(), task.columns, "rows.csv"
    )
    assert table.column("text").to_pylist() == ["007", "2020-01-01"]
    assert learn(task, recipe.task, [table]).describe() == {"from": -3.5, "to": 4.0}


def test_every_wrong_row_is_named(store: str, allowed: Path) -> None:
    rows = rated_rows(6)
    rows[1]["rating"], rows[3]["text"], rows[4]["rating"] = 9.0, " ", None
    with pytest.raises(DataError) as caught:
        evaluate_ref("stars", written(allowed, rows), store)
    assert str(caught.value).splitlines() == [
        f"{allowed}/rows.jsonl, row 2: rating 9.0 is no number from -4.0 to 4.0",
        f"{allowed}/rows.jsonl, row 4: text ' ' is empty or not a string; give a non-empty string",
        f"{allowed}/rows.jsonl, row 5: column 'rating' is empty; fill it or leave the row out",
    ]


# -------------------------------------------------------------------- trained, stored, asked


def test_a_stored_adapter_scores_and_answers(store: str, allowed: Path) -> None:
    scored = evaluate_ref("stars", written(allowed, rated_rows(6)), store)
    assert set(scored["metrics"]) == {"mean_absolute_error"}
    asked: list[Any] = ["a day", {"text": "a day"}]
    answered = predict_ref("stars", asked, store)
    assert answered["task"] == "ratings:Rating"
    assert answered["predictions"][0] == pytest.approx(answered["predictions"][1])
    assert open_store(store).resolve("stars").task == TaskSpec.model_validate(RATING)
    with pytest.raises(RecipeError, match="no_such"):
        predict_ref("stars", asked, store, {"no_such": 1})


@pytest.mark.parametrize("breaks", [False, True])
def test_a_pack_trains_it_and_draws_its_figures(
    allowed: Path,
    tiny_bert_folder: Path,
    breaks: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = open_base(tiny_bert_folder, torch.float32)
    spec = TaskSpec.model_validate(RATING)
    task = build_task(spec, base.processor)
    if breaks:
        monkeypatch.setattr(type(task), "figures", lambda *given: 1 / 0)
    rows = dict(enumerate(task.encode(rated_rows(12))))
    engine = AdapterEngine(base, slots=2, train=True)
    pack = Pack(engine, {"rows": Splits(Split(rows, 12), Split(rows, 12))}, output=allowed)
    pack.join(Job("stars", "rows", spec, LoraSpec(r=2), TrainingSpec(max_steps=2, eval_steps=1)))
    reports = [report for _ in range(2) for report in pack.step()]
    engine.close()
    assert reports[-1].done
    assert set(reports[-1].metrics or {}) == {"mean_absolute_error"}
    assert Adapter.load(allowed / "stars" / "adapter").card.task == spec
    drawn = [path.name for path in (allowed / "stars").glob("figures/*")]
    assert drawn == ([] if breaks else ["ratings.png"])
    assert ("the figures of stars were not drawn: ZeroDivisionError" in caplog.text) == breaks


def test_a_search_trial_takes_the_recipe_of_an_allowed_task(allowed: Path) -> None:
    recipe = Recipe.parse({"task": RATING})
    told = TaskSpec.model_validate_json(recipe.task.model_dump_json())
    job = job_of("one", Recipe.model_validate_json(recipe.model_dump_json()), {"lora.r": 2}, told)
    assert (job.task, job.lora.r) == (recipe.task, 2)


def test_rows_of_several_columns_are_given_whole(allowed: Path) -> None:
    task = task_class("ratings:Rating")
    assert row_of(task, "a day") == row_of(task, {"text": "a day", "rating": 1, "id": 7}) == {"text": "a day"}
    with pytest.raises(RecipeError, match=r"has no 'text'; write the value alone or \{'text': ...\}"):
        row_of(task, {"txt": "a day"})
