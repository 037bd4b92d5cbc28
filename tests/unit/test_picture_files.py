"""Pictures as files: a folder a class, paths in csv and parquet, Hugging Face's image parquet; wrong ones by name."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from ray_lora.data import named_files, pictures, piece_rows
from ray_lora.data.files import check_unchanged, find_files
from ray_lora.data.named_files import Parted, parted
from ray_lora.data.piece_types import look_at_files, read_piece, settle
from ray_lora.data.pieces import cut, digest
from ray_lora.data.read import roles
from ray_lora.errors import DataError
from ray_lora.recipe import DataSpec, Recipe
from ray_lora.running import large
from ray_lora.running.large import is_large
from ray_lora.running.sources import inspect, read_tables
from ray_lora.tasks.image_classification import ImageClassification
from tests.unit.cases import picture, png

ROLES = roles(DataSpec(), ImageClassification.columns)


def recipe(train: str | list[str], **data: Any) -> Recipe:
    return Recipe.parse({"task": {"type": "image-classification"}, "data": {"train": train, **data}})


def put(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(picture(seed)))
    return path


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    for number in range(3):
        put(tmp_path / "animals" / "cat" / f"{number}.png", number)
    put(tmp_path / "animals" / "large" / "big" / "a.PNG", 7)  # the label is the picture's own folder
    put(tmp_path / "animals" / "dog" / "b.jpeg", 8)
    (tmp_path / "animals" / "Thumbs.db").write_text("x")
    return tmp_path / "animals"


def rows_of(given: Recipe) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_tables(given, None)["train"].table.to_pylist()
    return found


def test_a_folder_a_class(animals: Path) -> None:
    rows = rows_of(recipe(str(animals)))
    assert [(row["label"], row["image"]["path"]) for row in rows] == [
        ("cat", "0.png"),
        ("cat", "1.png"),
        ("cat", "2.png"),
        ("dog", "b.jpeg"),
        ("big", "a.PNG"),
    ]
    assert rows[1]["image"]["bytes"] == png(picture(1))
    task, counts = inspect(recipe(str(animals)))
    assert (task.labels, counts) == (("big", "cat", "dog"), {"train": 5})  # type: ignore[attr-defined]


def test_folders_tell_splits_apart_and_a_class_may_be_called_as_one(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for label in ("train", "bus"):
            put(tmp_path / "of" / split / label / f"{split}.png")
    for split, told in (("train", "train"), ("validation", "val"), ("test", "test")):
        files = find_files(str(tmp_path / "of"), split)
        assert [(file.members, dict(file.partitions)["label"]) for file in files] == [
            ((f"{told}.png",), "bus"),
            ((f"{told}.png",), "train"),
        ]
    for label in ("train", "bus"):
        put(tmp_path / "plain" / label / "a.png")
    assert len(find_files(str(tmp_path / "plain"))) == 2


def test_numbers_as_folders_are_labels_by_value(tmp_path: Path) -> None:
    for label in ("2", "10", "1"):
        put(tmp_path / label / "a.png")
    task, _ = inspect(recipe(str(tmp_path)))
    assert task.labels == ("1", "2", "10")  # type: ignore[attr-defined]


def test_a_wrong_picture_is_refused_by_its_name(animals: Path) -> None:
    (animals / "cat" / "1.png").write_bytes(b"no picture")
    (animals / "dog" / "empty.png").write_bytes(b"")
    with pytest.raises(DataError) as error:
        inspect(recipe(str(animals)))
    assert f"{animals}/cat, row 2: an image ('1.png') cannot be read (it is no picture" in str(error.value)
    assert "dog, row 2: an image ('empty.png') cannot be read (it is empty, 0 bytes)" in str(error.value)


def test_what_is_no_picture_among_them_is_refused(animals: Path) -> None:
    (animals / "cat" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds pictures and '.*cat/notes\.txt', which is none; take it out"):
        find_files(str(animals))


def test_pieces_and_digests_of_many_pictures(animals: Path) -> None:
    files = find_files(str(animals))
    pieces = settle(cut(files, most_rows=2), ROLES)
    assert [(piece.number, piece.first, piece.rows) for piece in pieces] == [(0, 0, 2), (0, 2, 1), (1, 0, 1), (2, 0, 1)]
    tables = [read_piece(piece, ROLES) for piece in pieces]
    assert [table.column("image").to_pylist()[0]["path"] for table in tables] == ["0.png", "2.png", "b.jpeg", "a.PNG"]
    assert [table.column("label").to_pylist()[0] for table in tables] == ["cat", "cat", "dog", "big"]
    assert not is_large({"train": files})
    before = digest(files)
    assert digest(find_files(str(animals))) == before
    put(animals / "cat" / "1.png", 9)
    assert digest(find_files(str(animals))) != before
    with pytest.raises(DataError, match="has changed since it was found"):
        check_unchanged(files[0])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_metadata_file_names_a_folders_pictures(tmp_path: Path, kind: str) -> None:
    """As `datasets` has it: its column file_name."""
    put(tmp_path / "deep" / "a.png", 1)
    put(tmp_path / "b.png", 2)
    rows = [{"file_name": "deep/a.png", "label": "x"}, {"file_name": "b.png", "label": "y"}]
    path = tmp_path / f"metadata.{kind}"
    if kind == "csv":
        path.write_text("file_name,label\n" + "".join(f"{row['file_name']},{row['label']}\n" for row in rows))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = rows_of(recipe(str(tmp_path)))
    assert [(row["image"]["bytes"], row["label"]) for row in found] == [(png(picture(1)), "x"), (png(picture(2)), "y")]


@pytest.mark.parametrize("kind", ["csv", "parquet", "struct"])
def test_paths_begin_at_the_file_that_names_them(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(put(tmp_path / "pictures" / "a.png", 1).parent)
    whole = put(tmp_path / "b.png", 2)
    (tmp_path / "rows").mkdir()
    paths = ["../pictures/a.png", str(whole)]
    path = tmp_path / "rows" / ("rows.csv" if kind == "csv" else "rows.parquet")
    if kind == "csv":
        path.write_text("image,label\n" + "".join(f"{name},{at}\n" for at, name in enumerate(paths)))
    else:
        held = paths if kind == "parquet" else [{"bytes": None, "path": name} for name in paths]
        pq.write_table(pa.table({"image": held, "label": ["0", "1"]}), path)
    for given in (str(path), "../rows"):
        found = rows_of(recipe(given))
        assert [row["image"] for row in found] == [
            {"bytes": png(picture(seed)), "path": name} for seed, name in zip((1, 2), paths, strict=True)
        ]


def test_what_a_run_records_covers_pictures_that_rows_name(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 1)
    (tmp_path / "rows.csv").write_text("image,label\na.png,x\na.png,y\n")
    assert read_tables(recipe(str(tmp_path / "rows.csv")), None)["train"].elsewhere
    pq.write_table(pa.table({"image": [png(picture(1))] * 2, "label": ["x", "y"]}), tmp_path / "rows.parquet")
    assert not read_tables(recipe(str(tmp_path / "rows.parquet")), None)["train"].elsewhere


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("gone.png", "row 2: column 'image': picture '.*gone.png' cannot be read"),
        ("https://example.org/a.png", "is an address, and nothing is fetched"),
        ("file:///etc/hostname.png", "is an address, and nothing is fetched"),
        ("ab?", r"'ab\?' is neither a path, which ends as a picture's does \(.png\), nor base64 text"),
    ],
)
def test_a_path_that_gives_no_picture_is_refused_by_row(tmp_path: Path, value: str, said: str) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "rows.csv").write_text(f"image,label\na.png,x\n{value},y\n")
    with pytest.raises(DataError, match=said):
        inspect(recipe(str(tmp_path / "rows.csv")))


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A csv of seven rows that name five pictures, the last of them by a label that is no number."""
    for number in range(5):
        put(tmp_path / "pictures" / f"{number}.png", number)
    names = ["pictures/0.png", *(f"pictures/{number}.png" for number in range(5)), str(tmp_path / "pictures/4.png")]
    labels = ["7", "7", "8", "7", "8", "7", "none"]
    path = tmp_path / "rows.csv"
    path.write_text("image,label\n" + "".join(f"{n},{w}\n" for n, w in zip(names, labels, strict=True)))
    return path


