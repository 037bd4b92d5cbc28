"""COCO's json and YOLO's folders as rows: the same features as parquet gives, every fault named before work starts."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_lora.bases.yolox import Letterbox
from ray_lora.data.annotated import opened, pictures
from ray_lora.data.files import find_files
from ray_lora.data.piece_types import read_piece
from ray_lora.data.pieces import Piece, cut, digest
from ray_lora.data.rows import read_rows
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Recipe
from ray_lora.running.large import is_large
from ray_lora.running.sources import inspect
from ray_lora.tasks.object_detection import ObjectDetection, ObjectDetectionSpec
from tests.unit.detection import COLOURS, rows

ROWS = rows(6)
LABELS = tuple(sorted(COLOURS))


def size(row: Any) -> tuple[int, int]:
    return Image.open(io.BytesIO(row["image"])).size


def coco(folder: Path) -> dict[str, Any]:
    """The rows as COCO's tree, whose pictures lie in `folder/images`."""
    (folder / "images").mkdir(parents=True)
    tree: dict[str, Any] = {
        "info": {"year": 2026},
        "images": [],
        "annotations": [],
        "categories": [{"id": 7 * at + 1, "name": name, "supercategory": "colour"} for at, name in enumerate(LABELS)],
    }
    for number, row in enumerate(ROWS):
        width, height = size(row)
        (folder / "images" / f"{number}.png").write_bytes(row["image"])
        tree["images"].append({"id": 100 + number, "file_name": f"{number}.png", "width": width, "height": height})
        for box, word in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
            told = {"id": 1 + len(tree["annotations"]), "image_id": 100 + number, "bbox": box, "area": 3.0}
            tree["annotations"].append(told | {"category_id": 7 * LABELS.index(word) + 1, "iscrowd": 0})
    tree["annotations"].reverse()  # they may stand in any order, whatever their pictures
    return tree


def written(folder: Path, tree: Any) -> str:
    path = folder / "instances_train.json"
    path.write_text(json.dumps(tree, indent=1))
    return str(path)


def yolo(folder: Path) -> Path:
    """The rows as a YOLO's folder: four to train, two to validate."""
    for number, row in enumerate(ROWS):
        split = "train" if number < 4 else "val"
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        width, height = size(row)
        (folder / "images" / split / f"{number}.png").write_bytes(row["image"])
        lines = [
            f"{LABELS.index(word)} {(x + wide / 2) / width} {(y + high / 2) / height} {wide / width} {high / height}"
            for (x, y, wide, high), word in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
        ]
        if lines:  # a picture without a file has no objects
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines) + "\n")
    path = folder / "data.yaml"
    names = "".join(f"  {at}: {name}\n" for at, name in enumerate(LABELS))
    path.write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")
    return path


def features(table: pa.Table) -> list[dict[str, Any]]:
    task = ObjectDetection(ObjectDetectionSpec(labels=LABELS), Letterbox((64, 64)))
    assert list(ObjectDetection.check(task.spec, table)) == []
    return [dict(one) for one in task.encode(table.to_pylist())]


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    """Whether features are equal, objects in any order."""

    def objects(one: dict[str, Any]) -> Any:
        return sorted(zip(one["boxes"], one["classes"], strict=True), key=lambda box: box[0])

    for one, other in zip(found, wanted, strict=True):
        assert (one["pixel_values"] == other["pixel_values"]).all()
        assert one["extent"] == other["extent"]
        assert len(objects(one)) == len(objects(other))
        for (box, word), (known, name) in zip(objects(one), objects(other), strict=True):
            assert word == name
            assert box == pytest.approx(known, abs=1e-3)
    return True


def read(path: str | Path, split: str = "train", **data: Any) -> pa.Table:
    recipe = told(train=str(path), **data)
    return read_rows(str(path), recipe.data, ObjectDetection.columns, split).table


def told(**data: Any) -> Recipe:
    return Recipe.parse({"base": {"model": "any"}, "task": {"type": "object-detection"}, "data": data})


WANTED = features(pa.Table.from_pylist(ROWS))


def test_coco_is_the_rows_that_parquet_has(tmp_path: Path) -> None:
    path = written(tmp_path, coco(tmp_path))
    assert same(features(read(path)), WANTED)
    spec, counts = inspect(told(train=path))
    assert spec.labels == tuple(sorted({word for row in ROWS for word in row["objects"]["category"]}))  # type: ignore[attr-defined]
    assert counts == {"train": 6}


