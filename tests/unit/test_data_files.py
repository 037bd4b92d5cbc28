"""Which files paths mean, and that their rows are the same in whatever files they lie."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_lora.data.files import find_files
from ray_lora.data.piece_types import look, read_files, read_piece, settle
from ray_lora.data.pieces import cut, digest
from ray_lora.data.read import canonical
from ray_lora.data.rows import read_rows
from ray_lora.errors import DataError
from ray_lora.recipe import DataSpec, Recipe
from ray_lora.running.sources import inspect
from ray_lora.tasks import Column
from ray_lora.tasks.text_classification import TextClassification

ROLES = {"text": Column(("text",)), "label": Column(("label",), "training")}
EXAMPLE = "examples/tweets.yaml"
ROWS = {"text": ["a", "b"], "label": ["no", "yes"]}


def write(path: Path, columns: Any = ROWS, rows: int = 1_000_000) -> Path:
    """A file in the format that its name says; `x.stream.arrow` is Arrow's stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    elif path.suffix == ".arrow":
        open_ = pa.ipc.new_stream if ".stream." in path.name else pa.ipc.new_file
        with open_(path, table.schema) as sink:
            sink.write_table(table, rows)
    elif path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return path


def read_all(paths: str | list[str], roles: dict[str, Column] = ROLES, most_rows: int = 32_768) -> dict[str, list[Any]]:
    """The columns of all pieces, one after the other."""
    tables = [read_piece(piece, roles) for piece in settle(cut(find_files(paths), most_rows), roles)]
    return pa.concat_tables(tables).to_pydict()


# -------------------------------------------------------------------- the same rows in other files


@st.composite
def split_tables(draw: st.DrawFn) -> tuple[dict[str, list[Any]], list[tuple[str, pa.Table, int]]]:
    """(columns, (name, table, rows of a row group) of each file)."""
    ends = draw(st.lists(st.sampled_from(["parquet", "csv", "jsonl", "arrow", "stream.arrow"]), min_size=1, max_size=7))
    counts = draw(st.lists(st.integers(1, 6), min_size=len(ends), max_size=len(ends)))
    words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=5)
    numbers = draw(st.booleans())
    label = st.integers(0, 300) if numbers else st.sampled_from(["1", "2", "x", "007"])
    values = {"text": words, "label": st.none() | label}
    if "csv" not in ends:
        values["spans"] = st.lists(st.integers(0, 9), max_size=2)
    texts = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
    labels = [pa.int16(), pa.int32(), pa.int64(), pa.uint16(), pa.uint64()] if numbers else texts
    columns: dict[str, list[Any]] = {name: [] for name in values}
    files, typed = [], numbers
    for number, (end, count) in enumerate(zip(ends, counts, strict=True)):
        cells = {name: draw(st.lists(one, min_size=count, max_size=count)) for name, one in values.items()}
        types = {"text": draw(st.sampled_from(texts)), "label": draw(st.sampled_from(labels))}
        arrays = {name: pa.array(cells[name], types.get(name, pa.list_(pa.int64()))) for name in cells}
        if end == "csv":  # which knows no dictionaries
            arrays = {name: array.cast(pa.string()) for name, array in arrays.items()}
        files.append((f"{number}.{end}", pa.table(arrays), draw(st.integers(1, 6))))
        columns = {name: columns[name] + cells[name] for name in cells}
        typed |= end not in ("csv", "jsonl") or (end == "jsonl" and any(cells["label"]))
    if not typed and not {"x", "007"} & set(columns["label"]):
        columns["label"] = [None if one is None else int(one) for one in columns["label"]]
    return columns, files


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(split_tables(), st.integers(1, 10), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5))
def test_rows_are_the_same_in_whatever_files_they_lie(
    tmp_path_factory: pytest.TempPathFactory,
    tables: tuple[dict[str, list[Any]], list[tuple[str, pa.Table, int]]],
    most_rows: int,
    customer: str,
) -> None:
    columns, files = tables
    folder = tmp_path_factory.mktemp("rows") / f"customer={quote(customer, safe='')}"
    paths = [str(write(folder / name, table, rows)) for name, table, rows in files]
    roles = ROLES | {"spans": Column(("spans",))}
    pieces = settle(cut(find_files(paths), most_rows), roles)
    read = [pickle.loads(pickle.dumps(piece)) for piece in pieces]  # as they reach another process
    found = pa.concat_tables([read_piece(piece, roles) for piece in read])
    assert found.to_pydict() == columns | {"customer": [customer] * len(columns["text"])}
    for number, (name, table, _) in enumerate(files):
        mine = [piece for piece in pieces if piece.number == number]
        assert [piece.first for piece in mine] == list(accumulate([0] + [piece.rows or 0 for piece in mine[:-1]]))
        assert sum(piece.rows or table.num_rows for piece in mine) == table.num_rows
        assert all(piece.file.path.endswith(name) for piece in mine)
    one = read_rows(paths, DataSpec(), ROLES)
    assert one.table.to_pydict() == {name: columns[name] for name in ROLES}
    assert pa.concat_tables(read_files(find_files(paths), roles)).to_pydict() == found.to_pydict()
    for name in (*columns, "customer"):
        part = pa.concat_tables([read_piece(piece, roles, [name]) for piece in pieces])
        assert part.to_pydict() == {name: found.to_pydict()[name]}


