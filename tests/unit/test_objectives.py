"""Several metrics: which trials no other beats, which is chosen and why, and what is measured beside scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_lora.data.groups import groups_of
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.intervals import standard_error
from ray_lora.recipe import Recipe
from ray_lora.search.objectives import Objective, chosen, fair_of, front, objectives_of
from ray_lora.search.plots import draw
from ray_lora.search.report import closing
from ray_lora.search.space import check_search, configured, sampled
from ray_lora.search.stopping import stopping_of
from ray_lora.search.summary import Summary, Trial
from ray_lora.tasks import build_task
from ray_lora.training.measures import fairness, sizes
from tests.unit.packs import LABELS, ROWS, Letters, make_job, make_pack

SCORE, SMALL = Objective("accuracy", "max"), Objective("parameters", "min")


def trial(rank: int, accuracy: float, parameters: float, pareto: bool = False) -> Trial:
    scores = {"accuracy": accuracy, "parameters": parameters}
    return Trial(f"r{rank}", {"lora.r": rank}, scores, "finished", "somewhere", pareto=pareto)


TRIALS = [trial(16, 0.95, 1600), trial(8, 0.945, 800), trial(4, 0.945, 900), trial(2, 0.80, 200), trial(1, 0.70, 200)]


def recipe_of(**search: object) -> Recipe:
    return Recipe.parse({"search": search, "data": {"train": "a.csv", "validation": "b.csv"}})


# ---------------------------------------------------------------- which, and why


def test_the_front_has_those_that_nobody_beats() -> None:
    assert [one.name for one in front(TRIALS, (SCORE, SMALL))] == ["r16", "r8", "r2"]
    assert [one.name for one in front(TRIALS, (SCORE,))] == ["r16"]
    equal = [trial(1, 0.5, 10), trial(2, 0.5, 10)]
    assert front(equal, (SCORE, SMALL)) == equal  # neither beats the other


def test_the_cheapest_within_one_standard_error_is_chosen_and_said() -> None:
    slack = standard_error(0.95, 500)
    assert 0.005 < slack < 0.15
    taken, why = chosen(TRIALS, (SCORE, SMALL), 500)
    assert taken.name == "r8"
    assert why == (
        f"r=8: accuracy 0.9450, parameters 800; of 3 whose accuracy is within one standard error ({slack:.4f}) of the "
        "best, 0.95, the least parameters"
    )
    assert chosen(TRIALS, (SCORE, SMALL), 10_000_000)[0].name == "r16"  # so many rows leave no doubt
    assert chosen(TRIALS, (SMALL, SCORE), 500)[0].name == "r2"  # of two with as few parameters, the better score


def test_a_metric_that_nobody_reports_is_refused_by_name() -> None:
    assert objectives_of(recipe_of(metrics=[{"name": "accuracy"}, {"name": "parameters"}])) == (SCORE, SMALL)
    assert objectives_of(recipe_of(metric="loss")) == (Objective("loss", "min"),)
    with pytest.raises(RecipeError, match=r"unknown metric 'accuracies'.*did you mean 'accuracy'"):
        check_search(recipe_of(metrics=[{"name": "accuracies"}]))
    with pytest.raises(RecipeError, match=r"'latency_ms'.*less than a measurement does: give parameters"):
        check_search(recipe_of(metrics=[{"name": "accuracy"}, {"name": "latency_ms"}]))
    with pytest.raises(RecipeError, match=r"'accuracy_gap'.*name the column of the groups in search\.groups"):
        check_search(recipe_of(metrics=[{"name": "accuracy"}, {"name": "accuracy_gap"}]))
    with pytest.raises(RecipeError, match="takes the place of metric and mode"):
        recipe_of(metrics=[{"name": "accuracy"}], metric="loss")
    with pytest.raises(RecipeError, match="names one twice"):
        recipe_of(metrics=[{"name": "accuracy"}, {"name": "accuracy"}])
    with pytest.raises(RecipeError, match=r"set data\.validation"):
        check_search(recipe_of(groups="region").override({"data.validation": None}))


def test_a_recipe_of_one_metric_is_written_as_before() -> None:
    assert not {"metrics", "groups"} & recipe_of().model_dump()["search"].keys()
    several = recipe_of(metrics=[{"name": "accuracy"}, {"name": "parameters"}], groups="region")
    assert Recipe.model_validate_json(several.model_dump_json()) == several


def test_optuna_is_told_all_metrics_and_nobody_is_stopped_by_one() -> None:
    several = recipe_of(
        metrics=[{"name": "f1_macro"}, {"name": "parameters"}],
        searcher="optuna",
        num_samples=16,
        space={"lora.r": {"choice": [2, 4]}},
    )
    searcher = configured(several, sampled(several)).search_alg
    assert searcher is not None
    assert (searcher.metric, searcher.mode) == (["f1_macro", "parameters"], ["max", "min"])
    told = stopping_of(several, several.search.space or {}, None, 16, 64, 512)
    assert (told.rungs, told.scheduler) == (False, None)
    assert "several metrics decide" in told.said
    asked = several.override({"search.early_stopping": "rungs"})
    assert stopping_of(asked, {}, None, 16, 64, 512).scheduler is not None  # by the first metric, where it is asked for


def test_the_group_metrics_are_of_the_metric_that_is_named() -> None:
    assert fair_of((Objective("f1_macro", "max"), Objective("accuracy_gap", "min")), "f1_macro") == "accuracy"
    assert fair_of((SMALL, SCORE), "f1_macro") == "accuracy"
    assert fair_of((SMALL, Objective("loss", "min")), "f1_macro") == "f1_macro"
    both = recipe_of(metrics=[{"name": "accuracy_gap"}, {"name": "f1_macro_worst_group"}], groups="region")
    with pytest.raises(RecipeError, match="compared by one metric, and these are of accuracy, f1_macro"):
        check_search(both)


# ---------------------------------------------------------------- what is measured


def test_the_worst_group_and_the_gap() -> None:
    task, rows = build_task(LABELS[2], Letters()), ROWS[2][:8]
    right = [{"label": "ab"[row["labels"]], "score": 0.9} for row in rows]
    other = {"a": "b", "b": "a"}
    answers = [{**one, "label": other[one["label"]]} if row in (0, 4) else one for row, one in enumerate(right)]
    groups = ["north"] * 4 + ["south"] * 2 + ["west"] * 2
    told = fairness(task, answers, rows, groups, "accuracy")
    assert told == {"accuracy_worst_group": 0.5, "accuracy_gap": 0.5}  # 3 of 4, 1 of 2, 2 of 2


def test_an_evaluation_says_sizes_and_groups_where_its_job_asks(tiny_bert_folder: Path) -> None:
    from dataclasses import replace

    pack = make_pack(tiny_bert_folder)
    count = len(ROWS[2])
    pack.data["2"] = replace(pack.data["2"], groups=["even" if row % 2 == 0 else "odd" for row in range(count)])
    asked = replace(make_job("asked", max_steps=2), measures=True, fair="accuracy")
    pack.join(asked)
    pack.join(make_job("plain", max_steps=2))
    numbers = sizes(pack.engine, pack.members["asked"].slot)
    reports = [report for _ in range(2) for report in pack.step() if report.metrics is not None]
    found = {report.job: report.metrics or {} for report in reports}
    assert found["asked"] == found["plain"] | numbers | {
        name: found["asked"][name] for name in ("accuracy_worst_group", "accuracy_gap")
    }
    assert numbers["adapter_bytes"] == 4 * numbers["parameters"] > 0
    worst, gap = found["asked"]["accuracy_worst_group"], found["asked"]["accuracy_gap"]
    even, odd = (count + 1) // 2, count // 2
    assert worst * even + (worst + gap) * odd == pytest.approx(found["plain"]["accuracy"] * count) or (
        worst * odd + (worst + gap) * even == pytest.approx(found["plain"]["accuracy"] * count)
    )


def test_groups_are_read_in_the_rows_order(tmp_path: Path) -> None:
    path = tmp_path / "validation.csv"
    words = ["north", "south"] * 20
    path.write_text("text,label,region\n" + "".join(f"t{number},yes,{word}\n" for number, word in enumerate(words)))
    recipe = recipe_of(groups="region").override({"data.validation": str(path)})
    assert groups_of(recipe) == tuple(words)
    path.write_text("text,label,region\n" + "".join(f"t,yes,{word}\n" for word in [*words, "west"]))
    with pytest.raises(DataError, match=r"at least 16 rows each, and column 'region' has too few of 'west' \(1\)"):
        groups_of(recipe)
    with pytest.raises(DataError, match="no column 'place'"):
        groups_of(recipe.override({"search.groups": "place"}))


# ---------------------------------------------------------------- what is shown


def test_the_table_the_line_and_the_picture_show_the_front(tmp_path: Path) -> None:
    trials = [trial(16, 0.95, 1600, True), trial(8, 0.945, 800, True), trial(4, 0.945, 900)]
    taken, why = chosen(trials, (SCORE, SMALL), 500)
    summary = Summary(
        "accuracy", "max", trials, taken, None, None, 1.0, 500, {}, "",
        objectives=[("accuracy", "max"), ("parameters", "min")], choice=why,
    )  # fmt: skip
    table, *lines = closing(summary)
    assert [column.header for column in table.columns][:3] == ["configuration", "accuracy", "parameters"]
    assert list(table.columns[0].cells) == ["r=16 P", "r=8 * P", "r=4"]
    assert f"choice      {why}" in lines
    assert "pareto" in {Path(path).stem for path in draw(summary, tmp_path)}
    alone = Summary("accuracy", "max", trials, trials[0], None, None, 1.0, 500, {}, "")
    assert "pareto" not in {Path(path).stem for path in draw(alone, tmp_path)}
