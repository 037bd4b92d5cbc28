"""A job that ends with its best evaluation: its values, its scores, and the same after a kill."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ray_lora.adapters.adapter import Adapter
from ray_lora.engine import AdapterEngine
from ray_lora.errors import RecipeError
from ray_lora.recipe import LoraSpec, Recipe
from ray_lora.running.people import PersonalTrainer
from ray_lora.tasks import build_task
from ray_lora.training.job import Job, Report
from ray_lora.training.shards import Split, Splits
from tests.unit.bases import open_base, save_base
from tests.unit.packs import LABELS, ROWS, Letters, WatchedPack, assert_same, make_job, make_pack

TRAINING = {"max_steps": 12, "eval_steps": 2, "learning_rate": 0.1, "seed": 3}  # so high that scores go up and down


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


def job(**more: object) -> Job:
    return make_job("a", lora=LoraSpec(r=2), **{**TRAINING, **more})


def trained(
    folder: Path, mine: Job, output: Path | None = None, until: int = 99
) -> tuple[list[Report], dict[int, dict[str, Tensor]], WatchedPack]:
    """Reports with scores, what the slot held when each was made, and the pack."""
    pack = make_pack(folder, output=output, slots=2)
    pack.join(mine, None if output is None else output / "a" / "state")
    scored, held = [], {}
    while pack.members and pack.members["a"].step < until:
        for report in pack.step():
            if report.metrics is not None:
                scored.append(report)
                held[report.step] = pack.left["a"] if report.done else pack.engine.read(pack.members["a"].slot)
    return scored, held, pack


def test_it_ends_as_its_best_evaluation_found_it(folder: Path, tmp_path: Path) -> None:
    every, held, _ = trained(folder, job())
    best = max(every, key=lambda report: (report.metrics or {})["accuracy"])
    assert best.step < 12, "this job's last evaluation is its best, which shows nothing"
    mine, ended, _ = trained(folder, job(load_best_model_at_end=True), tmp_path)
    assert [report.step for report in mine] == [report.step for report in every]
    assert [report.metrics for report in mine[:-1]] == [report.metrics for report in every[:-1]]
    assert mine[-1].metrics == best.metrics
    assert_same(ended[12], held[best.step], 0)
    adapter = Adapter.load(tmp_path / "a" / "adapter")
    assert adapter.card.metrics == best.metrics
    assert (adapter.card.recipe or {})["evaluated"] == {"step": best.step}
    told = {f"base_model.model.{name}": value for name, value in adapter.head.items()}
    for name, value in held[best.step].items():
        if name in told:
            torch.testing.assert_close(told[name].double(), value, atol=1e-6, rtol=0)


def test_a_kill_after_the_best_one_loses_it_not(folder: Path, tmp_path: Path) -> None:
    mine = job(load_best_model_at_end=True)
    whole, ended, _ = trained(folder, mine, tmp_path / "whole")
    best = (Adapter.load(tmp_path / "whole" / "a" / "adapter").card.recipe or {})["evaluated"]["step"]
    trained(folder, mine, tmp_path / "killed", until=best + 2)
    again, after, _ = trained(folder, mine, tmp_path / "killed")
    assert again[0].step == best + 4 or best + 4 > 12
    assert again[-1].metrics == whole[-1].metrics
    assert_same(after[12], ended[12], 0)
    shutil.rmtree(tmp_path)


def test_scores_on_a_part_of_the_rows_are_no_rivals(folder: Path) -> None:
    """Of a job with rungs every early evaluation is on fewer rows; here the part is a row that it always gets right."""
    from dataclasses import replace

    rows = [ROWS[2][at % len(ROWS[2])] for at in range(200)]
    engine = AdapterEngine(open_base(folder, torch.float64, Letters()), slots=1, max_rank=4, train=True)
    engine.reserve_head(build_task(LABELS[2], Letters()).head)
    split = Split(dict(enumerate(rows)), len(rows))
    pack = WatchedPack(engine, {"2": Splits(split, split)}, max_rows=64)
    pack.join(replace(job(load_best_model_at_end=True, max_steps=16), rungs=True))
    seen: list[object] = []
    while pack.members:
        member = pack.members["a"]
        for report in pack.step():
            if report.metrics is not None and not report.done:
                seen.append(report.rows)
                assert member.best is None
    assert seen == [64, 64, 100]
    assert member.best is not None
    assert member.best.step == 16


def test_people_have_none(folder: Path) -> None:
    recipe = Recipe.parse({"name": "shops", "base": {"model": str(folder)}, "data": {"train": "rows.csv"}})
    with pytest.raises(RecipeError, match="load_best_model_at_end is of an adapter that is evaluated while it trains"):
        PersonalTrainer(recipe.override({"training.load_best_model_at_end": True}))


def test_of_other_jobs_nothing_is_kept(folder: Path) -> None:
    pack = make_pack(folder, slots=2)
    pack.join(job())
    member = pack.members["a"]
    while pack.members:
        pack.step()
    assert member.best is None