def in_pieces(path: Path | str) -> tuple[Parted, list[pa.Table]]:
    found = parted(cut(find_files(str(path))), ROLES)
    pieces = settle(found.pieces, ROLES, found.looked(lambda others: look_at_files(others, ROLES)))
    return found, [read_piece(piece, ROLES) for piece in pieces]


def test_rows_that_name_pictures_are_read_in_pieces(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows_of(recipe(str(listed)))
    found, [table] = in_pieces(listed)
    assert table.to_pylist() == whole
    assert (found.rows, found.bytes) == (7, sum(len(row["image"]["bytes"]) for row in whole))
    monkeypatch.setattr(named_files, "_ROWS", 3)
    found, tables = in_pieces(listed)
    assert [(piece.first, piece.rows) for piece in found.pieces] == [(0, 3), (3, 3), (6, 1)]
    assert [row for table in tables for row in table.to_pylist()] == whole, "labels are texts in all pieces, or in none"
    monkeypatch.setattr(named_files, "_BYTES", len(whole[0]["image"]["bytes"]))
    assert len(in_pieces(listed)[0].pieces) >= 6
    rows = [{"image": row["image"]["path"], "label": row["label"]} for row in whole]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, listed.with_suffix(".parquet"), row_group_size=2)
    listed.with_suffix(".jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for end in (".parquet", ".jsonl"):
        found, tables = in_pieces(listed.with_suffix(end))
        assert len(found.pieces) >= 6
        assert [row for table in tables for row in table.to_pylist()] == whole


def test_a_piece_reads_its_own_pictures_and_its_file_once(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(named_files, "_ROWS", 3)
    files = find_files(str(listed))
    found = parted(cut(files), ROLES)
    looks = found.looked(lambda others: look_at_files(others, ROLES))
    bytes_of, format_of = pictures._bytes, piece_rows.read_format
    monkeypatch.setattr(pictures, "_bytes", lambda place, word: read.append(place.name) or bytes_of(place, word))
    monkeypatch.setattr(piece_rows, "read_format", lambda *given: read.append("file") or format_of(*given))
    piece_rows._WHOLE.clear()
    *_, last = settle(found.pieces, ROLES, looks)
    read_piece(last, ROLES)
    assert read == ["file", str(listed.parent / "pictures/4.png")]
    read_piece(found.pieces[0], ROLES)
    assert read[2:] == [str(listed.parent / f"pictures/{number}.png") for number in (0, 0, 1)]


def test_a_picture_that_was_written_anew_is_seen(listed: Path) -> None:
    first = parted(cut(find_files(str(listed))), ROLES).stamps
    assert parted(cut(find_files(str(listed))), ROLES).stamps == first
    put(listed.parent / "pictures/4.png", 9)
    changed = parted(cut(find_files(str(listed))), ROLES).stamps
    assert changed != first
    (listed.parent / "pictures/4.png").unlink()
    assert parted(cut(find_files(str(listed))), ROLES).stamps not in (first, changed)


def test_a_row_of_a_later_piece_is_named_by_its_number(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_files, "_ROWS", 2)
    monkeypatch.setattr(large, "LARGE_ROWS", 7)
    listed.write_text(listed.read_text().replace("pictures/2.png", "pictures/gone.png"))
    with pytest.raises(DataError, match=r"rows\.csv, row 4: column 'image': picture '.*gone\.png' cannot be read"):
        inspect(recipe(str(listed)))


def test_many_rows_that_name_pictures_are_large(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"train": find_files(str(listed))}
    assert not is_large(files, ROLES)
    monkeypatch.setattr(large, "LARGE_ROWS", 7)
    assert is_large(files, ROLES), "rows are counted, however short their lines are"
    monkeypatch.setattr(large, "LARGE_ROWS", 8)
    assert not is_large(files, ROLES)
    monkeypatch.setattr(large, "LARGE_BYTES", parted(cut(files["train"]), ROLES).bytes)
    assert is_large(files, ROLES), "bytes are the pictures' too"
    task, counts = inspect(recipe(str(listed)))  # what a plan says of them
    assert (task.labels, counts) == (("7", "8", "none"), {"train": 7})  # type: ignore[attr-defined]


def test_rows_in_a_bucket_that_name_pictures(listed: Path, bucket: str) -> None:
    filesystem, _ = pa.fs.FileSystem.from_uri(f"s3://key:secret@rows/{bucket}")
    pa.fs.copy_files(str(listed.parent), "rows/named", destination_filesystem=filesystem)
    address = f"s3://key:secret@rows/named/rows.csv{bucket}"
    found, tables = in_pieces(address)
    assert [row for table in tables for row in table.to_pylist()] == rows_of(recipe(str(listed)))
    with filesystem.open_output_stream("rows/named/pictures/3.png") as written:
        written.write(b"another")
    changed = parted(cut(find_files(address)), ROLES).stamps
    assert changed != found.stamps
    put(listed.parent / "pictures/4.png", 9)  # which the last row names by its path on this disk
    assert parted(cut(find_files(address)), ROLES).stamps not in (found.stamps, changed)


def test_base64_text_is_a_picture_as_before(tmp_path: Path) -> None:
    text = base64.b64encode(png(picture(3))).decode()
    (tmp_path / "rows.csv").write_text(f"image,label\n{text},x\n{text},y\n")
    assert rows_of(recipe(str(tmp_path / "rows.csv")))[0]["image"] == {"bytes": png(picture(3)), "path": None}


def hub_parquet(path: Path, labels: list[int], names: list[str]) -> Path:
    """As the Hub's converter writes an image set: bytes, and the names of labels in the schema."""
    told = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    rows = [{"bytes": png(picture(at)), "path": f"{at}.png"} for at in range(len(labels))]
    table = pa.table({"image": rows, "label": pa.array(labels, pa.int64())})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": told}})}), path, row_group_size=1
    )
    return path


def test_hugging_face_image_parquet_has_its_labels_names(tmp_path: Path) -> None:
    path = hub_parquet(tmp_path / "train-00000-of-00001.parquet", [1, 0, 1], ["zebra", "ant"])
    task, _ = inspect(recipe(str(path)))
    assert task.labels == ("ant", "zebra")  # type: ignore[attr-defined]
    assert [row["label"] for row in rows_of(recipe(str(path)))] == ["ant", "zebra", "ant"]
    pieces = settle(cut(find_files(str(path)), most_rows=1), ROLES)
    assert [read_piece(piece, ROLES).column("label").to_pylist() for piece in pieces] == [["ant"], ["zebra"], ["ant"]]


def test_labels_without_a_name_are_wrong(tmp_path: Path) -> None:
    path = hub_parquet(tmp_path / "a.parquet", [0, 1, 5], ["zebra", "ant"])
    with pytest.raises(DataError, match="row 3: label 5 is no index of the 2 names"):
        inspect(recipe(str(path)))
    path = hub_parquet(tmp_path / "a.parquet", [0, 1, -1], ["zebra", "ant"])
    with pytest.raises(DataError, match="row 3: column 'label' is empty"):
        inspect(recipe(str(path)))
