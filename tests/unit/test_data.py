"""Rows as files hold them, and what is said of the wrong ones, whatever blocks they come in."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from ray_lora.data.check import check_table, learn, wrong_rows
from ray_lora.data.read import read, roles
from ray_lora.errors import DataError
from ray_lora.recipe import DataSpec
from ray_lora.tasks.image_classification import ImageClassification, ImageClassificationSpec
from ray_lora.tasks.text_classification import TextClassification, TextClassificationSpec

TEXTS = TextClassificationSpec(labels=("no", "yes"))


def csv(folder: Path, text: str, columns: dict[str, str] | None = None) -> pa.Table:
    (folder / "rows.csv").write_text(text)
    return read(str(folder / "rows.csv"), roles(DataSpec(columns=columns or {}), TextClassification.columns))


@pytest.mark.parametrize(
    ("written", "values"),
    [
        (["0", "1"], [0, 1]),  # indices
        (["-1", "12"], [-1, 12]),
        (["007", "1"], ["007", "1"]),
        (["true", "false"], ["true", "false"]),
        (["2020-01-01", "2021-01-01"], ["2020-01-01", "2021-01-01"]),
        (["NA", "null"], ["NA", "null"]),
        (["1.0", "2.0"], ["1.0", "2.0"]),
        (["", "1"], [None, 1]),
        (["", "yes"], [None, "yes"]),
    ],
)
def test_labels_and_texts_of_a_csv_file_are_as_written(tmp_path: Path, written: list[str], values: list[Any]) -> None:
    body = "".join(f"{label},{label or 'x'}\n" for label in written)
    table = csv(
        tmp_path, f"mood,text,other\n{''.join(line + ',1' + chr(10) for line in body.split())}", {"label": "mood"}
    )
    assert table.column("mood").to_pylist() == values
    assert table.column("text").to_pylist() == [label or "x" for label in written]
    assert table.column("other").to_pylist() == [1, 1]  # what no role names is read as before


def test_every_wrong_row_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    table = csv(tmp_path, "text,label\ngood,yes\nbad,nno\n,yes\n  ,yes\nfine,\nlast,perhaps\n")
    with pytest.raises(DataError) as caught:
        check_table(TextClassification, TEXTS, table, "rows.csv")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"rows.csv, row {number}" for number in (2, 3, 4, 5, 6)]
    assert "did you mean 'no'" in lines[0]
    assert "'label' is empty" in lines[3]
    for cut in (1, 2, 4):
        parts = [table.slice(0, cut), table.slice(cut)]
        found = [
            wrong
            for part, first in zip(parts, (0, cut), strict=True)
            for wrong in wrong_rows(TextClassification, TEXTS, part, first)
        ]
        assert found == wrong_rows(TextClassification, TEXTS, table)


def test_of_many_wrong_rows_the_first_are_named_and_the_rest_counted() -> None:
    table = pa.table({"text": ["x"] * 25, "label": ["maybe"] * 25})
    with pytest.raises(DataError) as caught:
        check_table(TextClassification, TEXTS, table, "rows")
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (11, "and 15 more wrong rows in rows")


@pytest.mark.parametrize(
    "texts",
    [pa.array([1, 2]), pa.array(["a", " "]).dictionary_encode(), pa.array(["a", "\u00a0"], pa.large_string())],
)
def test_columns_that_hold_no_text_are_named(texts: pa.Array) -> None:
    table = pa.table({"text": texts, "label": ["no", "yes"]})
    assert wrong_rows(TextClassification, TEXTS, table)[-1][0] == 1
    assert "give a non-empty string" in wrong_rows(TextClassification, TEXTS, table)[-1][1]


def test_labels_of_a_kind_that_none_can_be_are_named() -> None:
    table = pa.table({"text": ["a", "b"], "label": pa.array([["no"], ["yes"]])})
    assert [row for row, _ in wrong_rows(TextClassification, TEXTS, table)] == [0, 1]


def test_what_blocks_teach_is_merged() -> None:
    blocks = [pa.table({"text": ["x"], "label": [label]}) for label in ("b", "a", "b", "c")]
    spec = learn(TextClassification, TextClassificationSpec(max_length=9), blocks)
    assert spec == TextClassificationSpec(labels=("a", "b", "c"), max_length=9)
    part = TextClassification.learn(TextClassificationSpec(), blocks[0])
    assert pickle.loads(pickle.dumps(part)) == part
    assert learn(TextClassification, TEXTS, blocks) == TEXTS
    with pytest.raises(DataError, match=r"1 different labels \['b'\]; at least two are needed"):
        learn(TextClassification, TextClassificationSpec(), blocks[:1])


def test_every_image_is_opened_before_anything_is_trained() -> None:
    buffers = [io.BytesIO(), io.BytesIO()]
    for buffer, kind in zip(buffers, ("PNG", "JPEG"), strict=True):
        Image.effect_noise((32, 32), 50).save(buffer, kind)
    png, jpeg = (buffer.getvalue() for buffer in buffers)
    images = [png, jpeg, png[:-40], jpeg[: len(jpeg) // 2], b"no image"]
    table = pa.table({"image": images, "label": ["a"] * 5})
    spec = ImageClassificationSpec(labels=("a", "b"))
    assert [row for row, _ in wrong_rows(ImageClassification, spec, table)] == [2, 3, 4]
