"""Image segmentation: what a mask is, the loss, whose pixels are answered, the measure, and wrong rows."""

from __future__ import annotations

import base64
import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from ray_lora import BaseSpec, load_base
from ray_lora.bases.segmenters import Frame
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import AdapterError, DataError, RecipeError
from ray_lora.inference.answer_columns import AnswerColumns
from ray_lora.inference.finite import is_finite
from ray_lora.inference.predict import predict
from ray_lora.inference.tables import Answer
from ray_lora.recipe import LoraSpec, TaskSpec, TrainingSpec
from ray_lora.tasks import plain_spec
from ray_lora.tasks.image_segmentation import ImageSegmentation, target
from ray_lora.tasks.segmentation.answers import decoded
from ray_lora.tasks.segmentation.losses import picture_losses
from ray_lora.tasks.segmentation.masks import IGNORED, drawn_objects, indices_of
from ray_lora.tasks.segmentation.objects import area_of
from ray_lora.tasks.segmentation.options import ImageSegmentationSpec
from ray_lora.tasks.segmentation.scoring import count, found_by_size, measure
from ray_lora.training.job import Job
from ray_lora.training.shards import Split, Splits
from tests.unit.bases import plain as plain_class
from tests.unit.packs import WatchedPack
from tests.unit.segmentation import LABELS, best_answer, png, row, rows, segformer, tiny

SIZE = (32, 48)


def task_of(**options: Any) -> ImageSegmentation:
    return ImageSegmentation(ImageSegmentationSpec(**{"labels": LABELS} | options), Frame(SIZE))


def mask_png(values: Any) -> bytes:
    return png(Image.fromarray(np.asarray(values, np.uint8)))


# -------------------------------------------------------------------- masks


def test_a_mask_is_grey_or_a_palette_of_any_colours() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    grey = Image.fromarray(values)
    palette = grey.copy().convert("P")
    palette.putpalette([200, 10, 10, 10, 200, 10, 9, 9, 9])
    wide = Image.fromarray(values.astype(np.int32))
    for image in (grey, palette):
        found = indices_of(png(image))
        assert found.dtype == np.uint8
        if image is grey:
            assert np.array_equal(found, values)
    assert np.array_equal(indices_of({"bytes": png(grey), "path": "a.png"}), values)
    assert np.array_equal(indices_of(base64.b64encode(png(grey)).decode()), values)
    assert np.array_equal(indices_of(wide), values)
    assert np.array_equal(indices_of(png(Image.fromarray(values > 0))), values > 0)
    direct = (
        Image.fromarray(values, "P")
        if not hasattr(Image, "frombytes")
        else Image.frombytes("P", (4, 3), values.tobytes())
    )
    direct.putpalette([200, 10, 10, 10, 200, 10, 9, 9, 9])
    assert np.array_equal(indices_of(png(direct)), values)


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (b"", "a mask cannot be read"),
        (mask_png([[0]])[:40], "a mask cannot be read"),
        (png(Image.new("RGB", (4, 4))), "its pixels are colours .RGB., not class indices"),
        (png(Image.new("RGBA", (4, 4))), "its pixels are colours .RGBA."),
        (Image.fromarray(np.full((2, 2), 300, np.int32)), "its pixels go from 300 to 300; indices are below 256"),
        ({"bytes": None, "path": "a.png"}, "a mask has no bytes, only the path 'a.png'"),
        ({"bytes": b"x", "path": "a.png"}, r"a mask \('a.png'\) cannot be read \(it is no PNG"),
        (7, "a mask is a int"),
    ],
)
def test_what_is_no_mask_says_why(mask: Any, why: str) -> None:
    with pytest.raises(DataError, match=why):
        indices_of(mask)


def test_a_jpeg_is_no_mask() -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG")
    with pytest.raises(DataError, match="it is a JPEG, which changes numbers; save it as PNG"):
        indices_of(buffer.getvalue())


def test_options_say_what_numbers_mean() -> None:
    values = [[0, 1, 2, 255]]

    def read(given: Any, **options: Any) -> list[int]:
        spec = ImageSegmentationSpec(**{"labels": LABELS} | options)
        found: list[int] = target(mask_png(given), (4, 1), spec)[0].tolist()
        return found

    assert read(values) == [0, 1, 2, IGNORED]
    assert read([[0, 1, 3, 255]], reduce_labels=True) == [IGNORED, 0, 2, IGNORED]
    assert read([[0, 1, 2, 9]], ignore_index=9) == [0, 1, 2, IGNORED]
    assert read([[0, 7, 255, 0]], masks="binary", labels=("no", "yes")) == [0, 1, 1, 0]
    with pytest.raises(DataError, match=r"the mask has index 3, and the labels .* are 0 to 2"):
        read([[0, 1, 3, 255]])
    with pytest.raises(DataError, match="the mask has index 255, which is beyond all labels; ignored is 9"):
        read(values, ignore_index=9)


