"""What people have reported of tools for pictures, recommendation and people, tried here with small inputs: see
`docs/reports.md`."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from PIL import Image

from ray_lora.bases.load import load_base
from ray_lora.bases.sasrec import SasRecConfig, save_untrained
from ray_lora.data.interactions import leave_last_out
from ray_lora.data.people import check_apart, find_people
from ray_lora.data.read import read
from ray_lora.data.rows import read_rows
from ray_lora.errors import DataError
from ray_lora.recipe import BaseSpec, PersonalSpec, Recipe
from ray_lora.running.sources import inspect
from ray_lora.store.people import person_name
from ray_lora.tasks.image_classification import ImageClassification, ImageClassificationSpec
from ray_lora.tasks.image_segmentation import ImageSegmentation
from ray_lora.tasks.images import open_picture
from ray_lora.tasks.segmentation.losses import picture_losses
from ray_lora.tasks.segmentation.masks import IGNORED
from ray_lora.tasks.segmentation.options import ImageSegmentationSpec
from ray_lora.tasks.segmentation.scoring import count, measure
from ray_lora.tasks.sequential_recommendation import SequentialRecommendation, SequentialRecommendationSpec

# ------------------------------------------------------------------------------------------- pictures in folders


def written(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


RED = written(Image.new("RGB", (9, 9), "red"))


def folder(root: Path, *names: str) -> Path:
    for name in names:
        path = root / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(RED)
    return root / "pictures"


def recipe(path: Path, **data: str) -> Recipe:
    told = {"train": str(path), **data}
    return Recipe.parse({"base": {"model": "any"}, "task": {"type": "image-classification"}, "data": told})


def rows(path: Path) -> set[tuple[str, str]]:
    """(label, file) of each row."""
    table = read_rows(str(path), recipe(path).data, ImageClassification.columns, "train").table
    return {(str(row["label"]), row["image"]["path"]) for row in table.to_pylist()}


def test_what_systems_leave_in_folders_is_no_class(tmp_path: Path) -> None:
    """pytorch/vision#2831, #109, tensorflow/tensorflow#46595, huggingface/datasets#4115: a class .ipynb_checkpoints."""
    left = (".ipynb_checkpoints/1.png", "cat/.ipynb_checkpoints/1.png", ".DS_Store", "cat/.DS_Store", "cat/._1.png")
    found = folder(tmp_path, "cat/1.png", "dog/1.png", "dog/Thumbs.db", *left)
    (found / "bird").mkdir()
    assert rows(found) == {("cat", "1.png"), ("dog", "1.png")}


def test_a_name_that_begins_with_an_underscore_is_a_picture(tmp_path: Path) -> None:
    """LNH-team/pico-launcher#45: cameras call pictures _DSC1234.JPG, and people call a class _other."""
    found = folder(tmp_path, "cat/_DSC1.JPG", "cat/2.png", "_other/_MG_1.jpg")
    assert rows(found) == {("cat", "_DSC1.JPG"), ("cat", "2.png"), ("_other", "_MG_1.jpg")}
    assert inspect(recipe(found))[0].labels == ("_other", "cat")  # type: ignore[attr-defined]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "_SUCCESS").write_text("")
    (tmp_path / "rows" / "part-0.jsonl").write_text('{"text": "a", "label": "b"}\n')
    assert len(read_rows(str(tmp_path / "rows"), recipe(found).data, {}, "train").tables) == 1


def test_a_label_in_a_labels_folder_is_refused(tmp_path: Path) -> None:
    """huggingface/datasets#5153, #5192: pictures at several depths gave labels that nobody meant."""
    with pytest.raises(DataError, match=r"cat/black' lies in .*cat', and both hold files"):
        rows(folder(tmp_path / "deep", "cat/1.png", "cat/black/2.png", "dog/3.png"))
    with pytest.raises(DataError, match=r"cat' lies in .*pictures', and both hold files"):
        rows(folder(tmp_path / "loose", "0.png", "cat/1.png"))
    unlabelled = {"image": ImageClassification.columns["image"]}
    assert len(read_rows(str(tmp_path / "deep"), recipe(tmp_path).data, unlabelled, "test").table) == 3
    shared = rows(folder(tmp_path / "shared", "old/cat/1.png", "new/cat/2.png", "new/dog/3.png"))
    assert shared == {("cat", "1.png"), ("cat", "2.png"), ("dog", "3.png")}