def test_pieces_are_row_groups_of_about_so_many_rows(tmp_path: Path) -> None:
    rows = {"text": [str(number) for number in range(10)], "label": ["x"] * 10}
    path = str(write(tmp_path / "a.parquet", rows, rows=3))
    for most, groups in ((2, [(0, 1), (1, 2), (2, 3), (3, 4)]), (6, [(0, 2), (2, 4)]), (99, [(0, 4)])):
        assert [piece.groups for piece in cut(find_files(path), most)] == groups
    whole = str(write(tmp_path / "b.parquet", rows))
    assert [(piece.groups, piece.rows) for piece in cut(find_files(whole), 5)] == [((0, 1), 10)]
    assert [(piece.skipped, piece.rows) for piece in cut(find_files(whole), 4)] == [(0, 4), (4, 4), (8, 2)]
    assert [piece.first for piece in cut(find_files([path, whole]), 6)] == [0, 6, 0]


def test_only_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xe9\xe9"))
    (tmp_path / "c=1").mkdir()
    path = write(tmp_path / "c=1" / "a.arrow", {"text": ["a", "b"], "bad": broken})
    piece = cut(find_files(str(path)))[0]
    assert read_piece(piece, ROLES, ["text", "nowhere"]).to_pydict() == {"text": ["a", "b"]}
    assert read_piece(piece, ROLES, ["c"]).to_pydict() == {"c": ["1", "1"]}
    with pytest.raises(DataError, match=r"a\.arrow' is broken"):
        read_piece(piece, ROLES)


# -------------------------------------------------------------------- labels, types, columns


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        (["1\n2", "3\n4"], [1, 2, 3, 4]),
        (["1\n2", "3\nx"], ["1", "2", "3", "x"]),
        (["x\ny", "3\n4"], ["x", "y", "3", "4"]),
        (["1\n2", "007\n4"], ["1", "2", "007", "4"]),
        (["1\n2", '""\n""'], [1, 2, None, None]),
        (['""\n""', '""\n""'], [None] * 4),
    ],
)
def test_csv_labels_are_numbers_only_where_all_files_say_so(
    tmp_path: Path, files: list[str], labels: list[Any]
) -> None:
    for number, text in enumerate(files):
        lines = [f"t,{label}" for label in text.split("\n")]
        (tmp_path / f"{number}.csv").write_text("\n".join(["text,label", *lines]) + "\n")
        (folder := tmp_path / f"parted/label={text.split()[0]}".replace('""', "__HIVE_DEFAULT_PARTITION__")).mkdir(
            parents=True, exist_ok=True
        )
        (folder / f"{number}.csv").write_text("text\nt\n")
    paths = [str(tmp_path / f"{number}.csv") for number in range(len(files))]
    assert read_all(paths)["label"] == labels
    assert read_rows(paths, DataSpec(), ROLES).table.to_pydict()["label"] == labels
    alone = [read_piece(cut(find_files(path))[0], ROLES).column("label").to_pylist() for path in paths]
    assert [str(one or "") for part in alone for one in part] == [str(one or "") for one in labels]
    firsts = [one.split()[0].replace('""', "") or None for one in files]
    known = [one for one in firsts if one]
    whole = known and all(one in "1234" for one in known)
    found = read_all(str(tmp_path / "parted"))["label"]
    expected = [int(one) if whole and one else one for one in firsts]
    assert sorted(map(str, found)) == sorted(map(str, expected))
    assert {type(one) for one in found} == {type(one) for one in expected}


