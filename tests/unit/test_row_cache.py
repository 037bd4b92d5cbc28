"""Encoded rows on disk: whole or not there, below a bound, read by number."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_lora.bases.load import load_base
from ray_lora.data.encoded import EncodedFile, UnkeptError, write_rows
from ray_lora.data.encoder import Encoder
from ray_lora.data.row_cache import BOUND, RowCache, bound
from ray_lora.data.stored_rows import StoredRows, Stretch
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import BaseSpec
from ray_lora.tasks import Features
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.conformance.rules import same

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def rows_of(first: int, count: int) -> list[tuple[Features, int]]:
    return [
        ({"input_ids": [row] * (1 + row % 5), "labels": row % 3}, 1 + row % 5) for row in range(first, first + count)
    ]


@given(rows=st.lists(st.dictionaries(st.text(), VALUES), max_size=6))
@settings(max_examples=60, deadline=None)
def test_rows_come_back_as_they_are(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.arrow"
    rows = [row | {"cut": "longer than 9 tokens"} if number % 2 else _uncut(row) for number, row in enumerate(rows)]
    assert write_rows(path, [(row, number) for number, row in enumerate(rows)]) == len(rows)
    kept = EncodedFile(path)
    assert all(same(kept[number], row) for number, row in enumerate(rows))
    assert kept.sizes.tolist() == list(range(len(rows)))
    assert kept.cut.total() == len(rows) // 2


def _uncut(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "cut"}


def test_tensors_and_arrays_come_back(tmp_path: Path) -> None:
    row = {
        "pixels": torch.rand(3, 4, 5),
        "half": torch.ones(2, dtype=torch.int16),
        "array": np.eye(3),
        "none": torch.ones(0),
    }
    write_rows(tmp_path / "a", [(row, 1)])
    found = EncodedFile(tmp_path / "a")[0]
    assert torch.equal(found["pixels"], row["pixels"])
    assert found["half"].dtype == torch.int16
    assert isinstance(found["array"], np.ndarray)
    assert (found["array"] == np.eye(3)).all()
    assert found["none"].shape == (0,)


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**70, np.array(["text"])])
def test_what_would_not_come_back_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises(UnkeptError, match="cannot be kept in a file"):
        write_rows(tmp_path / "a", [({"value": value}, 1)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
def test_any_number_of_rows(count: int, tmp_path: Path) -> None:
    rows = rows_of(0, count)
    assert write_rows(tmp_path / "a", rows) == count
    kept = EncodedFile(tmp_path / "a")
    assert len(kept) == count
    assert [kept[row] for row in range(count)] == [row for row, _ in rows]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_torn_file_is_none(share: float, tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_rows(path, rows_of(0, 3000))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(OSError, match="is not whole"):
        EncodedFile(path)


def test_rows_of_many_files_by_number(tmp_path: Path) -> None:
    opened: list[int] = []

    def stretch(first: int, count: int) -> Stretch:
        path = tmp_path / f"{first}.arrow"
        write_rows(path, rows_of(first, count))

        def opens() -> EncodedFile:
            opened.append(first)
            return EncodedFile(path)

        return Stretch(first, count, opens)

    rows = StoredRows([stretch(5000, 10), stretch(0, 2000)])  # another worker has those between
    assert (len(rows), list(rows)[1998:2002]) == (2010, [1998, 1999, 5000, 5001])
    assert [row in rows for row in (-1, 0, 1999, 2000, 4999, 5000, 5009, 5010)] == [
        False, True, True, False, False, True, True, False,
    ]  # fmt: skip
    assert not opened
    assert rows[5003] == {"input_ids": [5003] * 4, "labels": 2}
    assert opened == [5000]
    rows.prefetch([7, 3000, 5009, 7])
    assert [rows[row]["input_ids"][0] for row in (5009, 7, 8)] == [5009, 7, 8]
    with pytest.raises(KeyError):
        rows[2000]
    assert rows.sizes() == [1 + row % 5 for row in rows]


def test_workers_share_a_file(tmp_path: Path) -> None:
    features = [(row | {"cut": "longer than 9 tokens"} if number == 7 else row, size) for number, (row, size) in
                enumerate(rows_of(100, 10))]  # fmt: skip
    write_rows(tmp_path / "a", features)
    first = StoredRows([Stretch(100, 6, lambda: EncodedFile(tmp_path / "a"))])
    assert first.cut() == {"longer than 9 tokens": 1}  # of the whole file
    rows = StoredRows([Stretch(106, 4, lambda: EncodedFile(tmp_path / "a"), skipped=6)])
    assert list(rows) == [106, 107, 108, 109]
    assert [rows[row]["input_ids"][0] for row in rows] == [106, 107, 108, 109]
    assert rows.sizes() == [2, 3, 4, 5]
    assert not rows.cut()


def test_a_piece_is_made_once_and_again_when_it_is_torn(tmp_path: Path) -> None:
    cache = RowCache(tmp_path)
    for again in (True, False):
        with cache.making("enc", "piece", "a task") as path:
            assert (path is not None) == again
            if path is not None:
                write_rows(path, rows_of(0, 9))
    os.truncate(cache.path("enc", "piece"), 100)
    assert not cache.has("enc", "piece")
    with cache.making("enc", "piece") as path:
        assert path is not None
        write_rows(path, rows_of(0, 9))
    (held,) = cache.held()
    assert (held.encoder, held.about, held.pieces, held.rows) == ("enc", "a task", 1, 9)
    assert sorted(file.suffix for file in (tmp_path / "enc").iterdir()) == [".arrow", ".json"]


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RowCache(tmp_path, begun=1000.0)
    for name in ["old", "older", "now", "new"]:
        with cache.making("enc", name) as path:
            assert path is not None
            write_rows(path, rows_of(0, 3000))
        os.utime(path, (0, {"old": 20, "older": 10, "now": 1000, "new": 2000}[name]))
    size = cache.path("enc", "now").stat().st_size
    monkeypatch.setenv(BOUND, str(3.5 * size / 1e9))
    assert cache.trim() == size
    assert not cache.path("enc", "older").exists()
    monkeypatch.setenv(BOUND, "0")
    assert cache.trim() == size  # what this run uses stays
    assert {path.stem for path in (tmp_path / "enc").glob("*.arrow")} == {"now", "new"}
    with pytest.raises(RecipeError, match="holds no 'other'; it holds enc"):
        cache.clear("other")
    assert cache.clear("enc") == 2 * size
    assert cache.held() == []


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    cache = RowCache(tmp_path)
    with pytest.raises(DataError, match=r"^the disk of .* is full; free some"), cache.making("enc", "piece"):
        raise OSError(errno.ENOSPC, "No space left on device")  # what a write into a full disk raises
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"cannot be written to .*; set RAY_LORA_ROWS to a folder"),
        RowCache(tmp_path / "file").making("enc", "piece"),
    ):
        pass


def test_a_bound_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BOUND, "much")
    with pytest.raises(RecipeError, match="is 'much'; give the gigabytes"):
        bound()


def test_an_encoders_key(tiny_bert_folder: Path, tmp_path: Path) -> None:
    spec = TextClassificationSpec(labels=("no", "yes"))

    def key(
        spec: TextClassificationSpec = spec, columns: Mapping[str, str] = {}, used: bool = False, **told: object
    ) -> str:
        processor = load_base(BaseSpec(model=str(tiny_bert_folder))).processor
        if used:  # a call leaves where it cut in the tokenizer
            processor("a lovely day", truncation=True, max_length=3, padding="max_length")
        for name, value in told.items():
            setattr(processor, name, value)
        return Encoder.of(spec, processor, columns).key

    elsewhere = shutil.copytree(tiny_bert_folder, tmp_path / "elsewhere")
    same = [key(), key(used=True), Encoder.of(spec, load_base(BaseSpec(model=str(elsewhere))).processor, {}).key]
    assert set(same) == {key()}
    longer, other = spec.model_copy(update={"max_length": 9}), spec.model_copy(update={"labels": ("yes", "no")})
    told = [key(positions=9), key(segments=1), key(padding_side="left"), key(unk_token="[MASK]")]
    keys = [*same[:1], *map(key, (longer, other)), key(columns={"text": "review"}), *told]
    assert len(set(keys)) == len(keys)
    slow = subprocess.run(
        [sys.executable, "-c", _KEY, str(tiny_bert_folder)], capture_output=True, text=True, check=True
    )
    assert slow.stdout.split() == [key()]  # in another process too


_KEY = """
import sys
from ray_lora.bases.load import describe_base
from ray_lora.data.encoder import Encoder
from ray_lora.recipe import BaseSpec, TaskSpec
spec = TaskSpec.model_validate({"labels": ["no", "yes"]})
print(Encoder.of(spec, describe_base(BaseSpec(model=sys.argv[1])).processor, {}).key)
"""