def test_folders_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    """pytorch/vision#714, CSAILVision/places365#22, NVIDIA/DIGITS#665: 10 stood before 2."""
    found = folder(tmp_path, *(f"{number}/1.png" for number in (1, 2, 10, 100)))
    assert inspect(recipe(found))[0].labels == ("1", "2", "10", "100")  # type: ignore[attr-defined]


def test_a_class_that_validation_lacks_moves_no_other(tmp_path: Path) -> None:
    """ultralytics/ultralytics#13936, huggingface/pytorch-image-models#957, #211: labels counted off in each split."""
    found = folder(tmp_path, *(f"train/{angle}/1.png" for angle in (0, 90, 180, 270)), "val/0/1.png", "val/270/1.png")
    spec, counts = inspect(recipe(found, validation=str(found)))
    assert spec.labels == ("0", "90", "180", "270")  # type: ignore[attr-defined]
    assert counts == {"train": 4, "validation": 2}
    with pytest.raises(DataError, match="label 'moon' is not one of"):
        inspect(recipe(folder(tmp_path, "val/moon/1.png"), validation=str(found)))


def test_names_with_signs_are_names(tmp_path: Path) -> None:
    """ray-project/ray#57226: what stood behind a semicolon in a path was dropped."""
    names = {("a; b", "1;2.png"), ("50%", "%20.png"), ("w?t", "a#b.png"), ("[x]", "*.png"), ("é", "ü ö.png")}
    assert rows(folder(tmp_path, *(f"{label}/{name}" for label, name in names))) == names


# -------------------------------------------------------------------------------------------------------- pictures


def test_every_kind_of_pixel_is_seen_or_refused() -> None:
    """pytorch/vision#2218, python-pillow/Pillow#5991, #3011: 16 bits became white. microsoft/OmniParser#128: RGBA."""
    wide = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    with pytest.raises(DataError, match="would be cut to 8 bits"):
        open_picture(written(wide))
    for mode in ("L", "LA", "P", "RGBA", "CMYK"):
        grey = Image.new("L", (4, 4), 200).convert("RGB").convert(mode) if mode == "CMYK" else None
        grey = grey or Image.new("L", (4, 4), 200).convert(mode)
        assert open_picture(written(grey, "TIFF" if mode == "CMYK" else "PNG")).getpixel((0, 0)) == (200, 200, 200)


def test_a_photograph_on_its_side_is_turned() -> None:
    """v7labs/darwin-py#924, huggingface/diffusers#3465: trained on pictures that lay on their side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    two = Image.new("RGB", (40, 20), "blue")
    two.paste("red", (0, 0, 20, 20))
    seen = open_picture(written(two, "PNG", exif=exif))
    assert seen.size == (20, 40)
    assert (seen.getpixel((10, 5)), seen.getpixel((10, 35))) == ((255, 0, 0), (0, 0, 255))


def processors() -> dict[str, Any]:
    """One of each way to a size: both sides, the shorter one and the middle of it, and a fixed share of it."""
    return {
        "both": transformers.ViTImageProcessor(size={"height": 16, "width": 16}),
        "shorter": transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    }


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (1, 50), (50, 1), (3, 50), (50, 3)])
@pytest.mark.parametrize("kind", ["both", "shorter"])
def test_a_picture_of_one_pixel_has_three_channels(kind: str, size: tuple[int, int]) -> None:
    """huggingface/transformers#21638, #34029, #20728, #31950: a height of 1 or 3 was taken for the channels."""
    task = ImageClassification(ImageClassificationSpec(labels=("a", "b")), processors()[kind])
    [features] = task.encode([{"image": Image.new("RGB", size, (255, 0, 0))}])
    [red] = task.encode([{"image": Image.new("RGB", (16, 16), (255, 0, 0))}])
    assert torch.allclose(features["pixel_values"], red["pixel_values"], atol=1e-5)


def test_a_very_long_picture_is_refused_before_it_is_scaled() -> None:
    """image-rs/image#3083, nagadomi/nunif#256: 1 x 1,000,000 pixels became billions on their way to a small square."""
    task = ImageClassification(ImageClassificationSpec(labels=("a", "b")), transformers.CLIPImageProcessor())
    long = Image.new("RGB", (1, 20_000))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="1 x 20000 pixels would be scaled to 224 x 4,480,000"):
            task.encode([{"image": long}])
        block = pa.table({"image": [RED, written(long)], "label": ["a", "b"]})
        [(row, why)] = task.unknown(block)
        assert (row, "would be scaled" in why) == (1, True)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert len(task.encode([{"image": Image.new("RGB", (20, 1_000))}])) == 1
    bounded = ImageClassification(ImageClassificationSpec(labels=("a", "b")), processors()["both"])
    assert len(bounded.encode([{"image": long}])) == 1
    assert list(bounded.unknown(block)) == []