def test_files_that_differ_are_named_with_what_they_have(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / f"n{number:02}.parquet", {"text": ["a"], "label": [number]})
    write(tmp_path / "words.parquet")
    write(tmp_path / "none.jsonl", {"text": ["a"]})
    numbers = [str(tmp_path / f"n{number:02}.parquet") for number in range(12)]
    with pytest.raises(DataError) as caught:
        read_rows([*numbers, str(tmp_path / "words.parquet"), str(tmp_path / "none.jsonl")], DataSpec(), ROLES)
    first, ints, words, lacks = str(caught.value).splitlines()
    assert first == "column 'label' differs between files; write it alike in all of them:"
    assert re.fullmatch(r"  int64: (\S+n\d\d\.parquet, ){9}\S+n09\.parquet and 2 more", ints)
    assert words == f"  string: {tmp_path}/words.parquet"
    assert lacks == f"  no such column: {tmp_path}/none.jsonl"


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.string()),
        (pa.int8(), pa.int32(), pa.int64()),
        (pa.uint8(), pa.uint64(), pa.uint64()),
        (pa.uint64(), pa.int8(), pa.int64()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.null(), pa.bool_(), pa.bool_()),
        (pa.list_(pa.null()), pa.list_(pa.int8()), pa.large_list(pa.int8())),
        (pa.struct({"a": pa.int8()}), pa.struct({"b": pa.string()}), pa.struct({"a": pa.int8(), "b": pa.string()})),
        (pa.int64(), pa.string(), None),
        (pa.int64(), pa.float64(), None),
        (pa.int64(), pa.bool_(), None),
        (pa.string(), pa.binary(), None),
        (pa.list_(pa.string()), pa.list_(pa.int8()), None),
        (pa.struct({"a": pa.int8()}), pa.struct({"a": pa.string()}), None),
        (pa.date32(), pa.timestamp("s"), None),
    ],
)
def test_which_types_are_alike(
    tmp_path: Path, one: pa.DataType, other: pa.DataType, common: pa.DataType | None
) -> None:
    for number, kind in enumerate((one, other)):
        write(tmp_path / f"{number}.parquet", pa.table({"label": pa.nulls(2, kind)}))
    pieces = cut(find_files(str(tmp_path)))
    for order in (pieces, pieces[::-1]):
        if common is None:
            with pytest.raises(DataError, match="column 'label' differs between files"):
                settle(order, ROLES)
            continue
        settled = settle(order, ROLES)
        assert settled[0].schema.field("label").type.equals(common) or pa.types.is_struct(common)
        tables = [read_piece(piece, ROLES) for piece in settled]
        assert pa.concat_tables(tables).num_rows == 4


def test_a_number_that_is_too_large_for_the_other_files_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"text": ["a"], "label": pa.array([2**63], pa.uint64())})
    write(tmp_path / "b.parquet", {"text": ["a"], "label": pa.array([1], pa.int8())})
    with pytest.raises(DataError, match=r"a\.parquet: column 'label' is uint64 and cannot be int64"):
        read_rows(str(tmp_path), DataSpec(), ROLES)


