"""Sequential recommendation: what is learned, answered, scored and refused, on a tiny SASRec."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from ray_lora import AdapterEngine, BaseSpec, Recipe, load_base
from ray_lora.bases.sasrec import Items, SasRecConfig, save_untrained
from ray_lora.data.check import check_table, on_base, wrong_rows
from ray_lora.errors import AdapterError, BaseModelError, DataError, RecipeError
from ray_lora.inference.predict import predict
from ray_lora.recipe import LoraSpec
from ray_lora.running.plan import plan_recipe
from ray_lora.tasks import build_task
from ray_lora.tasks.recommendation.measures import measures, popular
from ray_lora.tasks.sequential_recommendation import SequentialRecommendation, SequentialRecommendationSpec
from tests.unit import histories

ITEMS = Items(histories.NUMBERS, positions=12)
SPEC = SequentialRecommendationSpec()
TASK = build_task(SPEC, ITEMS)


def logits_of(*rows: list[float]) -> dict[str, torch.Tensor]:
    """Outputs of one place a row."""
    return {"logits": torch.tensor(rows)[:, None]}


# -------------------------------------------------------------------- rows


def test_every_place_learns_what_comes_after_it_and_padding_nothing() -> None:
    rows = TASK.encode([{"items": [900, 905, 903], "next": 910}, {"items": [922], "next": 901}])
    draw = torch.randn(2, 3, 23, generator=torch.Generator().manual_seed(0))
    sums, counts = TASK.loss({"logits": draw}, rows)
    shares = draw.log_softmax(-1)
    assert counts.tolist() == [3, 1]
    assert sums.tolist() == pytest.approx(
        [-float(shares[0, 0, 5] + shares[0, 1, 3] + shares[0, 2, 10]), -float(shares[1, 0, 1])], rel=1e-5
    )


def test_long_histories_lose_their_oldest_items_and_are_counted() -> None:
    (row,) = TASK.encode([{"items": list(histories.NUMBERS[:15])}])
    assert row["ids"] == list(range(4, 16))
    assert row["cut"] == "longer than 12 items"
    (short,) = build_task(SequentialRecommendationSpec(max_length=2), ITEMS).encode([{"items": [901, 902, 903]}])
    assert short["ids"] == [3, 4]
    with pytest.raises(RecipeError, match="max_length 13 exceeds the 12 items that this base reads"):
        build_task(SequentialRecommendationSpec(max_length=13), ITEMS)


def test_items_that_the_base_does_not_know_are_named_by_row(tmp_path: Path) -> None:
    """By a plan, before anything starts; the task alone cannot know."""
    folder = histories.tiny(tmp_path / "base")
    rows = [{"items": [900, 901], "next": 902}, {"items": [900, 77], "next": 1}, {"items": [905], "next": 900}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    recipe = Recipe.load(
        "examples/recommendation.yaml", [f"base.model={folder}", f"data={{train: {tmp_path}/train.parquet}}"]
    )
    with pytest.raises(DataError, match=r"train.parquet, row 2: items 77, 1 are not among the 23 items .* such as 900"):
        plan_recipe(recipe)
    assert wrong_rows(SequentialRecommendation, SPEC, pa.Table.from_pylist(rows)) == []
    with pytest.raises(DataError, match=r"item '900' is not among .*its ids are whole numbers"):
        TASK.encode([{"items": ["900"]}])


def test_a_head_that_nobody_trains_is_not_fitted(tmp_path: Path) -> None:
    folder = histories.tiny(tmp_path / "base")
    pq.write_table(pa.Table.from_pylist(histories.rows(5)), tmp_path / "train.parquet")
    told = [f"base.model={folder}", f"data={{train: {tmp_path}/train.parquet}}", "training.head_start=fitted"]
    told += ["task.output_layer=base"]
    with pytest.raises(RecipeError, match=r"head_start: fitted has nothing to fit: the head of sequential-rec"):
        plan_recipe(Recipe.load("examples/recommendation.yaml", told))


JUNK = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=3), st.integers(), st.lists(st.integers(), max_size=2)
)


@given(st.one_of(JUNK, st.lists(st.one_of(st.sampled_from(histories.NUMBERS), JUNK), max_size=20)))
def test_any_history_is_read_or_refused_with_a_reason(items: Any) -> None:
    right = (
        isinstance(items, list)
        and bool(items)
        and all(type(item) is int and item in histories.NUMBERS for item in items)
    )
    if right:
        (row,) = TASK.encode([{"items": items}])
        assert [ITEMS.ids[number - 1] for number in row["ids"]] == items[-12:]
    else:
        with pytest.raises(DataError, match=r"no history|no id|not among"):
            TASK.encode([{"items": items}])


@given(st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(890, 930)), max_size=4)), min_size=1))
def test_wrong_rows_of_a_table_are_those_that_cannot_be_encoded(given_items: list[Any]) -> None:
    table = pa.table({"items": pa.array(given_items, pa.list_(pa.int64())), "next": [901] * len(given_items)})
    named = {row for row, _ in wrong_rows(on_base(SPEC, ITEMS), SPEC, table)}
    for row, items in enumerate(given_items):
        try:
            TASK.encode([{"items": items, "next": 901}])
        except DataError:
            assert row in named
        else:
            assert row not in named


# -------------------------------------------------------------------- answers


def test_answers_are_the_best_items_and_leave_out_what_was_seen() -> None:
    outputs = logits_of([float(number) for number in range(23)])
    rows = TASK.encode([{"items": [922]}])
    shares = outputs["logits"][0, 0].softmax(-1).tolist()
    (found,) = TASK.decode(outputs, rows, {})
    assert [one["item"] for one in found] == list(range(921, 911, -1))
    assert [one["score"] for one in found] == pytest.approx(shares[21:11:-1])
    (seen,) = TASK.decode(outputs, rows, {"exclude_seen": False, "top_k": 2})
    assert [one["item"] for one in seen] == [922, 921]
    (whole,) = TASK.decode(outputs, rows, {"top_k": None, "exclude_seen": False})
    assert sum(one["score"] for one in whole) == pytest.approx(1)
    long = TASK.encode([{"items": [922, *histories.NUMBERS[:12]]}])  # the first is seen, though it is not read
    (few,) = TASK.decode({"logits": outputs["logits"].expand(1, 12, 23)}, long, {"top_k": None})
    assert [one["item"] for one in few] == list(range(921, 911, -1))
    json.dumps(few, allow_nan=False)


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"top_k": 0}, "top_k 0 must be a whole number of at least 1"),
        ({"top_k": True}, "top_k True must"),
        ({"exclude_seen": 1}, "exclude_seen 1 must be true or false"),
        ({"topk": 3}, r"parameters \['topk'\] are not known to this task; it takes top_k, exclude_seen"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        TASK.check_parameters(parameters)


def test_measures_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    scores, truth = draw.normal(size=(50, 30)), draw.integers(0, 30, 50)
    found = measures([list(map(int, row.argsort()[::-1])) for row in scores], truth.tolist())
    assert found["ndcg_10"] == pytest.approx(ndcg_score(np.eye(30)[truth], scores, k=10))
    ranks = (scores > scores[np.arange(50), truth][:, None]).sum(1)
    assert found["hit_rate_10"] == pytest.approx((ranks < 10).mean())


def test_what_is_popular_leaves_out_what_was_seen() -> None:
    assert popular([[1, 2, 2], [2, 3, 3]], [set(), {2}]) == [[2, 3, 1], [3, 1]]


def test_figures_mark_hits(tmp_path: Path) -> None:
    rows = TASK.encode(histories.rows(20))
    answers = [[{"item": 900 + at, "score": 0.1} for at in range(10)] for _ in rows]
    figures = TASK.figures(answers, rows)
    assert set(figures) == {"top_10", "hit_rates"}
    cells = figures["top_10"].axes[0].tables[0].get_celld()
    marked = [
        (row, column)
        for (row, column), cell in cells.items()
        if cell.get_facecolor()[:3] == pytest.approx((183 / 255, 227 / 255, 176 / 255))
    ]
    assert marked
    for row, column in marked:
        assert cells[row, column].get_text().get_text() == cells[row, 0].get_text().get_text()
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")


# -------------------------------------------------------------------- the base


def test_padding_on_either_side_and_later_items_change_nothing(tmp_path: Path) -> None:
    model = histories.plain(histories.tiny(tmp_path / "base")).double()
    ids = torch.tensor([[4, 9, 2, 17]])
    with torch.no_grad():
        alone = model(ids)["logits"]
        left = model(torch.tensor([[0, 0, 4, 9, 2, 17]]), torch.tensor([[0, 0, 1, 1, 1, 1]]))["logits"]
        later = model(torch.tensor([[4, 9, 2, 5]]))["logits"]
    torch.testing.assert_close(left[:, 2:], alone)
    torch.testing.assert_close(later[:, :3], alone[:, :3])
    assert not torch.allclose(later[:, 3], alone[:, 3])
    assert alone.shape == (1, 4, 23)


def test_an_output_layer_of_its_own_begins_as_the_bases_and_is_of_its_items(tmp_path: Path) -> None:
    base = load_base(BaseSpec(model=str(histories.tiny(tmp_path / "base")), dtype="float32"))
    engine, lora = AdapterEngine(base, slots=2, max_rank=2, train=True), LoraSpec(r=2)
    own = build_task(SequentialRecommendationSpec(output_layer="adapter"), base.processor)
    shared = build_task(SPEC, base.processor)
    slots = [engine.init(lora, task.head, seed=0) for task in (shared, own)]
    rows = shared.encode(histories.rows(6))
    tasks = dict(zip(slots, (shared, own), strict=True))
    answers = [predict(engine, tasks, rows, [slot] * len(rows)) for slot in slots]
    for tied, untied in zip(*answers, strict=True):
        assert [one["item"] for one in tied] == [one["item"] for one in untied]
        assert [one["score"] for one in tied] == pytest.approx([one["score"] for one in untied], abs=1e-6)
    adapter = engine.export(slots[1])
    assert {name: tuple(value.shape) for name, value in adapter.head.items()} == {"scores.weight": (23, 16)}
    assert SequentialRecommendation.plain(own.head) == own.spec
    engine.evict(slots[1])
    fewer = replace(adapter, head={"scores.weight": adapter.head["scores.weight"][:22]})
    with pytest.raises(AdapterError, match=r"the adapter's head has 22 outputs, and base .* knows 23"):
        engine.load(fewer)
    engine.close()


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    config = SasRecConfig(items=("tea", "milk", "rye"), hidden_size=8, num_attention_heads=2, intermediate_size=8)
    save_untrained(config, tmp_path / "base")
    base = load_base(BaseSpec(model=str(tmp_path / "base"), dtype="float32"))
    assert base.processor.unknown(["tea", 7, "coffee"]) == [7, "coffee"]
    told = json.loads((tmp_path / "base/config.json").read_text())
    for change, why in [
        (
            {"items": ["tea", "milk"]},
            r"tensors of .* do not fit its config.json: items.weight is \(4, 8\), not \(3, 8\)",
        ),
        ({"items": ["tea", "tea", "rye"]}, "each of them once"),
        ({"items": ["tea", 7, "rye"]}, "is no SASRec's: items"),
        ({"num_attention_heads": 3}, "hidden_size 8 must be a multiple of num_attention_heads 3"),
    ]:
        (tmp_path / "base/config.json").write_text(json.dumps(told | change))
        with pytest.raises(BaseModelError, match=why):
            load_base(BaseSpec(model=str(tmp_path / "base"), dtype="float32"))
    with pytest.raises(RecipeError, match="needs a base whose vocabulary is items"):
        build_task(SPEC, None)
    assert math.isfinite(float(base.backbone.items.weight.sum()))
    check_table(SequentialRecommendation, SPEC, pa.table({"items": [["tea"]], "next": ["rye"]}), "rows")
