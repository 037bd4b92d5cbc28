"""What a search says at its end, of trials that are given: no Ray runs."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

from rich.console import Console

from ray_lora.search.advice import advice, smallest
from ray_lora.search.importance import LEAST, importances
from ray_lora.search.plots import draw
from ray_lora.search.report import closing, leaderboard
from ray_lora.search.summary import Summary, Trial
from ray_lora.training.history import write_history

RATE, RANK = "training.learning_rate", "lora.r"


def trial(rank: int, rate: float, score: float, name: str | None = None) -> Trial:
    own = {"accuracy": score, "learning_rate": 0.0, "grad_norm": 3.0}
    name = name or f"{rank}-{rate}"
    return Trial(name, {RANK: rank, RATE: rate}, own, "finished", "a", 12.0, 400_000)


def summary_of(trials: list[Trial], default: Trial | None = None, mode: str = "max", rows: int = 400) -> Summary:
    found = importances([(one.config, one.metrics["accuracy"]) for one in trials])
    ends = advice(trials, "accuracy", mode, rows)
    small = smallest(trials, "accuracy", mode, rows)
    return Summary("accuracy", mode, trials, trials[0], small, default, 60.0, rows, found, ends)


def shown(summary: Summary) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    for part in closing(summary):
        console.print(part, highlight=False, soft_wrap=True)
    return console.export_text()


def test_the_closing_shows_what_was_searched_and_no_decayed_rate() -> None:
    trials = [trial(8, 1e-3, 0.95), trial(2, 1e-3, 0.945), trial(8, 1e-4, 0.90)]
    text = shown(summary_of(trials, default=trials[2]))
    assert "r=8 learning_rate=0.001 *" in text
    assert "learning_rate=0 " not in text
    assert "grad_norm" not in text
    assert "0.9500 ±0.021" in text  # 1.96 sqrt(0.95 * 0.05 / 400)
    assert "the best is +0.0500 from it" in text
    assert "smallest    r=2 learning_rate=0.001: 0.9450" in text


def test_a_score_without_a_single_miss_has_an_interval_too() -> None:
    assert "1.0000 ±0.007" in shown(summary_of([trial(8, 1e-3, 1.0)]))  # 1.96 sqrt(402/404 * 2/404 / 404)
    assert "0.0000 ±0.007" in shown(summary_of([trial(8, 1e-3, 0.0)]))


def test_a_default_that_was_not_tried_is_said_to_be_missing() -> None:
    assert "were not among what was tried" in shown(summary_of([trial(8, 1e-3, 0.95), trial(2, 1e-3, 0.9)]))


def test_a_default_that_is_the_best_is_said_to_be() -> None:
    trials = [trial(8, 1e-3, 0.95), trial(2, 1e-3, 0.9)]
    assert "the best has the recipe's own values" in shown(summary_of(trials, default=trials[0]))


def test_an_error_that_is_to_be_small_has_no_interval_of_shares() -> None:
    assert "0.2000 ±" not in shown(summary_of([trial(8, 1e-3, 0.2), trial(2, 1e-3, 0.3)], mode="min"))


def test_more_trials_than_the_table_shows_are_counted() -> None:
    table = leaderboard(summary_of([trial(8, rate * 1e-5, 0.9 - rate / 1000) for rate in range(1, 41)]), most=30)
    assert table.row_count == 30
    assert "10 more are in leaderboard.csv" in str(table.caption)


def test_the_rate_that_decides_is_more_important_than_the_rank_that_does_not() -> None:
    tried = [
        ({RANK: r, RATE: rate}, 0.5 + 0.1 * math.log10(rate / 1e-4)) for r in (2, 8, 32) for rate in (1e-4, 1e-3, 1e-2)
    ]
    found = importances(tried)
    assert list(found) == [RATE, RANK]
    assert found[RATE] > 0.9
    assert math.isclose(sum(found.values()), 1.0)


def test_too_little_to_say_what_is_important_says_nothing() -> None:
    rows = [({RANK: r, RATE: 1e-3}, 0.5 + r / 100) for r in range(LEAST + 2)]
    assert importances(rows[: LEAST - 1]) == {}
    assert importances([(config, 0.5) for config, _ in rows]) == {}
    assert importances([({RANK: 4}, score) for _, score in rows]) == {}
    assert importances([(config, math.nan) for config, _ in rows]) == {}
    assert list(importances(rows)) == [RANK]  # the key that has one value has no part


def test_keys_of_words_and_lists_have_an_importance_too() -> None:
    tried = [
        ({"lora.target_modules": [kind], "lora.use_rslora": on}, 0.5 + 0.2 * (kind == "query"))
        for kind in ("query", "value")
        for on in (True, False)
    ] * 2
    assert importances(tried)["lora.target_modules"] > 0.9


def test_scores_that_are_all_equal_are_an_alarm() -> None:
    told = advice([trial(8, 1e-3, 0.5), trial(2, 1e-4, 0.5)], "accuracy", "max", 100)
    assert "changes nothing" in told


def test_a_summary_reads_back_as_it_was() -> None:
    trials = [trial(8, 1e-3, 0.95), trial(2, 1e-3, 0.945)]
    first = summary_of(trials, default=trials[1])
    again = Summary.recall(json.loads(json.dumps(dataclasses.asdict(first))))
    assert again == first
    assert again.best is again.trials[0]


def test_every_picture_is_drawn_with_a_title(tmp_path: Path) -> None:
    trials = [
        trial(r, rate, 0.9 - abs(math.log10(rate) + 3) / 10 - r / 1000)
        for r in (2, 8)
        for rate in (1e-4, 3e-4, 1e-3, 3e-3)
    ]
    trials.sort(key=lambda one: -one.metrics["accuracy"])
    for one in trials:
        write_history(tmp_path / "jobs" / one.name, 4, {"loss": 0.5, "accuracy": one.metrics["accuracy"]})
    paths = draw(summary_of(trials), tmp_path)
    names = [Path(path).stem for path in paths]
    assert names == ["learning_curves", "rank_by_rate", "parallel_coordinates", "importance"]
    assert all(Path(path).stat().st_size > 5000 for path in paths)
    lone = draw(summary_of([trial(8, 1e-3, 0.9)]), tmp_path)
    assert [Path(path).stem for path in lone] == ["learning_curves"]