def test_wrong_columns_of_files_are_named_as_those_of_one_file(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"text": ["a"], "labels": [1]})
    write(tmp_path / "b.parquet", {"text": ["a"], "labels": [2]})
    with pytest.raises(
        DataError, match=r"a\.parquet has no column 'label'; it has text, labels; did you mean 'labels'"
    ):
        read_rows(str(tmp_path), DataSpec(), ROLES)
    rows = read_rows(str(tmp_path), DataSpec(columns={"label": "labels"}), ROLES)
    assert rows.table.to_pydict() == {"text": ["a", "a"], "label": [1, 2]}
    write(tmp_path / "c.parquet", {"text": ["a"], "labels": [2], "textpair": ["x"]})
    with pytest.raises(DataError, match=r"c\.parquet: 'textpair' is no column of this task; did you mean 'text_pair'"):
        read_rows(str(tmp_path), DataSpec(columns={"label": "labels"}), TextClassification.columns)
    write(tmp_path / "c.parquet", {"text": ["a"], "labels": [2], "text_pair": ["x"]})
    with pytest.raises(DataError, match="column 'text_pair' differs between files"):
        read_rows(str(tmp_path), DataSpec(columns={"label": "labels"}), TextClassification.columns)


# -------------------------------------------------------------------- folders, globs, partitions


def names(paths: Any, split: str = "train", below: Path | None = None) -> list[str]:
    return [os.path.relpath(file.path, below) if below else file.path for file in find_files(paths, split)]


