"""RT-DETR of transformers as a detector's base: its numbers, its loss of each picture, its processor's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_lora import AdapterEngine, LoraSpec
from ray_lora.bases.base import Base
from ray_lora.bases.load import load_base
from ray_lora.recipe import BaseSpec
from ray_lora.tasks.object_detection import ObjectDetection, ObjectDetectionSpec
from tests.unit import detection, rt_detr
from tests.unit.test_queried import labels_of

ROWS = detection.rows(6)
SPEC = ObjectDetectionSpec(labels=tuple(sorted(detection.COLOURS)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rt_detr.tiny(tmp_path_factory.mktemp("bases") / "rt_detr")


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_base(BaseSpec(model=str(folder), dtype="float32"))


@pytest.fixture
def task(base: Base) -> ObjectDetection:
    return ObjectDetection(SPEC, base.processor)


def test_what_each_layer_says_is_what_transformers_class_says(task: ObjectDetection, folder: Path) -> None:
    inputs = task.collate(task.encode(ROWS))
    with torch.no_grad():
        ours, theirs = rt_detr.plain(folder)(**inputs), rt_detr.theirs(folder)(**inputs)
    assert torch.equal(ours["logits"], theirs.intermediate_logits)
    assert torch.equal(ours["pred_boxes"], theirs.intermediate_reference_points)
    assert torch.equal(ours["logits"][:, -1], theirs.logits)
    assert torch.equal(ours["pred_boxes"][:, -1], theirs.pred_boxes)


def theirs_of(model: Any, inputs: dict[str, torch.Tensor], rows: list[Any]) -> dict[str, float]:
    """Transformers' losses of its decoder's layers; the last auxiliary ones are of what chooses queries."""
    found = model(**inputs, labels=[labels_of(one) for one in rows]).loss_dict
    return {name: float(loss) for name, loss in found.items() if not name.endswith("_aux_1")}


def test_a_rows_loss_is_transformers_of_it(task: ObjectDetection, folder: Path) -> None:
    model, theirs, features = rt_detr.plain(folder), rt_detr.theirs(folder), task.encode(ROWS)
    with torch.no_grad():
        sums, counts = task.loss(model(**task.collate(features)), features)
        for one, loss in zip(features, sums, strict=True):
            if one["boxes"]:
                parts = theirs_of(theirs, task.collate([one]), [one])
                assert len(parts) == 6, "three losses of each of two layers"
                assert float(loss) == pytest.approx(sum(parts.values()), rel=1e-5)
    assert counts.tolist() == [1.0] * len(ROWS)


def test_a_picture_without_objects_is_what_it_is_among_others(task: ObjectDetection, folder: Path) -> None:
    theirs, (full, empty) = rt_detr.theirs(folder), task.encode([ROWS[1], ROWS[3]])
    assert not empty["boxes"]
    with torch.no_grad():
        both = theirs_of(theirs, task.collate([full, empty]), [full, empty])
        alone = theirs_of(theirs, task.collate([full]), [full])
        mine = task.loss(rt_detr.plain(folder)(**task.collate([empty])), [empty])[0][0]
    objects = len(full["boxes"])  # by which both divide
    wanted = sum(objects * (both[name] - alone[name]) for name in both if "vfl" in name)
    assert float(mine) == pytest.approx(wanted, rel=1e-4)


def test_without_auxiliary_losses_the_last_layer_learns_alone(folder: Path, tmp_path: Path) -> None:
    other = load_base(BaseSpec(model=str(rt_detr.tiny(tmp_path / "b", auxiliary_loss=False)), dtype="float32"))
    task = ObjectDetection(SPEC, other.processor)
    (one,) = task.encode(ROWS[1:2])
    with torch.no_grad():
        loss = task.loss(rt_detr.plain(tmp_path / "b")(**task.collate([one])), [one])[0][0]
        parts = theirs_of(rt_detr.theirs(tmp_path / "b"), task.collate([one]), [one])
    assert set(parts) == {"loss_vfl", "loss_bbox", "loss_giou"}
    assert float(loss) == pytest.approx(sum(parts.values()), rel=1e-5)


def test_outputs_that_are_no_numbers_stay_in_their_row(task: ObjectDetection, folder: Path) -> None:
    features = task.encode(ROWS[:3])
    with torch.no_grad():
        outputs = rt_detr.plain(folder)(**task.collate(features))
        clean = task.loss(outputs, features)[0]
        outputs["logits"][1, 0] = float("nan")
        sums, _ = task.loss(outputs, features)
    assert sums.isnan().tolist() == [False, True, False]
    assert torch.equal(sums[[0, 2]], clean[[0, 2]])
    assert [len(answer) == 1 for answer in task.decode(outputs, features, {"threshold": 1.0})] == [False, True, False]


def test_answers_are_the_processors_in_each_callers_pixels(task: ObjectDetection, base: Base, folder: Path) -> None:
    features = task.encode(ROWS)
    with torch.no_grad():
        answers = task.decode(
            rt_detr.plain(folder)(**task.collate(features)), features, {"threshold": 0.0, "rounded": False}
        )
        theirs = base.processor.post_process_object_detection(
            rt_detr.theirs(folder)(**task.collate(features)),
            threshold=0.0,
            target_sizes=torch.tensor([one["extent"][::-1] for one in features]),
        )
    twice = 0
    for answer, one, wanted in zip(answers, features, theirs, strict=True):
        wide, high = one["extent"]
        known = sorted(zip(*(wanted[name].tolist() for name in ("scores", "labels", "boxes")), strict=True))[::-1]
        seen = [  # what lies beside the picture is no answer
            found
            for found in known
            if min(found[2][2], wide) > max(found[2][0], 0) and min(found[2][3], high) > max(found[2][1], 0)
        ]
        assert len(answer) == len(seen) <= rt_detr.QUERIES
        for found, (score, label, box) in zip(answer, seen, strict=True):
            assert found["score"] == pytest.approx(score, rel=1e-6)
            assert found["label"] == task.labels[label]
            for name, corner, most in zip(("xmin", "ymin", "xmax", "ymax"), box, (wide, high) * 2, strict=True):
                assert found["box"][name] == pytest.approx(min(max(corner, 0), most), abs=1e-3)
        boxes = [tuple(found["box"].values()) for found in answer]
        twice += len(boxes) > len(set(boxes))
    assert twice, "a query may be two objects' of two labels"


def test_classes_begin_as_the_bases_and_what_moves_boxes_may_learn(
    base: Base, task: ObjectDetection, folder: Path
) -> None:
    engine = AdapterEngine(base, slots=1, max_rank=4)
    slot = engine.init(
        LoraSpec(r=2, target_modules=["bbox_embed.0.layers.0", "query_pos_head.layers.0"]), task.head, seed=0
    )
    adapter = engine.export(slot)
    classes = rt_detr.plain(folder).class_embed.state_dict()
    assert {f"class_embed.{name}" for name in classes} == set(adapter.head)
    assert all(torch.equal(adapter.head[f"class_embed.{name}"], tensor) for name, tensor in classes.items())
    assert set(adapter.layers) == {"model.decoder.bbox_embed.0.layers.0", "model.decoder.query_pos_head.layers.0"}
    engine.close()