POLYGON = [4.0, 2.0, 20.0, 2.0, 20.0, 12.0, 4.0, 12.0]


def test_objects_are_drawn_as_coco_draws_them() -> None:
    """Polygons, run lengths as numbers and packed; a later object lies over an earlier one."""
    rle = coco.merge(coco.frPyObjects([POLYGON], 30, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of how pycocotools makes arrays
        wanted = coco.decode(rle).astype(bool)
    noise = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (30, 40), dtype=np.uint8))
    packed = coco.encode(noise)
    runs = np.diff(np.flatnonzero(np.diff(noise.T.ravel(), prepend=noise.T.ravel()[:1] ^ 1, append=2)))
    counts = ([0] if noise[0, 0] else []) + runs.tolist()
    size = (40, 30)
    assert np.array_equal(area_of([POLYGON], size), wanted)
    assert np.array_equal(area_of(rle, size), wanted)
    assert np.array_equal(area_of(packed, size), noise.astype(bool))
    text = {"size": [30, 40], "counts": packed["counts"].decode()}
    assert np.array_equal(area_of(text, size), noise.astype(bool))
    assert np.array_equal(area_of({"size": [30, 40], "counts": counts}, size), noise.astype(bool))
    both = {"segmentation": [[POLYGON], [[10.0, 6.0, 30.0, 6.0, 30.0, 20.0]]], "category": ["blue", "red"]}
    found = drawn_objects(both, size, LABELS, 0)
    assert set(np.unique(found)) == {0, 1, 2}
    assert found[7, 18] == 2
    spec = ImageSegmentationSpec(labels=LABELS)
    listed = [{"segmentation": one, "category": word} for one, word in zip(*both.values(), strict=True)]
    assert np.array_equal(target(both, size, spec), found)
    assert np.array_equal(target(listed, size, spec), found)
    assert not target({"segmentation": [], "category": []}, size, spec).any()
    with pytest.raises(DataError, match="objects need a label for what is in none of them"):
        target(both, size, ImageSegmentationSpec(labels=("blue", "red")))


ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(allow_nan=True),
    st.text(max_size=6),
    st.binary(max_size=6),
)
SEGMENTATIONS = st.one_of(
    ANY,
    st.lists(st.lists(st.one_of(st.floats(-5, 50), ANY), max_size=9), max_size=3),
    st.fixed_dictionaries(
        {
            "size": st.sampled_from([[30, 40], [40, 30], None, []]),
            "counts": st.one_of(ANY, st.lists(st.integers(-1, 1300))),
        }
    ),
    st.builds(lambda head: {"size": [30, 40], "counts": [head, 1200 - head]}, st.integers(0, 1200)),
)


@given(SEGMENTATIONS)
@settings(max_examples=200, deadline=None)
def test_an_area_is_of_its_picture_or_an_error_of_ours(segmentation: Any) -> None:
    try:
        found = area_of(segmentation, (40, 30))
    except DataError:
        return
    assert found.shape == (30, 40)
    assert found.dtype == np.bool_


