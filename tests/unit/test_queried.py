"""YOLOS, DETR and Table Transformer as a detector's base: the class's own loss of each picture, boxes in each caller's
pixels."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ray_lora.bases.base import Base
from ray_lora.bases.load import describe_base, load_base
from ray_lora.errors import BaseModelError, RecipeError
from ray_lora.recipe import BaseSpec
from ray_lora.tasks.detection.geometry import in_input
from ray_lora.tasks.object_detection import ObjectDetection, ObjectDetectionSpec
from tests.unit import detection, detr, yolos

ROWS = detection.rows(6)
SPEC = ObjectDetectionSpec(labels=tuple(sorted(detection.COLOURS)))
WIDTH, HEIGHT = 96, 64
KINDS = ("yolos", *detr.KINDS)


def tiny(folder: Path, kind: str, **options: Any) -> Path:
    return yolos.tiny(folder, **options) if kind == "yolos" else detr.tiny(folder, kind, **options)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("bases") / request.param, request.param)


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_base(BaseSpec(model=str(folder), dtype="float32"))


@pytest.fixture
def task(base: Base) -> ObjectDetection:
    return ObjectDetection(SPEC, base.processor)


def labels_of(one: Any) -> dict[str, torch.Tensor]:
    """A row's objects as the plain class takes them."""
    corners = in_input(one["boxes"], one["extent"], one["inside"]).float() / torch.tensor([WIDTH, HEIGHT] * 2)
    middles, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    return {"class_labels": torch.tensor(one["classes"], dtype=torch.long), "boxes": torch.cat([middles, sizes], 1)}


def test_a_rows_loss_is_the_plain_classs_of_it(task: ObjectDetection, folder: Path) -> None:
    model, features = yolos.plain(folder), task.encode(ROWS)
    with torch.no_grad():
        sums, counts = task.loss(model(**task.collate(features)), features)
        for one, loss in zip(features, sums, strict=True):
            if one["boxes"]:
                wanted = model(**task.collate([one]), labels=[labels_of(one)]).loss
                torch.testing.assert_close(loss, wanted)
    assert counts.tolist() == [1.0] * len(ROWS)


def test_a_picture_without_objects_is_what_it_is_among_others(task: ObjectDetection, folder: Path) -> None:
    """The plain class takes none alone; what it adds to another picture's is known of the parts."""
    model, (full, empty) = yolos.plain(folder), task.encode([ROWS[1], ROWS[3]])
    assert not empty["boxes"]
    with torch.no_grad():
        both = model(**task.collate([full, empty]), labels=[labels_of(full), labels_of(empty)]).loss_dict["loss_ce"]
        one = model(**task.collate([full]), labels=[labels_of(full)]).loss_dict["loss_ce"]
        mine = task.loss(model(**task.collate([empty])), [empty])[0][0]
    queries, found, eos = 7, len(full["boxes"]), 0.1
    weight, nothing = found + eos * (queries - found), eos * queries
    assert float(both) == pytest.approx(float((one * weight + mine * nothing) / (weight + nothing)), rel=1e-5)


def test_outputs_that_are_no_numbers_stay_in_their_row(task: ObjectDetection, folder: Path) -> None:
    features = task.encode(ROWS[:3])
    with torch.no_grad():
        outputs = yolos.plain(folder)(**task.collate(features))
        clean = task.loss(outputs, features)[0]
        outputs["pred_boxes"][1] = float("nan")
        sums, _ = task.loss(outputs, features)
    assert sums.isnan().tolist() == [False, True, False]
    assert torch.equal(sums[[0, 2]], clean[[0, 2]])
    assert [len(answer) == 1 for answer in task.decode(outputs, features, {"threshold": 1.0})] == [False, True, False]


def test_answers_are_the_processors_in_each_callers_pixels(task: ObjectDetection, base: Base, folder: Path) -> None:
    features = task.encode(ROWS)
    with torch.no_grad():
        outputs = yolos.plain(folder)(**task.collate(features))
    answers = task.decode(outputs, features, {"threshold": 0.0, "rounded": False, "top_k": None})
    theirs = base.processor.post_process_object_detection(
        outputs, threshold=0.0, target_sizes=torch.tensor([[HEIGHT, WIDTH]] * len(ROWS))
    )
    seen = 0
    for answer, one, wanted in zip(answers, features, theirs, strict=True):
        known = {
            score: (label, box)
            for score, label, box in zip(
                *(wanted[name].tolist() for name in ("scores", "labels", "boxes")), strict=True
            )
        }
        for found in answer:
            label, box = known[found["score"]]
            assert found["label"] == task.labels[label]
            for name, corner, side in zip(("xmin", "ymin", "xmax", "ymax"), box, (0, 1, 0, 1), strict=True):
                scaled = corner * one["extent"][side] / one["inside"][side]
                assert found["box"][name] == pytest.approx(min(max(scaled, 0), one["extent"][side]), abs=1e-3)
            seen += 1
    assert seen > len(ROWS)