def test_what_a_folder_and_a_glob_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.csv", "a.csv", "deep/er/c.csv", "_temporary/d.csv", ".hidden.csv", "deep/_e.csv"):
        write(Path("rows") / name)
    for name in ("README.md", "LICENSE", "dataset_info.json", "a.csv.crc", "_SUCCESS"):
        (Path("rows") / name).write_text("about")
    everything = ["rows/a.csv", "rows/b.csv", "rows/deep/er/c.csv"]
    for paths in ("rows", "rows/", "rows/**", "rows/**/*.csv", "*", ["rows/a.csv", "rows/b.csv", "rows/deep"]):
        assert names(paths) == everything, paths
    assert names("rows/*.csv") == ["rows/a.csv", "rows/b.csv"]
    assert names("rows/[b-z].csv") == ["rows/b.csv"]
    assert names("rows/*/*/?.csv") == names(f"{tmp_path}/rows/d*p", below=tmp_path) == ["rows/deep/er/c.csv"]
    assert names(["rows/b.csv", "rows/a.csv"]) == ["rows/b.csv", "rows/a.csv"]
    monkeypatch.chdir("rows")
    assert names(".") == [*names("*.csv"), "deep/er/c.csv"] == ["a.csv", "b.csv", "deep/er/c.csv"]
    write(Path("[1].csv"))
    assert names("[1].csv") == ["[1].csv"]
    found = find_files("a.csv")
    monkeypatch.chdir("/")
    assert digest(found) == hashlib.sha256((tmp_path / "rows/a.csv").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no path is given for the train rows"),
        ("", "a path of the train rows is empty"),
        ("nowhere", "data file 'nowhere' does not exist; give a parquet"),
        ("nowhere/*.csv", "'nowhere/*.csv' matches nothing: the folder 'nowhere' does not exist"),
        ("rows/*.parquet", "'rows/*.parquet' holds no data files"),
        ("bare", "'bare' holds no data files"),
        ("mixed", "'mixed' holds files of several formats: csv (mixed/a.csv), parquet (mixed/b.parquet)"),
        ("mixed/*", "'mixed/*' holds files of several formats"),
        ("odd", "'odd' holds 'odd/notes.txt', which ends in 'txt'; only parquet, csv, jsonl and arrow files are rows"),
        ("odd/notes.txt", "data file 'odd/notes.txt' ends in 'txt'; give a parquet"),
        ("empty", "data file 'empty/b.csv' is empty; it needs at least one row"),
        (["rows", "rows/a.csv"], "data file 'rows/a.csv' is given twice; its rows"),
        (["rows/a.csv", "./rows/a.csv"], "data file './rows/a.csv' is given twice, as 'rows/a.csv' too"),
        (["rows/a.csv", "linked"], "data file 'linked/a.csv' is given twice, as 'rows/a.csv' too"),
        ("lost", "data file 'lost/a.csv' is no file that can be read (a link that leads nowhere?)"),
        ("ring", "data file 'ring' cannot be reached: 'ring/a' is a link to a folder in which it lies"),
        ("pipe.csv", "data file 'pipe.csv' is no file that can be read twice"),
        ("nowhere://bucket/x", "data file 'nowhere://bucket/x' cannot be reached"),
    ],
)
def test_paths_that_mean_no_rows_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows/a.csv", "mixed/a.csv", "mixed/b.parquet", "odd/a.csv", "empty/a.csv"):
        write(Path(name))
    for name in ("odd/notes.txt", "empty/b.csv", "bare/README.md"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x" if name.endswith("txt") else "")
    Path("linked").symlink_to("rows")
    Path("lost").mkdir()
    Path("lost/a.csv").symlink_to("nowhere")
    Path("ring").mkdir()
    Path("ring/a").symlink_to("../ring")
    os.mkfifo("pipe.csv")
    with pytest.raises(DataError, match=re.escape(said)):
        find_files(given)


def test_partition_columns_are_columns(tmp_path: Path) -> None:
    for customer in ("17", "São Paulo/1", "__HIVE_DEFAULT_PARTITION__"):
        write(tmp_path / f"customer={quote(customer, safe='')}" / "day=1" / "a.parquet")
    found = read_all(str(tmp_path))
    assert found["customer"] == ["17", "17", "São Paulo/1", "São Paulo/1", None, None]
    assert found["day"] == ["1"] * 6
    assert read_all(str(tmp_path / "customer=17"))["customer"] == ["17", "17"]
    assert read_all(str(tmp_path / "*/*/a.parquet")) == found
    roles = ROLES | {"customer": Column(("text",))}
    write(tmp_path / "plain.parquet")
    with pytest.raises(DataError, match=r"no such column: \S+plain\.parquet"):
        settle(cut(find_files(str(tmp_path))), roles)


def test_a_file_may_say_what_its_folder_says_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "day=1" / "a.parquet", ROWS | {"day": [1, 1]})
    assert read_all(str(path))["day"] == [1, 1]
    for wrong in ([1, 2], ["x", "1"], [1, None]):
        write(path, ROWS | {"day": wrong})
        with pytest.raises(DataError, match=r"a\.parquet: column 'day' is not '1' in all rows"):
            read_all(str(path))


# -------------------------------------------------------------------- splits and Hugging Face's folders


@pytest.mark.parametrize(
    ("files", "split", "taken"),
    [
        ("data/train-00000-of-00002 data/train-00001-of-00002 data/test-00000-of-00001", "train", "0 1"),
        ("data/train-00000-of-00002 data/train-00001-of-00002 data/test-00000-of-00001", "test", "2"),
        ("train validation test", "validation", "1"),
        ("train dev", "validation", "1"),
        ("train/a train/test-site test/a", "train", "0 1"),
        ("split=train/a split=test/a", "test", "1"),
        ("customer=train/a customer=test/a", "train", "0 1"),
        ("tweets_train.2 tweets_val", "train", "0"),
        ("train_sft-00000-of-00001 train_gen-00000-of-00001", "train_sft", "0"),
        ("part-00000-of-00002 part-00001-of-00002", "train", "0 1"),
        ("a b trains latest", "train", "0 1 2 3"),
        ("train test", "validation", "has no split 'validation'; its names tell test, train"),
        ("test/a test/b", "train", "has no split 'train'; its names tell test"),
        ("train_sft-00000-of-00001 test_sft-00000-of-00001", "train", "its names tell test_sft, train_sft"),
        ("train other", "train", "others whose names tell no split, such as 'other.csv'"),
        ("train-test a", "train", "'train-test.csv' tells the splits test, train at once"),
    ],
)
def test_names_that_tell_splits_apart(tmp_path: Path, files: str, split: str, taken: str) -> None:
    paths = [str(write(tmp_path / f"{name}.csv")) for name in files.split()]
    for way in (str(tmp_path), f"{tmp_path}/**"):
        if set(taken) - set("0123456789 "):
            with pytest.raises(DataError, match=re.escape(taken)):
                find_files(way, split)
        else:
            assert sorted(names(way, split)) == sorted(paths[int(number)] for number in taken.split())
    assert names(paths, split) == paths  # files that are named one by one are what a person says


