"""The head alone as a teacher: what it says is scikit-learn's, of the rows that are trained on, alone as in a pack."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.baseline import features_of
from ray_lora.recipe import LoraSpec, Recipe, TransformSpec
from ray_lora.running.people import PersonalTrainer
from ray_lora.running.plan import plan_recipe
from ray_lora.tasks import build_task
from ray_lora.tasks.soft_targets import SOFT
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.training.head_teacher import fitted
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack
from ray_lora.training.shards import Group, Split, Splits
from tests.unit.bases import save_base
from tests.unit.packs import (
    ROWS,
    Letters,
    assert_packed_is_alone,
    assert_same,
    losses,
    make_job,
    make_pack,
    train_alone,
)
from tests.unit.test_pack import Meeting

DROPS: dict[str, Any] = {"name": "token_dropout", "share": 0.4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("bases") / "bert")


def taught(name: str, labels: int = 3, weight: float = 0.5, **training: Any) -> Job:
    """On altered rows."""
    job = make_job(name, labels, LoraSpec(r=4), **{"max_steps": 8, "head_teacher": weight} | training)
    return dataclasses.replace(job, augmentation=(TransformSpec.model_validate(DROPS),))


@pytest.mark.parametrize("labels", [2, 3])
def test_it_is_scikit_learns(labels: int) -> None:
    draw = np.random.default_rng(0)
    x = (draw.normal(size=(40, 6)) * [1, 1, 5, 0.1, 1, 1]).astype(np.float32)
    y = np.arange(40) % labels
    logits = fitted(x, y, labels)(x)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x, y)
    said = torch.from_numpy(logits).softmax(1).numpy()
    np.testing.assert_allclose(said, model.predict_proba(x), atol=1e-5)


def test_a_label_that_no_row_has_is_hardly_ever_said() -> None:
    x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    logits = fitted(x, np.arange(20) % 2 * 2, 3)(x)
    assert (torch.from_numpy(logits).softmax(1)[:, 1] < 0.02).all()


def test_the_adapter_learns_what_the_head_says_of_altered_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weight 1 its loss is the distance from that alone, and labels have no part."""
    pack = make_pack(folder)
    pack.join(taught("taught", weight=1.0, max_steps=60, learning_rate=3e-2, per_device_train_batch_size=53))
    member = pack.members["taught"]
    rows = [ROWS[3][row] for row in sorted(member.splits.train.rows)]
    x = features_of(pack.engine, member.task, rows)  # type: ignore[arg-type]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(x, member.task.targets(rows))  # type: ignore[attr-defined]
    seen: list[Any] = []
    divergence = type(member.task).divergence

    def watched(self: Any, outputs: Any, features: Any, temperatures: Any) -> Any:
        seen.extend(features)
        return divergence(self, outputs, features, temperatures)

    monkeypatch.setattr(type(member.task), "divergence", watched)
    reports = pack.step()
    assert len(seen) == len(rows)
    assert any(len(row["input_ids"]) < len(ROWS[3][0]["input_ids"]) for row in seen)
    said = torch.tensor(np.stack([row[SOFT] for row in seen])).softmax(1)
    np.testing.assert_allclose(said, model.predict_proba(features_of(pack.engine, member.task, seen)), atol=1e-4)  # type: ignore[arg-type]
    while pack.members:
        reports += pack.step()
    found = losses(reports, "taught")
    assert found[-1] < 0.5 * found[0]


def test_packed_equals_alone_and_others_stay_what_they_are(folder: Path) -> None:
    plain = make_job("plain", 3, max_steps=6, seed=2)
    jobs = [taught("one"), taught("two", 2, weight=1.0, seed=1, max_steps=5), plain]
    assert_packed_is_alone(folder, make_pack(folder), jobs, 1e-6)  # features of the bare base are float32


def test_a_job_goes_on_with_the_same_teacher(folder: Path, tmp_path: Path) -> None:
    job = taught("kept")
    alone_losses, alone_tensors = train_alone(folder, job)
    first = make_pack(folder, output=tmp_path)
    first.join(job)
    for _ in range(5):
        first.step()
    first.save("kept")
    second = make_pack(folder, output=tmp_path)
    second.join(job, tmp_path / "kept" / "state")
    reports = [report for _ in range(3) for report in second.step()]
    assert losses(reports, "kept") == pytest.approx(alone_losses[5:], abs=1e-6)
    assert_same(second.left["kept"], alone_tensors[-1], 1e-6)


def test_workers_on_shards_have_the_teacher_of_one(folder: Path) -> None:
    def work(group: Group) -> Any:
        pack = make_pack(folder, slots=1, group=group)
        pack.join(taught("spread", per_device_train_batch_size=12 // group.world))
        while pack.members:
            pack.step()
        return pack.left["spread"]

    alone = work(Group())
    for tensors in Meeting(2).run(work):
        assert_same(tensors, alone, 1e-5)


def test_refusals_leave_no_slot_taken(folder: Path) -> None:
    pack: Pack = make_pack(folder, slots=1)
    one = [row for row in ROWS[2] if row["labels"] == 0]
    pack.data = {"2": Splits(Split(dict(enumerate(one)), len(one)))}
    with pytest.raises(DataError, match="all its training rows have one label"):
        pack.join(taught("blind", 2))
    number = TextClassificationSpec(problem_type="regression")
    rows = build_task(number, Letters()).encode([{"text": "ab", "label": 1.5}, {"text": "b", "label": 2.5}])
    pack.data["numbers"] = Splits(Split(dict(enumerate(rows)), 2))
    with pytest.raises(RecipeError, match="head_teacher is for rows of one label each"):
        pack.join(dataclasses.replace(make_job("numbers", head_teacher=0.5), data="numbers", task=number))
    assert not pack.members
    assert pack.engine.free_slots == [1]


def test_what_does_not_fit_is_refused_before_work_starts(tiny_bert_folder: Path, tmp_path: Path) -> None:
    told = {"training.head_teacher": 0.5, "distillation.teacher": "moods@1"}
    with pytest.raises(RecipeError, match="an adapter has one teacher"):
        Recipe().override(told)
    with pytest.raises(RecipeError, match="head_teacher"):
        Recipe().override({"training.head_teacher": 1.5})
    assert "head_teacher" not in Recipe().model_dump()["training"]
    with pytest.raises(RecipeError, match="people go on from their group's adapter"):
        PersonalTrainer(Recipe().override({"training.head_teacher": 0.5}))
    (tmp_path / "rows.csv").write_text("text,label\na,1.5\nb,2.5\n")
    recipe = Recipe().override(
        {
            "data.train": str(tmp_path / "rows.csv"),
            "task": {"type": "text-classification", "problem_type": "regression"},
            "base.model": str(tiny_bert_folder),
            "training.head_teacher": 0.5,
        }
    )
    with pytest.raises(RecipeError, match="head_teacher is for rows of one label each"):
        plan_recipe(recipe)