def test_pictures_are_scaled_into_one_size_and_shown_again(task: ObjectDetection) -> None:
    for one, row in zip(task.encode(ROWS), ROWS, strict=True):
        assert one["pixel_values"].shape == (3, HEIGHT, WIDTH)
        wide, high = one["inside"]
        assert min(WIDTH - wide, HEIGHT - high) <= 1, "one side is full"
        view = task.view(one)
        small = Image.open(io.BytesIO(row["image"])).convert("RGB").resize((wide, high), Image.Resampling.BILINEAR)
        assert view.pixels.shape == (3, high, wide)
        wanted = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
        assert (view.pixels - wanted).abs().mean() < 0.02
        back = task.with_view(one, view)
        torch.testing.assert_close(back["pixel_values"], one["pixel_values"])
        assert back["classes"] == one["classes"]


def test_padding_of_a_smaller_picture_is_masked(task: ObjectDetection, base: Base) -> None:
    inputs = task.collate(task.encode(ROWS))
    if not base.processor.queries.masked:
        assert "pixel_mask" not in inputs
        return
    for one, row, mask in zip(task.encode(ROWS), inputs["pixel_values"], inputs["pixel_mask"], strict=True):
        wide, high = one["inside"]
        assert int(mask.sum()) == wide * high == int(mask[:high, :wide].sum())
        assert not row[:, mask == 0].any()
    assert (inputs["pixel_mask"] == 0).any()


@pytest.mark.parametrize("kind", detr.KINDS)
def test_a_lying_picture_is_as_large_as_its_processor_makes_it(tmp_path: Path, kind: str) -> None:
    base = load_base(BaseSpec(model=str(tiny(tmp_path / kind, kind)), dtype="float32"))
    picture = Image.effect_noise((300, 220), 80).convert("RGB")
    theirs = base.processor([picture], return_tensors="pt")["pixel_values"][0]
    file = io.BytesIO()
    picture.save(file, "PNG")
    (one,) = ObjectDetection(SPEC, base.processor).encode([{"image": file.getvalue()}])
    wide, high = one["inside"]
    assert theirs.shape == (3, high, wide)
    assert torch.equal(one["pixel_values"][:, :high, :wide], theirs)


@pytest.mark.parametrize(
    ("size", "height_width", "fills"),
    [
        ({"height": 48, "width": 80}, (48, 80), True),
        ({"max_height": 50, "max_width": 70}, (50, 70), False),
        ({"shortest_edge": 64, "longest_edge": 64}, (64, 64), False),
    ],
)
def test_the_size_is_the_image_processors(
    tmp_path: Path, size: dict[str, int], height_width: tuple[int, int], fills: bool
) -> None:
    base = load_base(BaseSpec(model=str(detr.tiny(tmp_path / "detr", size=size)), dtype="float32"))
    file = io.BytesIO()
    Image.effect_noise((150, 60), 80).convert("RGB").save(file, "PNG")
    (one,) = ObjectDetection(SPEC, base.processor).encode([{"image": file.getvalue()}])
    assert one["pixel_values"].shape == (3, *height_width)
    wide, high = one["inside"]
    assert wide == height_width[1]
    assert (high == height_width[0]) is fills, "a picture keeps its shape unless its processor stretches it"


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_backbone_of_a_package_that_is_missing_is_one_error(tmp_path: Path) -> None:
    folder = detr.tiny(tmp_path / "detr")
    config = json.loads((folder / "config.json").read_text())
    config["backbone_config"] = {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [1, 2, 3, 4]}
    (folder / "config.json").write_text(json.dumps(config))
    for load in (load_base, describe_base):
        with pytest.raises(BaseModelError, match="requires the timm library but it was not found"):
            load(BaseSpec(model=str(folder), dtype="float32"))


def test_what_cannot_be_exact_is_refused_by_name(tmp_path: Path) -> None:
    class Pictures:
        base_type, queries = "rt_detr_v2", None

    with pytest.raises(RecipeError, match=r"is an RT-DETR v2, whose layers share some of what tells boxes"):
        ObjectDetection(SPEC, Pictures())
    Pictures.base_type = "resnet"
    with pytest.raises(RecipeError, match="this base is a 'resnet'"):
        ObjectDetection(SPEC, Pictures())
    for kind in KINDS:
        other = load_base(BaseSpec(model=str(tiny(tmp_path / kind, kind, auxiliary_loss=True)), dtype="float32"))
        with pytest.raises(RecipeError, match="auxiliary_loss: true, and losses of each layer are not computed here"):
            ObjectDetection(SPEC, other.processor)
    for size in ({"shortest_edge": 64}, {"longest_edge": 64}):
        one_edge = load_base(BaseSpec(model=str(detr.tiny(tmp_path / "e", size=size)), dtype="float32"))
        with pytest.raises(RecipeError, match=r"preprocessor_config.json says no size of pictures"):
            ObjectDetection(SPEC, one_edge.processor)