def test_a_glob_may_name_a_split_itself(tmp_path: Path) -> None:
    for name in ("test-0", "test-1", "train-0"):
        write(tmp_path / f"{name}.csv")
    assert names(f"{tmp_path}/test-*", "validation", tmp_path) == ["test-0.csv", "test-1.csv"]
    with pytest.raises(DataError, match="has no split 'validation'; its names tell test, train"):
        find_files(f"{tmp_path}/t*", "validation")


def hub(rows: int = 4) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    columns = {"text": [f"text {number}" for number in range(rows)], "label": [number % 2 for number in range(rows)]}
    return datasets.Dataset.from_dict(columns, features, split="train")


def named(dataset: datasets.Dataset) -> dict[str, list[str]]:
    """Its columns, labels by their names."""
    return {**dataset.to_dict(), "label": dataset.features["label"].int2str(dataset["label"][:])}


def test_datasets_that_save_to_disk_wrote(tmp_path: Path) -> None:
    hub().save_to_disk(tmp_path / "one", num_shards=3)
    write(tmp_path / "one" / "cache-1.arrow")  # what `map` leaves there
    assert read_all(str(tmp_path / "one")) == named(hub())
    assert names(str(tmp_path / "one"), below=tmp_path / "one") == [f"data-0000{n}-of-00003.arrow" for n in range(3)]
    datasets.DatasetDict({"train": hub(), "dev": hub(2)}).save_to_disk(tmp_path / "both")
    assert read_rows(str(tmp_path / "both"), DataSpec(), ROLES, "validation").table.to_pydict() == named(hub(2))
    with pytest.raises(DataError, match="both' has no split 'test'; it has dev, train"):
        find_files(str(tmp_path / "both"), "test")
    test = hub()
    test._split = datasets.Split.TEST
    test.save_to_disk(tmp_path / "test")
    assert len(find_files(str(tmp_path / "test"), "validation")) == 1
    with pytest.raises(DataError, match="holds the split 'test'; rows of a test split do not train"):
        find_files(str(tmp_path / "test"))
    (tmp_path / "one" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00003\.arrow' is no file"):
        find_files(str(tmp_path / "one"))
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state\.json' is broken"):
        find_files(str(tmp_path / "one"))
    hub(0).save_to_disk(tmp_path / "bare")
    with pytest.raises(DataError, match=r"bare.* (has no|without) rows"):
        read_rows(str(tmp_path / "bare"), DataSpec(), ROLES)


CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: [main.csv, more/*.csv]
  - split: test
    path: holdout.csv
{more}---
# Rows
"""


def test_a_repositorys_card_says_which_files_are_which_split(tmp_path: Path) -> None:
    for name in ("main", "more/a", "holdout"):
        write(tmp_path / f"{name}.csv")
    card = tmp_path / "README.md"
    card.write_text(CARD.format(more="- config_name: other\n  data_files: x.csv\n"))
    assert names(str(tmp_path), below=tmp_path) == ["main.csv", "more/a.csv"]
    assert names(str(tmp_path), "test", tmp_path) == ["holdout.csv"]
    with pytest.raises(DataError, match=r"no split 'validation'; '\S+README\.md' names test, train"):
        find_files(str(tmp_path), "validation")
    card.write_text(CARD.format(more="- config_name: other\n  data_files: x.csv\n").replace("default", "first"))
    with pytest.raises(DataError, match="holds the configurations first, other; give the folder or a glob of one's"):
        find_files(str(tmp_path))
    for text in ("# only words", "---\n: [\n---", "---\nconfigs: 3\n---"):
        card.write_text(text)
        assert len(find_files(str(tmp_path))) == 3


# -------------------------------------------------------------------- broken files


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_nothing_but_a_data_error_that_names_the_file_comes_of_broken_files(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    end = data.draw(st.sampled_from(["parquet", "csv", "jsonl", "arrow", "stream.arrow"]))
    path = write(
        tmp_path_factory.mktemp("broken") / f"rows.{end}", {"text": ["a", "é", "c"], "label": ["x", None, "y"]}
    )
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for at in data.draw(st.lists(st.integers(0, max(len(content) - 1, 0)), max_size=3)) if content else []:
        content[at] = data.draw(st.integers(0, 255))
    other = write(path.with_name("whole.csv"))
    path.write_bytes(data.draw(st.sampled_from([bytes(content), other.read_bytes()])))
    said = ""
    try:
        pieces = settle(cut(find_files([str(other), str(path)])), ROLES)
        for piece in pieces:
            canonical(read_piece(piece, ROLES), DataSpec(), ROLES, piece.file.path)
        read_rows([str(other), str(path)], DataSpec(), ROLES)
    except DataError as error:
        said = str(error)
    assert not said or str(path) in said


@pytest.mark.parametrize("end", ["arrow", "stream.arrow", "parquet"])
def test_columns_whose_names_are_not_utf8_are_named_by_file(tmp_path: Path, end: str) -> None:
    for columns in ({"cafXY": ["a"]}, {"text": [{"cafXY": "a"}]}):
        path = write(tmp_path / f"rows.{end}", columns)
        path.write_bytes(path.read_bytes().replace(b"cafXY", b"caf\xe9X"))
        with pytest.raises(DataError, match=rf"rows\.{end}' is broken: 'utf-8' codec can't decode"):
            read_all(str(path))
        with pytest.raises(DataError, match=rf"rows\.{end}' is broken: 'utf-8' codec can't decode"):
            read_piece(cut(find_files(str(path)))[0], ROLES)


def test_files_without_rows_are_named(tmp_path: Path) -> None:
    for end in ("parquet", "arrow", "stream.arrow", "csv"):
        path = str(write(tmp_path / f"rows.{end}", pa.table(ROWS).slice(0, 0)))
        with pytest.raises(DataError, match=rf"rows\.{end}' has no rows; it needs at least one"):
            read_rows(path, DataSpec(), ROLES)
        with pytest.raises(DataError, match=rf"rows\.{end}' has no rows; it needs at least one"):
            [read_piece(piece, ROLES) for piece in cut(find_files(path))]


def test_a_file_that_is_written_anew_has_another_stamp_and_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv")
    times = path.stat()
    found = find_files(str(path))
    assert find_files(str(path)) == found
    pieces = cut(found)
    path.write_text(path.read_text().replace("yes", "yet"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert find_files(str(path))[0].stamp != found[0].stamp
    for use in (lambda: read_piece(pieces[0], ROLES), lambda: look(pieces[0], ROLES), lambda: digest(found)):
        with pytest.raises(DataError, match=r"rows\.csv' has changed since it was found"):
            use()


# -------------------------------------------------------------------- what people see


def test_the_digest_is_that_of_the_files_in_order(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.csv", {"text": [name], "label": ["x"]}) for name in "ab"]
    each = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert digest(find_files(str(paths[0]))) == each[0]
    assert digest(find_files(str(tmp_path))) == hashlib.sha256("".join(each).encode()).hexdigest()
    assert digest(find_files([str(path) for path in paths[::-1]])) != digest(find_files(str(tmp_path)))


def test_wrong_rows_are_named_by_file_and_row(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", {"text": ["x", " ", "y"], "label": ["no", "no", "yes"]})
    write(tmp_path / "b.csv", {"text": [" "] * 12, "label": ["no"] * 12})
    train, validation = str(tmp_path / "[ab].csv"), [str(write(tmp_path / "c.csv"))]
    with pytest.raises(DataError) as caught:
        inspect(Recipe.parse({"data": {"train": train, "validation": validation}}))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == [
        f"{tmp_path}/a.csv, row 2",
        f"{tmp_path}/b.csv, row 1",
        f"{tmp_path}/b.csv, row 2",
    ]
    assert (len(lines), lines[-1]) == (11, "and 3 more wrong rows in 2 files")
    write(tmp_path / "a.csv")
    write(tmp_path / "b.csv", {"text": ["z"], "label": ["maybe"]})
    spec, rows = inspect(Recipe.parse({"data": {"train": [train], "validation": validation}}))
    assert (spec.labels, rows) == (("maybe", "no", "yes"), {"train": 3, "validation": 2})  # type: ignore[attr-defined]
    assert Recipe.load(EXAMPLE, ["data.train=*.csv"]).data.train == "*.csv"
    assert Recipe.load(EXAMPLE, [f"data.train=[{validation[0]}]"]).data.train == (validation[0],)


# -------------------------------------------------------------------- buckets


def test_rows_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    filesystem, _ = pa.fs.FileSystem.from_uri(f"s3://key:secret@rows/{bucket}")
    local = []
    for customer in ("17", "São Paulo"):
        path = write(tmp_path / f"customer={quote(customer)}" / "part 0.parquet", ROWS, 1)
        local.append(str(path))
        with filesystem.open_output_stream(f"rows/in/{path.relative_to(tmp_path)}") as stream:
            stream.write(path.read_bytes())
    for name in ("in/README.md", "both/train.csv", "both/test.csv"):
        with filesystem.open_output_stream(f"rows/{name}") as stream:
            stream.write(b"text,label\na,x\n")
    for way in ("in", "in/", "in/customer=*", "in/**/part*.parquet", "[i]n"):
        found = find_files(f"s3://key:secret@rows/{way}{bucket}")
        assert [file.path for file in found] == [
            f"s3://key:***@rows/in/customer={name}/part 0.parquet" for name in ("17", "S%C3%A3o%20Paulo")
        ]
        assert "secret" not in repr(found)
        assert digest(found) == digest(find_files(local))
        pieces = [pickle.loads(pickle.dumps(piece)) for piece in settle(cut(found, 1), ROLES)]
        tables = [read_piece(piece, ROLES) for piece in pieces]
        assert [table.num_rows for table in tables] == [1, 1, 1, 1]
        assert pa.concat_tables(tables).to_pydict() == read_all(local)
    assert [file.path for file in find_files(f"s3://key:secret@rows/both{bucket}")] == [
        "s3://key:***@rows/both/train.csv"
    ]
    one = find_files(f"s3://key:secret@rows/both/test.csv{bucket}")
    with filesystem.open_output_stream("rows/both/test.csv") as stream:
        stream.write(b"text,label\na,xyz\n")
    with pytest.raises(DataError, match=r"test\.csv' has changed since it was found"):
        read_piece(cut(one)[0], ROLES)
    for way, said in (("x", "does not exist"), ("x*", "holds no data files"), ("x/y*", "matches nothing")):
        with pytest.raises(DataError, match=said) as caught:
            find_files(f"s3://key:secret@rows/{way}{bucket}")
        assert "secret" not in str(caught.value)
    for wrong in ("s3://key:secret@ro ws/x", "s3x://key:secret@rows/x*"):
        with pytest.raises(DataError, match="cannot be reached") as caught:
            find_files(wrong)
        assert "secret" not in str(caught.value)
    with pytest.raises(DataError, match="is given twice"):
        find_files([f"s3://key:secret@rows/in{bucket}", f"s3://rows/in/customer=17/part%200.parquet{bucket}"])