def test_a_very_long_picture_is_named_with_its_row(tmp_path: Path) -> None:
    """The same, of rows that are checked before anything starts."""
    found = folder(tmp_path, "cat/1.png", "dog/1.png")
    (found / "dog" / "2.png").write_bytes(written(Image.new("RGB", (9_000, 1))))
    with pytest.raises(DataError, match="dog, row 2: an image of 9000 x 1 pixels would be scaled to"):
        inspect(recipe(found), transformers.CLIPImageProcessor())
    assert inspect(recipe(found), transformers.ViTImageProcessor())[1] == {"train": 3}


# ------------------------------------------------------------------------------------------------------------ masks


def learnt(*masks: np.ndarray, **options: Any) -> tuple[str, ...]:
    """The labels that masks teach."""
    spec = ImageSegmentationSpec(**options)
    pictures = [written(Image.new("RGB", mask.shape[::-1])) for mask in masks]
    block = pa.table({"image": pictures, "mask": [written(Image.fromarray(mask)) for mask in masks]})
    found = ImageSegmentation.merge(spec, [ImageSegmentation.learn(spec, block)])
    wrong = list(ImageSegmentation.check(found, block))
    if wrong:
        raise DataError(wrong[0][1])
    assert isinstance(found, ImageSegmentationSpec)
    assert found.labels is not None
    return found.labels


def square(value: int) -> np.ndarray:
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = value
    return mask


def blended(mask: np.ndarray) -> np.ndarray:
    """Scaled down and up again as a photograph would be."""
    small = Image.fromarray(mask).resize((11, 11), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((16, 16), Image.Resampling.BILINEAR))


def test_grey_levels_are_no_classes() -> None:
    """milesial/Pytorch-UNet#311, ykamikawa/tf-keras-PSPNet#2, albumentations-team/albumentations#1294,
    divamgupta/image-segmentation-keras#11: a mask that was scaled with blending had classes that nobody drew."""
    for mask in (blended(square(254)), blended(square(255)), square(128)):
        with pytest.raises(DataError, match=r"grey levels look so.*task\.labels"):
            learnt(mask)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)  # of many masks all levels together
    with pytest.raises(DataError, match="255 labels; grey levels look so"):
        learnt(every)
    with pytest.raises(DataError, match=r"and the labels .* are 0 to 1"):
        learnt(blended(square(255)), labels=("background", "cell"))
    assert learnt(blended(square(255)), masks="binary", labels=("background", "cell")) == ("background", "cell")
    assert learnt(square(2), square(1)) == ("background", "LABEL_1", "LABEL_2")
    assert learnt(square(2)) == ("background", "LABEL_1", "LABEL_2")  # one that this part of the rows does not show


def test_white_is_not_a_class_and_unknown_is_said() -> None:
    """Beckschen/TransUNet#68, lxtGH/SFSegNets#56: masks of 0 and 255 trained on nothing, or scored NaN."""
    with pytest.raises(DataError, match=r"task\.masks: binary"):
        learnt(square(255))
    assert learnt(square(255), masks="binary", labels=("background", "cell")) == ("background", "cell")


def test_a_label_that_is_nowhere_counts_neither_as_right_nor_as_wrong() -> None:
    """Lightning-AI/torchmetrics#2866, #2558, allenai/rslearn#696, pyg-team/pytorch_geometric#1982: 0, 1 or NaN."""
    truth, labels = square(1), ("background", "a", "b")
    assert measure(count([truth], [truth], 3), labels, "background") == {"dice": 1.0, "iou": 1.0}
    wrong = np.where(truth == 1, 2, 0).astype(np.uint8)  # qubvel/segmentation_models#553: what was said counts
    assert measure(count([wrong], [truth], 3), labels, "background") == {"dice": 0.0, "iou": 0.0}
    half = measure(count([square(1), square(1)], [truth, square(2)], 3), labels, "background")
    assert half == {"dice": pytest.approx((2 / 3 + 0) / 2), "iou": pytest.approx((1 / 2 + 0) / 2)}