@pytest.mark.parametrize("where", ["beside", "images", "../train", "../images/train", "given", "given to a split"])
def test_pictures_are_found_where_tools_put_them(where: str, tmp_path: Path) -> None:
    home = tmp_path / "annotations"
    path = written(home, coco(home))
    folder = {"beside": home, "images": home / "images", "../train": tmp_path / "train"}.get(where, tmp_path / "x")
    folder = tmp_path / "images/train" if where == "../images/train" else folder
    folder.parent.mkdir(exist_ok=True)
    if where == "beside":
        for picture in (home / "images").iterdir():
            picture.rename(home / picture.name)
    else:
        (home / "images").rename(folder)
    if where.startswith("given"):
        with pytest.raises(DataError, match=r"picture '0.png' is in none of .*name the folder .* data.images"):
            read(path)
    images = {"given": str(folder), "given to a split": {"train": str(folder)}}.get(where)
    assert same(features(read(path, images=images)), WANTED)


def test_yolo_is_the_rows_that_parquet_has(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    assert same(features(read(path)), WANTED[:4])
    assert same(features(read(tmp_path, "validation")), WANTED[4:]), "the folder that holds a data.yaml means it"
    _, counts = inspect(told(train=str(path), validation=str(path)))
    assert counts == {"train": 4, "validation": 2}
    with pytest.raises(DataError, match="has no split 'test'; it has train, val"):
        find_files(str(path), "test")


def test_a_json_of_rows_stays_rows(tmp_path: Path) -> None:
    lines = tmp_path / "rows.json"
    lines.write_text('{"images": 1, "label": "a"}\n{"images": 2, "label": "b"}\n')
    assert find_files(str(lines))[0].format == "jsonl"
    lines.write_text('{"images": [], "annotations": []}\n')
    assert find_files(str(lines))[0].format == "jsonl", "without categories it is no COCO's"


def test_pieces_are_cut_by_pictures_and_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = find_files(written(tmp_path, coco(tmp_path)))
    assert file.size > sum(len(row["image"]) for row in ROWS)
    whole = read_piece(Piece(file, 0), {})
    assert [(piece.first, piece.rows) for piece in cut([file], 4)] == [(0, 4), (4, 2)]
    monkeypatch.setattr(pictures, "_BYTES", len(ROWS[0]["image"]) + 1)
    pieces = cut([file])
    assert len(pieces) >= 4
    assert sum(piece.rows or 0 for piece in pieces) == 6
    assert pa.concat_tables([read_piece(piece, {}) for piece in pieces]).equals(whole)


def test_many_pictures_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_lora.running import large

    files = {"train": find_files(written(tmp_path, coco(tmp_path)))}
    assert not is_large(files)
    monkeypatch.setattr(large, "LARGE_ROWS", 6)
    assert is_large(files), "rows are pictures, however long the json file is"
    monkeypatch.setattr(large, "LARGE_ROWS", 7)
    assert not is_large(files)
    monkeypatch.setattr(large, "LARGE_BYTES", files["train"][0].size)
    assert is_large(files), "bytes are the pictures' too"


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_a_digest_covers_pictures_and_annotations(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, coco(tmp_path)) if kind == "coco" else str(yolo(tmp_path))
    first = find_files(path)
    assert digest(first) == digest(find_files(path))
    picture = next((tmp_path / "images").rglob("1.png"))
    content = picture.read_bytes()
    Image.new("RGB", Image.open(io.BytesIO(content)).size, "green").save(picture)
    with pytest.raises(DataError, match="has changed since it was found"):
        digest(first)
    with pytest.raises(DataError, match="has changed since it was found"):
        read_piece(Piece(first[0], 0), {})
    second = find_files(path)
    assert digest(second) != digest_of(path, picture, content)
    said = tmp_path / "instances_train.json" if kind == "coco" else next(tmp_path.rglob("1.txt"))
    before = digest(find_files(path))
    said.write_text(said.read_text() + "\n")
    opened._RECENT.clear()  # as a worker, which has seen nothing yet
    with pytest.raises(DataError, match="has changed since it was found"):
        read_piece(Piece(second[0], 0), {})
    assert digest(find_files(path)) != before


def digest_of(path: str, picture: Path, content: bytes) -> str:
    changed = picture.read_bytes()
    picture.write_bytes(content)
    found = digest(find_files(path))
    picture.write_bytes(changed)
    return found


def turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = folder / "images/0.png"
    Image.open(picture).save(picture, exif=exif)


Change = Callable[[dict[str, Any], Path], Any]
COCO_FAULTS: dict[str, tuple[Change, str]] = {
    "no list": (lambda t, _: t.update(images={}), "'images' is no list of objects"),
    "no images": (lambda t, _: t["images"].clear(), "has no images"),
    "image id": (lambda t, _: t["images"][1].update(id=100), "image 100: two images have this id"),
    "file twice": (lambda t, _: t["images"][1].update(file_name="0.png"), "image 101: picture '0.png' is there twice"),
    "leads out": (lambda t, _: t["images"][1].update(file_name="../0.png"), "is no path below the folder"),
    "no name": (lambda t, _: t["images"][1].pop("file_name"), "image 101: its file_name None is no path"),
    "missing": (lambda _, f: (f / "images/3.png").unlink(), "image 103: picture '.*3.png' does not exist"),
    "size": (lambda t, _: t["images"][0].update(width=9), r"picture '0.png': its annotations are of 9 x \d+ pixels"),
    "no size": (lambda t, _: t["images"][0].update(width=-9), "image 100: its width and height are"),
    "turned": (lambda _, f: turned(f), "since its EXIF orientation turns it"),
    "category twice": (lambda t, _: t["categories"][1].update(id=1), "category 1: two categories have this id"),
    "name twice": (lambda t, _: t["categories"][1].update(name="blue"), "two categories are named 'blue'"),
    "annotation twice": (lambda t, _: t["annotations"][0].update(id=1), "two annotations have this id"),
    "of no image": (lambda t, _: t["annotations"][-1].update(image_id=7), "its image_id 7 is the id of no image"),
    "of no category": (lambda t, _: t["annotations"][-1].update(category_id=2), "its category_id 2 is the id of no"),
    "inverted": (lambda t, _: t["annotations"][-1].update(bbox=[9, 9, -3, 4]), "annotation 1: .* has no area"),
    "empty": (lambda t, _: t["annotations"][-1].update(bbox=[9, 9, 3, 0]), "has no area"),
    "no box": (lambda t, _: t["annotations"][-1].update(bbox=[9, 9, 3]), "four finite numbers"),
    "crowd": (lambda t, _: t["annotations"][-1].update(iscrowd=3), "its iscrowd is 3; give 0 or 1"),
    "outside": (lambda t, _: t["annotations"][-1].update(bbox=[1, 1, 900, 4]), "row 1: picture '0.png': box .* leads"),
    "broken": (lambda _, f: (f / "images/2.png").write_bytes(b"GIF"), "row 3: picture '2.png': an image .*cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_a_wrong_coco_is_named(fault: str, tmp_path: Path) -> None:
    change, why = COCO_FAULTS[fault]
    tree = coco(tmp_path)
    change(tree, tmp_path)
    with pytest.raises(DataError, match=why) as error:
        inspect(told(train=written(tmp_path, tree)))
    assert "instances_train.json" in str(error.value)


def test_all_faults_are_counted(tmp_path: Path) -> None:
    tree = coco(tmp_path)
    for number in range(30):
        tree["annotations"].append({"id": 1000 + number, "image_id": 5, "category_id": 1, "bbox": [1, 1, 2, 2]})
    with pytest.raises(DataError, match="and 20 more faults in") as error:
        find_files(written(tmp_path, tree))
    assert str(error.value).count("annotation 10") == pictures.MOST_NAMED


def test_a_crowd_is_learnt_by_nobody_and_counts_against_nobody(tmp_path: Path) -> None:
    tree = coco(tmp_path)
    tree["annotations"][-1]["iscrowd"] = 1  # of picture 0, its only one
    (first, *rest) = features(read(written(tmp_path, tree)))
    assert first["boxes"] == first["classes"] == []
    assert first["crowd_boxes"] == WANTED[0]["boxes"]
    task = ObjectDetection(ObjectDetectionSpec(labels=LABELS), Letterbox((64, 64)))

    def answers(all_features: list[dict[str, Any]], score: float) -> list[Any]:
        return [
            [
                {"score": score, "label": LABELS[index], "box": dict(zip(("xmin", "ymin", "xmax", "ymax"),
                 (x, y, x + wide, y + high), strict=True))}
                for kind in ("", "crowd_")
                for (x, y, wide, high), index in zip(one[f"{kind}boxes"], one[f"{kind}classes"], strict=True)
            ]
            for one in all_features
        ]  # fmt: skip

    assert task.score(answers([first, *rest], 0.9), [first, *rest])["map"] == pytest.approx(1)
    plain = first | {"crowd_boxes": [], "crowd_classes": []}
    assert task.score(answers([first, *rest], 0.9), [plain, *rest])["map"] < 1, "without the crowd the answer is wrong"


YOLO_FAULTS: dict[str, tuple[str, str]] = {
    "": ("0 0.5 0.5 0.2", "line 2: it has 4 values; a line is a class's number"),
    "outline": ("0 0.1 0.1 0.2 0.1 0.2 0.2", "outlines and keypoints are not read"),
    "class": ("9 0.5 0.5 0.2 0.2", "class '9' is the number of no name; there are 0 to 2"),
    "fraction": ("0.0 0.5 0.5 0.2 0.2", "class '0.0' is the number of no name"),
    "pixels": ("0 40 40 20 20", "the box leads out of its picture"),
    "empty": ("0 0.5 0.5 0.2 0", "has no area"),
    "inverted": ("0 0.5 0.5 -0.2 0.1", "has no area"),
    "nan": ("0 0.5 0.5 0.2 nan", "no five finite numbers"),
    "word": ("0 0.5 0.5 0.2 wide", "is no five numbers"),
    "twice": ("first", "it is line 1 once more"),
}


@pytest.mark.parametrize("fault", YOLO_FAULTS)
def test_a_wrong_line_is_named(fault: str, tmp_path: Path) -> None:
    path, (line, why) = yolo(tmp_path), YOLO_FAULTS[fault]
    labels = tmp_path / "labels/train/0.txt"
    first = labels.read_text().splitlines()[0]
    labels.write_text(f"{first}\n{first if line == 'first' else line}\n")
    with pytest.raises(DataError, match=rf"0\.txt, line 2: .*{why}" if fault else why):
        inspect(told(train=str(path)))


def test_a_wrong_yolo_folder_is_named(tmp_path: Path) -> None:
    path = yolo(tmp_path)
    text = path.read_text()

    def wrong(changed: str, why: str) -> None:
        path.write_text(changed)
        with pytest.raises(DataError, match=why):
            find_files(str(path))
        path.write_text(text)

    wrong("- 1", "is no YOLO's data.yaml")
    wrong("{", "is broken")
    wrong(text.replace("2: white", "2: red"), "give each class its own name")
    wrong(text.replace("2: white", "5: white"), "give each class its own name")
    wrong(text + "nc: 9\n", "nc is 9 and there are 3 names")
    wrong(text.replace("images/train", "images/away"), "does not exist; path is relative to this file's folder")
    wrong(text.replace("images/train", "labels/train"), "no folder on this path is named 'images'")
    wrong(text.replace("images/train", "list.txt"), "a list of pictures, which is not read")
    orphan = tmp_path / "labels/train/nobody.txt"
    orphan.write_text("")
    wrong(text, "no picture of this name")
    orphan.unlink()
    picture = tmp_path / "images/train/0.png"
    picture.with_suffix(".jpg").write_bytes(picture.read_bytes())
    wrong(text, "has the same txt file; rename one of them")


def test_what_holds_no_annotations_has_no_folder_of_pictures(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"'.*rows.parquet' is none"):
        read(tmp_path / "rows.parquet", images=str(tmp_path))
    with pytest.raises(RecipeError):
        told(train="a.json", images={"tests": "x"})


def uploaded(folder: Path, bucket: str, name: str) -> str:
    """A folder's files in the bucket; its address, to be put around the rest of a path."""
    filesystem, _ = pa.fs.FileSystem.from_uri(f"s3://key:secret@rows/{bucket}")
    pa.fs.copy_files(str(folder), f"rows/{name}", destination_filesystem=filesystem)
    return f"s3://key:secret@rows/{name}/%s{bucket}"


def test_annotations_in_a_bucket_are_the_rows_that_parquet_has(bucket: str, tmp_path: Path) -> None:
    for kind, write in (("coco", lambda folder: written(folder, coco(folder))), ("yolo", yolo)):
        write(tmp_path / kind)
    where = uploaded(tmp_path, bucket, "annotated")
    json_file, images = where % "coco/instances_train.json", where % "coco/images"
    assert same(features(read(json_file)), WANTED)
    assert same(features(read(json_file, images=images)), WANTED)
    assert same(features(read((tmp_path / "coco/instances_train.json").as_uri())), WANTED), "file:// is a disk's"
    assert same(features(read(where % "yolo/data.yaml")), WANTED[:4])
    assert same(features(read(where % "yolo", "validation")), WANTED[4:])
    (found,) = find_files(json_file)
    assert found.path == "s3://key:***@rows/annotated/coco/instances_train.json"
    local = find_files(str(tmp_path / "coco/instances_train.json"))
    assert digest([found]) == digest(local)
    assert digest(find_files(where % "yolo")) == digest(find_files(str(tmp_path / "yolo")))
    assert pa.concat_tables([read_piece(piece, {}) for piece in cut([found], 4)]).equals(read(local[0].path))


def test_what_is_wrong_in_a_bucket_is_named_without_keys(bucket: str, tmp_path: Path) -> None:
    tree = coco(tmp_path / "coco")
    tree["images"][1]["file_name"] = "./1.png"
    written(tmp_path / "coco", tree)
    path = yolo(tmp_path / "yolo")
    text = path.read_text()
    for name, changed in {
        "up": text.replace("path: .", "path: ../yolo/images").replace("images/", ""),
        "root": text.replace("images/train", "/images/train"),
        "away": text.replace("images/train", "images/away"),
        "address": text.replace("images/train", "s3://rows/images/train"),
    }.items():
        (tmp_path / "yolo" / f"{name}.yaml").write_text(changed)
    (tmp_path / "coco/images/3.png").rename(tmp_path / "coco/3.png")
    where = uploaded(tmp_path, bucket, "wrong")
    with pytest.raises(
        DataError, match=r"image 103: picture 's3://key:\*\*\*@rows/wrong/coco/images/3.png' does not"
    ) as error:
        find_files(where % "coco/instances_train.json")
    assert "and" not in str(error.value), "1.png is where its name says"
    assert same(features(read(where % "yolo/up.yaml")), WANTED[:4])
    for name, why in {
        "root": "'/images/train' begins at a disk's root, and 's3://.*' is in a bucket",
        "away": "the folder 's3://.*/yolo/images/away' of train does not exist",
        "address": "does not exist",
    }.items():
        with pytest.raises(DataError, match=why) as error:
            find_files(where % f"yolo/{name}.yaml")
        assert "secret" not in str(error.value)
    (tmp_path / "coco/3.png").rename(tmp_path / "coco/images/3.png")
    (tmp_path / "coco/images").rename(tmp_path / "coco/elsewhere")
    where = uploaded(tmp_path / "coco", bucket, "lost")
    with pytest.raises(DataError, match=r"picture '0.png' is in none of 's3://.*name the folder .* data.images"):
        read(where % "instances_train.json")
    (found,) = find_files(where % "instances_train.json", images=where % "elsewhere")
    filesystem, _ = pa.fs.FileSystem.from_uri(f"s3://key:secret@rows/{bucket}")
    with filesystem.open_output_stream("rows/lost/elsewhere/0.png") as picture:
        picture.write(b"another one")
    with pytest.raises(DataError, match=r"picture 's3://.*/elsewhere/0\.png' has changed since it was found"):
        read_piece(Piece(found, 0), {})


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 120), st.floats(), st.text(max_size=3), st.just([]), st.just({}),
    st.lists(st.floats(-5, 90), max_size=5),
)  # fmt: skip


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("coco")
    return folder, coco(folder)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.sampled_from(["images", "annotations", "categories"]), draw=st.data())
def test_whatever_is_written_is_rows_or_an_error_of_ours(
    kept: tuple[Path, dict[str, Any]], part: str, draw: st.DataObject
) -> None:
    folder, tree = kept[0], copy.deepcopy(kept[1])
    entry = tree[part][draw.draw(st.integers(0, len(tree[part]) - 1))]
    entry[draw.draw(st.sampled_from(sorted(entry)))] = draw.draw(VALUES)
    try:
        _, counts = inspect(told(train=written(folder, tree)))
    except DataError as error:
        said = str(error)
    else:
        said = f"instances_train.json: {counts['train']} rows"
    assert "instances_train.json" in said
