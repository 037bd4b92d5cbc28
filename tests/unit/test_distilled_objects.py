"""Learning what a teacher finds where: questions of yes and no at each anchor, beside torch's own divergence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ray_lora.adapters.adapter import Card
from ray_lora.bases.load import describe_base, load_base
from ray_lora.engine import AdapterEngine
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.teacher import soft_targets
from ray_lora.recipe import BaseSpec, LoraSpec, Recipe
from ray_lora.running import distilling
from ray_lora.running.teachers import Teacher, find_teacher
from ray_lora.store import open_store
from ray_lora.tasks import build_task
from ray_lora.tasks.object_detection import ObjectDetectionSpec
from ray_lora.tasks.soft_targets import SOFT, Distilled
from tests.unit import detection, yolos

MINE, THEIRS = ("blue", "red", "white"), ("white", "blue", "red")
SPEC = ObjectDetectionSpec(labels=MINE)
ANCHORS = 8 * 8 + 4 * 4 + 2 * 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher's base and a student's."""
    root = tmp_path_factory.mktemp("finders")
    return detection.tiny(root / "large", width=0.125), detection.tiny(root / "small")


def task_on(folder: Path, spec: ObjectDetectionSpec = SPEC) -> Any:
    return build_task(spec, describe_base(BaseSpec(model=str(folder))).processor)


def drawn(*shape: int, seed: int) -> Tensor:
    return 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs_of(seed: int, rows: int = 2) -> dict[str, Tensor]:
    names = {"logits": (rows, ANCHORS, 3), "objectness": (rows, ANCHORS), "boxes": (rows, ANCHORS, 4)}
    return {name: drawn(*shape, seed=seed + at) for at, (name, shape) in enumerate(names.items())}


def yes_or_no(student: Tensor, teacher: Tensor, heat: float) -> Tensor:
    """Of each question, by torch's own cross entropy."""
    chance, guess = (teacher / heat).sigmoid(), student / heat
    entropy = F.binary_cross_entropy(chance, chance, reduction="none")
    return heat**2 * (F.binary_cross_entropy_with_logits(guess, chance, reduction="none") - entropy)


def test_labels_count_as_far_as_the_teacher_sees_something(folders: tuple[Path, Path]) -> None:
    task = task_on(folders[1])
    assert isinstance(task, Distilled)
    told, said = outputs_of(1), outputs_of(7)
    rows: Any = [{SOFT: soft.numpy()} for soft in task.logits(told, [{}, {}])]
    found = task.divergence(said, rows, torch.tensor([1.0, 3.0]))
    for row, heat in enumerate((1.0, 3.0)):
        objectness, seen = told["objectness"][row], told["objectness"][row].sigmoid()
        expected = yes_or_no(said["objectness"][row], objectness, heat)
        expected = expected + seen * yes_or_no(said["logits"][row], told["logits"][row], heat).sum(1)
        assert float(found[row]) == pytest.approx(float(expected.sum()), rel=1e-5)
    same = task.divergence(told, rows, torch.tensor([1.0, 3.0]))
    assert float(same.abs().max()) < 1e-4


def test_a_picture_of_other_anchors_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"soft targets \(9, 4\) were given for a picture of 64 x 64 pixels with 84"):
        task_on(folders[1]).with_soft_targets({}, np.zeros((9, 4), np.float32))


def recipe_of(student: Path, folder: Path) -> Recipe:
    return Recipe.parse(
        {
            "base": {"model": str(student), "dtype": "float32"},
            "task": {"type": "object-detection", "labels": list(MINE)},
            "distillation": {"teacher": "large"},
            "tracking": {"uri": None},
            "store": str(folder / "store"),
        }
    )


def find(recipe: Recipe) -> Teacher:
    return find_teacher(recipe, recipe.task, describe_base(recipe.base))


def store_teacher(base: Path, store: Path) -> None:
    engine = AdapterEngine(load_base(BaseSpec(model=str(base), dtype="float32")), slots=1, max_rank=2)
    spec = ObjectDetectionSpec(labels=THEIRS)
    task = build_task(spec, engine.base.processor)
    slot = engine.init(LoraSpec(r=2, target_modules=("conv2.conv",)), task.head, 0)
    draw = torch.Generator().manual_seed(0)
    moved = {key: x + 0.3 * torch.randn(x.shape, generator=draw) for key, x in engine.read(slot).items()}
    engine.write(slot, moved)
    engine.refresh([slot])
    open_store(str(store)).put(engine.export(slot, Card(task=spec, base=str(base))), "large")
    engine.close()


def test_a_teacher_s_labels_go_by_their_names(folders: tuple[Path, Path], tmp_path: Path) -> None:
    large, small = folders
    store_teacher(large, tmp_path / "store")
    teacher = find(recipe_of(small, tmp_path))
    assert teacher.order == (1, 2, 0)
    rows = detection.rows(4)
    block = pa.Table.from_pylist(rows)
    soft = distilling._computed(teacher, (SPEC, BaseSpec(model=str(small))), {}, block)
    assert len(soft) == 4
    engine, slot, theirs = distilling._mounted(teacher)
    features = theirs.encode(rows)
    [(_, outputs)] = engine.forward(theirs.collate(features), torch.full((4,), slot))
    own = torch.stack([*outputs["logits"].float().unbind(-1), outputs["objectness"].float()], -1).detach()
    for row in range(4):
        np.testing.assert_allclose(soft[row], own[row][:, [1, 2, 0, 3]].numpy(), atol=1e-4)
    engine.close()


def test_who_sees_another_picture_teaches_nothing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = detection.tiny(tmp_path / "other", image_size=(64, 96))
    store_teacher(other, tmp_path / "store")
    with pytest.raises(RecipeError, match=r"'large@1' sees 96 x 64 pixels with 126 anchors, and .*small 64 x 64 pixel"):
        find(recipe_of(folders[1], tmp_path))
    queries = yolos.tiny(tmp_path / "yolos")
    with pytest.raises(RecipeError, match=r"object-detection learns from no teacher; .*object-detection on anchors do"):
        find(recipe_of(queries, tmp_path))


def test_more_than_can_be_kept_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = folders
    store_teacher(large, tmp_path / "store")
    engine, slot, task = distilling._mounted(find(recipe_of(small, tmp_path)))
    monkeypatch.setattr("ray_lora.inference.teacher.MOST_BYTES", 3 * 4 * ANCHORS * 4)
    rows = task.encode(detection.rows(4))
    with pytest.raises(RecipeError, match=r"of 4 rows takes 5\.38 kB, and at most 4\.03 kB are kept; give fewer rows"):
        soft_targets(engine, slot, task, rows, max_rows=2)
    assert len(soft_targets(engine, slot, task, rows[:3], max_rows=2)) == 3
    engine.close()