def test_where_nobody_knows_a_pixel_nothing_is_right() -> None:
    """lxtGH/SFSegNets#56: all of the truth was 255, and the mean was NaN; here it was 1."""
    nobody = np.full((16, 16), IGNORED, np.uint8)
    assert measure(count([square(1)], [nobody], 2), ("background", "a"), "background") == {"dice": 0.0, "iou": 0.0}
    losses = picture_losses(torch.randn(1, 2, 16, 16), torch.from_numpy(nobody).long()[None], 1.0, 1.0)
    assert losses.tolist() == [0.0]


# --------------------------------------------------------------------------------------------------- recommendation


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> SequentialRecommendation:
    path = tmp_path_factory.mktemp("items") / "base"
    save_untrained(SasRecConfig(items=("0", "01", "1", "tea"), hidden_size=8), path)
    base = load_base(BaseSpec(model=str(path), dtype="float32"))
    return SequentialRecommendation(SequentialRecommendationSpec(), base.processor)


def ranked(task: SequentialRecommendation, items: list[Any], **asked: Any) -> list[Any]:
    features = task.encode([{"items": items}])
    [answer] = task.decode({"logits": torch.zeros(1, len(items), 4)}, features, asked)
    return [one["item"] for one in answer]  # type: ignore[index, union-attr, call-overload]


def test_ids_are_what_is_written(tmp_path: Path, ranking: SequentialRecommendation) -> None:
    """sisinflab/Ducho#2, molgenis/molgenis-service-armadillo#1029: an id lost the zeros before it."""
    lines = [f"{user},{item},{at}" for user in ("007", "7") for at, item in enumerate(("01", "1", "0", "tea"), start=8)]
    (tmp_path / "taken.csv").write_text("\n".join(["user,item,timestamp", *lines]))
    table = read(str(tmp_path / "taken.csv"))
    assert {row["user"] for row in leave_last_out(table)["test"].to_pylist()} == {"007", "7"}
    assert leave_last_out(table)["test"].to_pylist()[0]["items"] == ["01", "1", "0"]
    assert set(ranked(ranking, ["01"])) == {"0", "1", "tea"}
    with pytest.raises(DataError, match="item 1 is not among the 4 items of this base, such as '0'; its ids are texts"):
        ranking.encode([{"items": [1]}])
    (tmp_path / "plain.csv").write_text("user,item,timestamp\n1,0,-5\n1,10,7\n")
    assert read(str(tmp_path / "plain.csv")).to_pylist()[0] == {"user": 1, "item": 0, "timestamp": -5}


def taken(*times: Any, items: list[Any] | None = None, users: list[Any] | None = None) -> pa.Table:
    named = items or [f"item {at}" for at in range(len(times))]
    return pa.table({"user": users or ["ann"] * len(times), "item": named, "timestamp": list(times)})


@pytest.mark.parametrize(
    "times",
    [
        ("8", "9", "10", "11"),
        ("8.5", "9", "1e1", "11"),
        ("2026-01-31", "2026-02-01T08:00", "2026-02-01 08:30", "2026-11-02"),
        ("2026-02-01T12:00:00.1+00:00", "2026-02-01T12:00:00.15Z", "2026-02-01T15:00+02:00", "2026-02-02T00:00+05:00"),
    ],
)
def test_texts_are_ordered_by_the_times_that_they_say(times: tuple[str, ...]) -> None:
    """piperbox/piper#109, awslabs/aws-js-s3-explorer#70: "10" came before "9", so that what is to be foretold was
    learned from."""
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        table = taken(*(times[at] for at in order), items=[f"item {at}" for at in order])
        assert leave_last_out(table)["test"].to_pylist() == [
            {"user": "ann", "items": ["item 0", "item 1", "item 2"], "next": "item 3"}
        ]


@pytest.mark.parametrize(
    ("times", "why"),
    [
        (("9/1/2026", "10/1/2026", "11/1/2026", "12/1/2026"), "holds '9/1/2026', which says no time; write ISO 8601"),
        (("2026-01-31", "2026-01-31Z", "2026-02-01", "2026-02-02"), "says no time|with and without an offset"),
        (("2026-01-31T00:00", "2026-01-31T00:00Z", "2026-02-01", "2026-02-02"), "with and without an offset"),
        (("1", "2", "nan", "4"), "which says no time"),
    ],
)
def test_a_text_that_says_no_time_is_refused(times: tuple[str, ...], why: str) -> None:
    """As above."""
    with pytest.raises(DataError, match=why):
        leave_last_out(taken(*times))