@given(st.binary(max_size=60), st.integers(0, 80), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_broken_file_is_an_error_of_ours(noise: bytes, at: int, byte: int) -> None:
    whole = bytearray(row(0, 20, 10)["mask"])
    whole[at % len(whole)] = byte
    for data in (noise, bytes(whole), bytes(whole[:at])):
        try:
            found = indices_of(data)
        except DataError:
            continue
        assert found.ndim == 2


# -------------------------------------------------------------------- rows


def test_labels_are_taught_or_counted() -> None:
    bare = ImageSegmentationSpec()

    def taught(masks: list[Any], spec: ImageSegmentationSpec = bare) -> TaskSpec:
        block = pa.table({"mask": masks})
        return ImageSegmentation.merge(spec, [ImageSegmentation.learn(spec, block)])

    assert taught([mask_png([[0, 2]]), mask_png([[1, 255]])]).labels == ("background", "LABEL_1", "LABEL_2")
    assert taught([mask_png([[0, 2]])], ImageSegmentationSpec(background=None)).labels == (
        "LABEL_0",
        "LABEL_1",
        "LABEL_2",
    )
    assert taught([mask_png([[0, 9]])], ImageSegmentationSpec(masks="binary")).labels == ("background", "LABEL_1")
    objects = [{"segmentation": [[POLYGON]], "category": ["red"]}, {"segmentation": [[POLYGON]], "category": ["blue"]}]
    assert taught(objects).labels == ("background", "blue", "red")
    with pytest.raises(DataError, match=r"the training masks hold 0 and 255 alone.* task.masks: binary"):
        taught([mask_png([[0, 255]])], ImageSegmentationSpec(labels=LABELS))
    with pytest.raises(DataError, match="show one class alone"):
        taught([mask_png([[0, 0]])])
    with pytest.raises(ValueError, match="masks: binary have two labels"):
        ImageSegmentationSpec(labels=LABELS, masks="binary")
    with pytest.raises(ValueError, match="are both 0"):
        ImageSegmentationSpec.model_validate({"loss": {"dice": 0, "cross_entropy": 0}})


def test_it_asks_for_a_base_that_can(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs a SegFormer of transformers"):
        ImageSegmentation(ImageSegmentationSpec(labels=LABELS), None)
    with pytest.raises(RecipeError, match=r"task.image_size \[30, 32\] must be two multiples of 8"):
        task_of(image_size=(30, 32))
    assert task_of(image_size=(64, 32)).encode(rows(1))[0]["pixel_values"].shape == (3, 64, 32)
    told = plain_spec(HeadSpec("AutoModelForSemanticSegmentation", 2))
    assert told == ImageSegmentationSpec(labels=("LABEL_0", "LABEL_1"))


# -------------------------------------------------------------------- the loss


def test_the_loss_is_cross_entropy_and_dice_of_each_picture() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, 6, generator=draw, dtype=torch.float64)
    targets = torch.randint(3, (4, 5, 6), generator=draw)
    targets[0, :2] = IGNORED
    targets[1] = 0
    targets[2] = IGNORED
    found = picture_losses(logits, targets, 0.5, 2.0)
    for number in range(4):
        known = targets[number] != IGNORED
        if not known.any():
            assert found[number] == 0
            continue
        entropy = F.cross_entropy(logits[number][:, known].T, targets[number][known])
        shares = logits[number].softmax(0)[:, known]
        off = []
        for label in range(3):
            held = (targets[number][known] == label).double()
            if held.any():
                off.append(1 - 2 * (shares[label] * held).sum() / (shares[label].sum() + held.sum()))
        assert float(found[number]) == pytest.approx(float(0.5 * entropy + 2 * sum(off) / len(off)))
    logits[3] = math.nan
    assert torch.equal(picture_losses(logits, targets, 0.5, 2.0)[:3], found[:3])


def test_the_loss_of_whole_pictures_is_transformers(tmp_path: Path) -> None:
    """Cross entropy alone, of masks without unknown pixels."""
    folder = segformer(tmp_path / "base")
    model = plain_class(folder, 3, architecture="AutoModelForSemanticSegmentation")
    base = load_base(BaseSpec(model=str(folder), dtype="float32"))
    task = ImageSegmentation(ImageSegmentationSpec(labels=LABELS, loss={"dice": 0.0}), base.processor)
    features = task.encode([row(number, 40, 36) for number in (1, 2, 4)])
    with torch.no_grad():
        outputs = model(**task.collate(features), labels=torch.stack([one["mask"] for one in features]).long())
    sums, counts = task.loss(outputs, features)
    assert float(sums.sum() / counts.sum()) == pytest.approx(float(outputs.loss), rel=1e-5)


# -------------------------------------------------------------------- answers


def planted(task: ImageSegmentation, features: list[Any]) -> dict[str, torch.Tensor]:
    """Outputs that are sure of each row's mask; of the margin they say that it is red."""
    masks = torch.stack([one["mask"] for one in features]).long()
    masks[masks == IGNORED] = 2
    return {"logits": F.one_hot(masks, 3).permute(0, 3, 1, 2).float() * 20}


def test_every_picture_is_answered_in_its_own_pixels() -> None:
    task, data = (
        task_of(),
        [row(number, *size) for number, size in enumerate([(48, 32), (96, 64), (20, 60), (7, 5)], 1)],
    )
    features = task.encode(data)
    outputs = planted(task, features)
    for one_row, answer in zip(data, task.decode(outputs, features, {}), strict=True):
        width, height = Image.open(io.BytesIO(one_row["image"])).size
        truth = np.array(Image.open(io.BytesIO(one_row["mask"])))
        union = np.zeros((height, width), int)
        for one in answer:
            assert set(one) == {"score", "label", "mask"}
            assert 0.5 < one["score"] <= 1
            mask = decoded(one["mask"])
            assert mask.shape == (height, width)
            assert set(np.unique(mask)) <= {0, 255}
            union += mask > 0
            known = truth != IGNORED
            right = (mask > 0) == (truth == LABELS.index(one["label"]))
            assert right[known].mean() > 0.85
        assert (union == 1).all()
    first = {"logits": outputs["logits"][:1]}
    assert task.decode(first, features[:1], {})[0] == task.decode(outputs, features, {})[0]


def test_a_map_is_all_masks_in_one() -> None:
    task = task_of()
    features = task.encode(rows(3))
    outputs = {"logits": torch.randn(3, 3, *SIZE)}
    for masks, one in zip(
        task.decode(outputs, features, {}), task.decode(outputs, features, {"form": "map"}), strict=True
    ):
        best, sure = decoded(one["map"]), decoded(one["sure"]) / 255
        for mask in masks:
            here = decoded(mask["mask"]) > 0
            assert (best[here] == LABELS.index(mask["label"])).all()
            assert mask["score"] == pytest.approx(sure[here].mean(), abs=0.003)
    few = task.decode(outputs, features, {"threshold": 0.99})
    assert few == [[], [], []]


def test_what_is_no_number_is_no_answer() -> None:
    task = task_of()
    features = task.encode(rows(3))
    outputs = {"logits": torch.randn(3, 3, *SIZE)}
    outputs["logits"][1, 0, 0, 0] = math.nan
    for parameters in ({}, {"form": "map"}):
        assert [is_finite(answer) for answer in task.decode(outputs, features, parameters)] == [True, False, True]


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"threshold": 1.5}, "threshold 1.5 must be a number from 0 to 1"),
        ({"threshold": True}, "threshold True must be"),
        ({"subtask": "panoptic"}, "subtask 'panoptic' is not answered here: only 'semantic'"),
        ({"form": "polygons"}, "form 'polygons' must be 'masks' .* or 'map'"),
        ({"mask_threshold": 0.5}, r"parameters \['mask_threshold'\] are not known to this task; it takes subtask"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], why: str) -> None:
    task_of().check_parameters({"subtask": None, "threshold": 0.2})
    with pytest.raises(RecipeError, match=why):
        task_of().check_parameters(parameters)


