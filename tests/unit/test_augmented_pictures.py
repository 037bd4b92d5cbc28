"""Boxes and masks follow the picture under every transform; what a task shows of a row comes back as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import EfficientNetImageProcessorPil, MobileViTImageProcessorPil, ViTImageProcessorPil

from ray_lora.augmentation.table import TRANSFORMS, transform_class
from ray_lora.bases.load import load_base
from ray_lora.recipe import BaseSpec, LoraSpec, TrainingSpec, TransformSpec
from ray_lora.tasks import build_task
from ray_lora.tasks.augmented import Picture
from ray_lora.tasks.image_classification import ImageClassificationSpec
from ray_lora.tasks.normalised import Normalised
from ray_lora.tasks.object_detection import ObjectDetectionSpec
from ray_lora.training.job import Job
from ray_lora.training.member import Member
from ray_lora.training.shards import Split, Splits
from ray_lora.training.sheet import write_sheet
from tests.unit import detection

WARPS: dict[str, dict[str, Any]] = {
    "horizontal_flip": {},
    "vertical_flip": {},
    "rotation": {"degrees": 180},
    "affine": {"degrees": 20, "translate": 0.4, "scale": [0.5, 1.5], "shear": 20},
    "crop_and_resize": {"scale": [0.2, 1.0]},
    "perspective": {"distortion": 0.4},
}
STAYS = {
    "color_jitter": {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.5},
    "grayscale": {},
    "blur": {},
    "noise": {},
    "erasing": {},
}


def transform(name: str, **options: Any) -> TransformSpec:
    return TransformSpec.model_validate({"name": name, "p": 1.0} | options)


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def picture(width: int, height: int, box: tuple[int, int, int, int]) -> Picture:
    """A white rectangle on black, which is label 7 of a mask of 3."""
    x, y, far, low = box
    pixels, mask = torch.zeros(3, height, width), torch.full((height, width), 3)
    pixels[:, y:low, x:far], mask[y:low, x:far] = 1.0, 7
    boxes = torch.tensor([box], dtype=torch.float64)
    return Picture(pixels, (0.5, 0.5, 0.5), boxes, torch.tensor([4]), mask, unlabelled=-1)


def test_every_transform_of_pictures_is_tried_here() -> None:
    of_pictures = {name for name in TRANSFORMS if transform_class(name).needs & {"pictures", "colours"}}
    assert {*WARPS, *STAYS} == of_pictures


@settings(deadline=None, max_examples=60)
@given(data=st.data(), name=st.sampled_from(sorted(WARPS)), seed=st.integers(0, 2**32))
def test_boxes_and_masks_follow_the_picture(data: st.DataObject, name: str, seed: int) -> None:
    """The least box around what is 7 in the mask lies in the row's box, and touches its sides where those are sharp."""
    width, height = (data.draw(st.integers(24, 60)) for _ in range(2))
    x, y = data.draw(st.integers(0, width - 12)), data.draw(st.integers(0, height - 12))
    far, low = data.draw(st.integers(x + 10, width)), data.draw(st.integers(y + 10, height))
    given_ = picture(width, height, (x, y, far, low))
    found = transform(name, min_visible=0.0, **WARPS[name])(given_, draw(seed))
    assert found.pixels.shape == given_.pixels.shape
    assert found.boxes is not None
    assert found.objects is not None
    assert found.mask is not None
    assert set(found.mask.unique().tolist()) <= {-1, 3, 7}
    seen = (found.mask == 7).nonzero()
    if len(found.boxes) == 0:
        assert len(seen) == 0
        return
    assert found.objects.tolist() == [4]
    box = found.boxes[0]
    assert (box >= 0).all()
    assert (box <= torch.tensor([width, height, width, height])).all()
    if min(box[2] - box[0], box[3] - box[1]) < 3 or len(seen) == 0:
        return
    around = torch.tensor([seen[:, 1].min(), seen[:, 0].min(), seen[:, 1].max() + 1, seen[:, 0].max() + 1]).double()
    outside = torch.cat([box[:2] - around[:2], around[2:] - box[2:]])
    assert outside.max() <= 1.0, (box, around)  # a pixel that is half covered is the rectangle's or not
    cut = torch.cat([box[:2] <= 0, box[2:] >= torch.tensor([width, height])])
    if not cut.any():  # a corner may be too sharp to have a pixel, and what is cut off may hold the corner
        assert outside.abs().max() <= 3.0, (box, around)
    white = (found.pixels[0] > 0.75).nonzero()
    assert (found.mask[white[:, 0], white[:, 1]] == 7).float().mean() > 0.9 if len(white) else True


@pytest.mark.parametrize("name", sorted(STAYS))
def test_other_transforms_leave_boxes_and_masks(name: str) -> None:
    given_ = picture(40, 30, (5, 5, 20, 25))
    found = transform(name, **STAYS[name])(given_, draw(1))
    assert found.boxes is given_.boxes
    assert found.mask is given_.mask
    assert found.pixels.shape == given_.pixels.shape
    assert found.pixels.dtype == torch.float32
    coloured = Picture(torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(0)), (0.0, 0.0, 0.0))
    assert not torch.equal(transform(name, **STAYS[name])(coloured, draw(1)).pixels, coloured.pixels)