def test_users_of_few_items_and_items_of_one_time(tmp_path: Path) -> None:
    """RUCAIBox/RecBole#1181, #1060: users of one item ended the split, and what was held out was learned from."""
    table = taken(5, 5, 5, 5, 1, users=["ann"] * 4 + ["bob"])
    splits = leave_last_out(table)
    assert {row["user"] for split in splits.values() for row in split.to_pylist()} == {"ann"}
    assert splits["test"].to_pylist()[0]["items"] == ["item 0", "item 1", "item 2"]  # as the table has them
    assert splits["train"].to_pylist() == [{"user": "ann", "items": ["item 0"], "next": "item 1"}]
    with pytest.raises(DataError, match="none of 1 users has 4 items"):
        leave_last_out(taken(1))


def test_an_id_that_is_a_fraction_is_none() -> None:
    """recommenders-team/recommenders#45: ids changed their type; pandas makes floats of those beside gaps."""
    found = leave_last_out(taken(1, 2, 3, 4, items=[10.0, 11.0, 12.0, 13.0], users=[7.0] * 4))["test"].to_pylist()
    assert found == [{"user": 7, "items": [10, 11, 12], "next": 13}]
    for wrong in (1.5, float("nan")):
        with pytest.raises(DataError, match=r"row 2: item .* is no id"):
            leave_last_out(taken(1, 2, 3, 4, items=[10.0, wrong, 12.0, 13.0]))


def test_no_padding_no_seen_item_and_no_unknown_one_is_listed(ranking: SequentialRecommendation) -> None:
    """RUCAIBox/RecBole#277, maciejkula/spotlight#164, RUCAIBox/RecBole#1032: padding in lists, and an index out of
    range."""
    assert set(ranked(ranking, ["0"], top_k=None)) == {"01", "1", "tea"}  # "0" is an id like any other
    assert ranked(ranking, ["0", "01", "1", "tea"]) == []
    assert set(ranked(ranking, ["tea"], top_k=99, exclude_seen=False)) == {"0", "01", "1", "tea"}
    with pytest.raises(DataError, match="item 'coffee' is not among the 4 items"):
        ranking.encode([{"items": ["coffee"]}])


# ----------------------------------------------------------------------------------------------------------- people


def people(path: Path, rows: list[tuple[str, str]], order: str | None = None) -> Any:
    (path / "rows.csv").write_text("\n".join(["who,when", *(f"{who},{when}" for who, when in rows)]))
    return find_people(str(path / "rows.csv"), PersonalSpec(key="who", order=order))


def test_one_person_under_two_names_is_named(tmp_path: Path) -> None:
    """permissionlesstech/bitchat#214, hasgeek/funnel#1544, home-assistant/architecture#301: é in two
    ways."""
    composed, apart = "Jos\u00e9", "Jose\u0301"
    for one, other in ((composed, apart), ("ann", "ann ")):
        found = people(tmp_path, [(one, "1"), (other, "2"), ("bob", "3")])
        with pytest.raises(DataError, match="differ only in blanks around them or in how Unicode writes them"):
            check_apart(found, "rows.csv")
    check_apart(people(tmp_path, [("Ann", "1"), ("ann", "2"), (composed, "3")]), "rows.csv")  # large letters differ


@pytest.mark.parametrize("key", ["a/b", "../../etc", "a@3", "AUX", "ann\\bob", "🙂", "x" * 300, "a\nb", "."])
def test_a_name_of_any_letters_is_one_adapters(key: str) -> None:
    """scragnog/HOT-Step-9000#13, predibase/lorax#51: a name was taken for a path."""
    name = person_name("mails", key)
    assert name == name.lower()
    assert not set(name) & set("/\\@ \n:*?")
    assert len({person_name("mails", other) for other in (key, f"{key} ", key.swapcase() + "_")}) == 3
    assert len(name) <= 100


def test_a_persons_rows_are_in_time_and_ids_keep_their_zeros(tmp_path: Path) -> None:
    """As of interactions: the latest rows choose, and "10" is later than "9"; "007" and "7" are two people."""
    found = people(tmp_path, [("007", "2026-02-01"), ("007", "2026-01-31T09:00"), ("7", "2026-01-01")], "when")
    assert {one.key: one.rows.tolist() for one in found} == {"007": [1, 0], "7": [2]}
    with pytest.raises(DataError, match=r"rows\.csv: column 'when' holds '10/1/2026', which says no time"):
        people(tmp_path, [("ann", "10/1/2026"), ("ann", "9/1/2026")], "when")