def test_answers_are_a_column_of_one_type() -> None:
    item = {"score": 0.5, "label": "red", "mask": "aGk="}
    columns = AnswerColumns(["image-segmentation"], {})
    answers = [Answer(None, answer, pipeline="image-segmentation") for answer in ([item, item], [])]
    assert columns.of(["a", "a"], answers)["prediction"].to_pylist() == [[item, item], []]
    whole = {"score": 0.5, "map": "aGk=", "sure": "aGk="}
    columns = AnswerColumns(["image-segmentation"], {"form": "map"})
    assert columns.of(["a"], [Answer(None, whole, pipeline="image-segmentation")])["prediction"].to_pylist() == [whole]


# -------------------------------------------------------------------- the measure and its pictures


def test_the_measure_counts_pixels_of_labels_that_occur() -> None:
    truth = np.array([[0, 0, 1, 1], [0, 255, 2, 2]], np.uint8)
    answer = np.array([[0, 1, 1, 0], [0, 2, 2, 2]], np.uint8)
    counts = count([answer], [truth], 4)
    assert counts.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    labels = ("background", "a", "b", "never")
    assert measure(counts, labels, "background") == pytest.approx({"dice": (0.5 + 1) / 2, "iou": (1 / 3 + 1) / 2})
    assert measure(counts, labels, None)["dice"] == pytest.approx((2 * 2 / 6 + 0.5 + 1) / 3)
    nothing = np.zeros((2, 2), np.uint8)
    assert measure(count([nothing], [nothing], 4), labels, "background") == {"dice": 1.0, "iou": 1.0}


def test_objects_are_found_by_their_size() -> None:
    truth = np.zeros((200, 200), np.uint8)
    truth[:10, :10], truth[50:100, 50:100], truth[100:200, 100:200], truth[0, 199] = 1, 1, 2, 255
    answer = truth.copy()
    answer[:5, :10] = 0
    answer[150:, 100:] = 1
    found = found_by_size([answer], [truth], 0)
    assert found["small"] == (50, 100)
    assert found["medium"] == (2500, 2500) or found["medium"][1] == 2500
    assert found["large"] == (5000, 10000)