def test_a_box_is_dropped_when_less_than_the_stated_part_is_left() -> None:
    moved = {"translate": 1.0}  # by up to a whole width
    kept = dropped = 0
    for seed in range(40):
        view = transform("affine", min_visible=0.5, **moved)(picture(40, 40, (0, 0, 40, 40)), draw(seed))
        assert view.boxes is not None
        assert view.mask is not None
        left = (view.mask == 7).float().mean().item()
        assert (len(view.boxes) == 1) == (left >= 0.5) or abs(left - 0.5) < 0.05
        kept, dropped = kept + len(view.boxes), dropped + 1 - len(view.boxes)
    assert kept
    assert dropped


def test_a_chance_of_nothing_changes_nothing() -> None:
    view = picture(30, 30, (3, 3, 20, 20))
    assert transform("rotation", p=0.0)(view, draw(0)) is view


def test_detection_shows_the_picture_in_its_input_and_takes_it_back(tmp_path: Path) -> None:
    for order in ("bgr", "rgb"):
        base = load_base(BaseSpec(model=str(detection.tiny(tmp_path / order, channel_order=order))))
        task: Any = build_task(ObjectDetectionSpec(labels=tuple(sorted(detection.COLOURS))), base.processor)
        for features in task.encode(detection.rows(5)):
            view = task.view(features)
            assert view.pixels.shape[1:] == tuple(reversed(features["inside"]))
            back = task.with_view(features, view)
            assert torch.equal(back["pixel_values"], features["pixel_values"])
            assert back["classes"] == features["classes"]
            assert np.allclose(back["boxes"], features["boxes"])
            flipped = task.with_view(features, transform("horizontal_flip")(view, draw(0)))
            for (x, y, wide, high), (left, top, across, down) in zip(features["boxes"], flipped["boxes"], strict=True):
                assert (left, top, across, down) == pytest.approx((features["extent"][0] - x - wide, y, wide, high))
            if features["boxes"]:  # a box of a colour holds that colour still
                (x, y, far, low), label = task.view(flipped).boxes[0], features["classes"][0]
                middle = task.view(flipped).pixels[:, int(y + low) // 2, int(x + far) // 2]
                colour = torch.tensor(detection.COLOURS[task.labels[label]]) / 255
                assert (middle - colour).abs().max() < 0.1


PROCESSORS = [
    (ViTImageProcessorPil(size={"height": 32, "width": 32}), True),
    (ViTImageProcessorPil(size={"height": 32, "width": 32}, do_normalize=False), True),
    (ViTImageProcessorPil(size={"height": 32, "width": 32}, image_std=[0.2, 0.3, 0.4], do_rescale=False), True),
    (EfficientNetImageProcessorPil(size={"height": 32, "width": 32}), True),
    (MobileViTImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), False),  # BGR
]


@pytest.mark.parametrize(("processor", "colours"), PROCESSORS)
def test_what_a_processor_writes_is_shown_from_black_to_white(processor: Any, colours: bool) -> None:
    task: Any = build_task(ImageClassificationSpec(labels=("a", "b")), processor)
    assert ("colours" in task.augments) == colours
    (row,) = task.encode([{"image": detection.rows(1)[0]["image"], "label": "b"}])
    view = task.view(row)
    assert view.pixels.min() >= -1e-5
    assert 0.5 < view.pixels.max() <= 1 + 1e-5
    back = task.with_view(row, view)
    torch.testing.assert_close(back["pixel_values"], row["pixel_values"], atol=1e-4, rtol=1e-5)
    assert back["labels"] == row["labels"]


def test_a_processor_that_is_not_understood_augments_nothing() -> None:
    def striped(pictures: Any, return_tensors: str) -> dict[str, Any]:
        return {"pixel_values": [torch.rand(3, 8, 8) for _ in pictures]}

    assert Normalised.of(striped) is None


def test_a_sheet_shows_rows_before_and_after_with_boxes_and_masks(tmp_path: Path) -> None:
    base = load_base(BaseSpec(model=str(detection.tiny(tmp_path / "base"))))
    task: Any = build_task(ObjectDetectionSpec(labels=tuple(sorted(detection.COLOURS))), base.processor)
    rows = dict(enumerate(task.encode(detection.rows(5))))
    told = tuple(transform(name, **options) for name, options in WARPS.items())
    job = Job("shown", "rows", task.spec, LoraSpec(), TrainingSpec(), told)
    member = Member(job, 1, task, Splits(Split(rows, len(rows))), 1, 1, 1)
    write_sheet(member, tmp_path / "figures")
    with Image.open(tmp_path / "figures" / "augmentation.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
    assert (pixels == (0, 255, 0)).all(1).sum() > 50  # the boxes' lines
    write_sheet(dataclasses.replace(member, job=dataclasses.replace(job, augmentation=())), tmp_path / "none")
    assert not (tmp_path / "none").exists()