def test_figures_are_drawn_of_right_and_wrong(tmp_path: Path) -> None:
    task, data = task_of(), rows(6)
    features = task.encode(data)
    answers = [best_answer(one) for one in data]
    assert task.score(answers, features) == {"dice": 1.0, "iou": 1.0}
    figures = task.figures(answers, features)
    assert set(figures) == {"masks", "confusion_matrix", "precision_recall", "found_by_size"}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
    masks = task.decode(planted(task, features), features, {})
    assert task.score(masks, features)["dice"] > 0.8  # of masks as of maps


# -------------------------------------------------------------------- SegFormer


def test_masks_are_those_of_hugging_faces_pipeline(tmp_path: Path) -> None:
    """Of pictures of several sizes, in one pass here and one by one there."""
    folder = segformer(tmp_path / "base")
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    model.config.id2label = dict(enumerate(LABELS))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pipe = transformers.pipeline("image-segmentation", model=model, image_processor=processor)
    base = load_base(BaseSpec(model=str(folder), dtype="float32"))
    task = ImageSegmentation(ImageSegmentationSpec(labels=LABELS), base.processor)
    engine = AdapterEngine(base, slots=1, max_rank=2)
    slot = engine.init(
        LoraSpec(r=2, target_modules=("q_proj",)), task.head, seed=0
    )  # B is zero: the base's own answers
    data = rows(4)
    answers = predict(engine, {slot: task}, task.encode([{"image": one["image"]} for one in data]), [slot] * 4)
    engine.close()
    seen = set()
    for one_row, answer in zip(data, answers, strict=True):
        theirs = pipe(Image.open(io.BytesIO(one_row["image"])), subtask="semantic")
        assert [one["label"] for one in answer] == [one["label"] for one in theirs]
        for one, other in zip(answer, theirs, strict=True):
            assert np.array_equal(decoded(one["mask"]), np.array(other["mask"]))
            seen.add(one["label"])
    assert len(seen) > 1


def test_other_classes_of_transformers_are_refused(tmp_path: Path) -> None:
    config = transformers.MobileViTConfig(hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 16])
    from ray_lora.bases.transformers_base import plain

    with pytest.raises(AdapterError, match="on 'mobilevit' was not compared with its plain class"):
        plain(config, HeadSpec("AutoModelForSemanticSegmentation", 2))


# -------------------------------------------------------------------- trained


def test_it_learns(tmp_path: Path) -> None:
    """LoRA on every convolution and its own classifier."""
    base = load_base(BaseSpec(model=str(tiny(tmp_path / "tiny")), dtype="float32"))
    task = ImageSegmentation(ImageSegmentationSpec(labels=LABELS), base.processor)
    features = task.encode(rows(6))
    split = Split(dict(enumerate(features)), len(features))
    pack = WatchedPack(AdapterEngine(base, slots=1, max_rank=4, train=True), {"rows": Splits(split, split)})
    training = TrainingSpec(
        max_steps=60, learning_rate=2e-2, per_device_train_batch_size=6, logging_steps=1, eval_steps=60
    )
    pack.join(Job("a", "rows", task.spec, LoraSpec(r=4, target_modules="all-convolutions"), training))
    reports = []
    while pack.members:
        reports += pack.step()
    pack.engine.close()
    assert reports[-1].loss < 0.6 * reports[0].loss
    assert reports[-1].metrics["dice"] > 0.6


def test_an_altered_row_has_its_mask_beside_it(tmp_path: Path) -> None:
    """Turned left to right and back, in a frame and as an image processor writes it."""
    folder = segformer(tmp_path / "base")
    whole = ImageSegmentation(
        ImageSegmentationSpec(labels=LABELS), load_base(BaseSpec(model=str(folder), dtype="float32")).processor
    )
    for task in (task_of(), whole):
        (features,) = task.encode([row(2, 40, 20)])
        view = task.view(features)
        assert view.pixels.shape[1:] == view.mask.shape
        assert 0 <= view.pixels.min() <= view.pixels.max() <= 1
        turned = task.with_view(
            features, type(view)(view.pixels.flip(2), view.ground, mask=view.mask.flip(1), unlabelled=view.unlabelled)
        )
        wide, high = features["inside"]
        assert torch.equal(turned["mask"][:high, :wide], features["mask"][:high, :wide].flip(1))
        torch.testing.assert_close(
            turned["pixel_values"][:, :high, :wide], features["pixel_values"][:, :high, :wide].flip(2)
        )
        assert torch.equal(turned["mask"][high:], features["mask"][high:])
        assert "colours" in task.augments
