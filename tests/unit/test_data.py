"""Rows as files hold them, and what is said of the wrong ones, whatever blocks they come in."""

from __future__ import annotations

import codecs
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from ray_lora.data.check import check_table, learn, wrong_rows
from ray_lora.data.read import canonical, read, read_inputs, roles
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


# -------------------------------------------------------------------- files as other people write them


def table_of(folder: Path, name: str, content: bytes) -> pa.Table:
    """A file's texts and labels, checked row by row."""
    path, data = str(folder / name), DataSpec()
    (folder / name).write_bytes(content)
    columns = TextClassification.columns
    table = canonical(read(path, roles(data, columns)), data, columns, path)
    check_table(TextClassification, learn(TextClassification, TextClassificationSpec(), [table]), table, path)
    return table


CSV = b"text,label\ngood,p\nbad,n\n"
JSONL = b'{"text": "good", "label": "p"}\n{"text": "bad", "label": "n"}\n'


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("bom.csv", codecs.BOM_UTF8 + CSV, ["good", "bad"]),
        ("windows.csv", CSV.replace(b"\n", b"\r\n"), ["good", "bad"]),
        ("macintosh.csv", CSV.replace(b"\n", b"\r"), ["good", "bad"]),
        ("blank lines.csv", CSV.replace(b"\n", b"\n\n"), ["good", "bad"]),
        ("numbers.csv", CSV.replace(b"good", b"0012").replace(b"bad", b"1e5"), ["0012", "1e5"]),
        ("dates.csv", CSV.replace(b"good", b"2024-01-01").replace(b"bad", b"10:30"), ["2024-01-01", "10:30"]),
        ("words.csv", CSV.replace(b"good", b"NA").replace(b"bad", b"null"), ["NA", "null"]),
        ("large.csv", CSV.replace(b"good", b'"' + b"good, " * 400_000 + b'"'), ["good, " * 400_000, "bad"]),
        ("lines.csv", CSV.replace(b"good", b'"so\n""good"""'), ['so\n"good"', "bad"]),
        ("spaces.csv", CSV.replace(b"good", "a\u2028b\x85c\x1cd".encode()), ["a\u2028b\x85c\x1cd", "bad"]),
        ("bom.jsonl", codecs.BOM_UTF8 + JSONL, ["good", "bad"]),
        ("windows.jsonl", JSONL.replace(b"\n", b"\r\n"), ["good", "bad"]),
        (
            "dates.jsonl",
            JSONL.replace(b"good", b"2024-01-01").replace(b"bad", b"2024-01-02"),
            ["2024-01-01", "2024-01-02"],
        ),
        ("large.jsonl", JSONL.replace(b"good", b"good " * 400_000), ["good " * 400_000, "bad"]),
        ("spaces.jsonl", JSONL.replace(b"good", "a\u2028b\x85c".encode()), ["a\u2028b\x85c", "bad"]),
        ("pair.jsonl", JSONL.replace(b"good", b"\\ud83d\\ude00"), ["\U0001f600", "bad"]),
        (
            "others.jsonl",
            JSONL.replace(b'"p"', b'"p", "more": 1').replace(b'"n"', b'"n", "more": "x"'),
            ["good", "bad"],
        ),
    ],
)
def test_texts_are_what_is_written(tmp_path: Path, name: str, content: bytes, texts: list[str]) -> None:
    table = table_of(tmp_path, name, content)
    assert table.to_pydict() == {"text": texts, "label": ["p", "n"]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("latin-1.csv", CSV.replace(b"bad", b"caf\xe9"), r"row 2 is not UTF-8 \(byte 0xe9\); save the file as UTF-8"),
        ("latin-1 in lines.csv", CSV.replace(b"good", b'"a\nb"').replace(b"bad", b"\xe9"), "row 2 is not UTF-8"),
        ("latin-1 header.csv", CSV.replace(b"text", b"t\xe9xt"), "the header is not UTF-8"),
        ("cut off.csv", CSV.rstrip(b"\n") + b"\xe2\x82", "row 2 is not UTF-8"),
        ("late.csv", CSV + b"good,p\n" * 700_000 + b"\xff,p\n", "row 700003 is not UTF-8"),
        ("utf-16.csv", CSV.decode().encode("utf-16"), "is UTF-16; save the file as UTF-8"),
        ("utf-16-le.csv", CSV.decode().encode("utf-16-le"), "the header holds a NUL character"),
        ("nul.csv", CSV.replace(b"bad", b"b\0d"), "row 2 holds a NUL character"),
        ("twice.csv", b"text,text,label\na,b,p\nc,d,n\n", "has 2 columns 'text'"),
        ("ragged.csv", b"text,label\ngood,p\nbad, so bad,n\n", r"row 2 \(line 3\): 3 cells, the header has 2"),
        ("short.csv", b'text,label\n"a\nb",p\n\nbad\n', r"row 2 \(line 5\): 1 cells, the header has 2"),
        ("open.csv", b'text,label\n"good,p\nbad,n\n', r"row 1 \(line 2\): quotes are not closed"),
        ("inside.csv", b'text,label\n"so" she said,p\nbad,n\n', r"row 1 \(line 2\): quotes .* stand inside a cell"),
        ("blank label.csv", CSV + b"fine, \n", "row 3: label ' ' is blank"),
        ("invisible.csv", CSV.replace(b"bad", "\u200b".encode()), "row 2: text '\\\\u200b' is empty"),
        (
            "alike.csv",
            CSV + b"fine,p \n",
            r"row 1: label 'p' and label 'p ' differ only in blanks(.|\n)*row 3: label 'p '",
        ),
        ("forms.csv", CSV + "a,\xe9\nb,e\u0301\n".encode(), r"row 3: label '\\xe9' and label 'e\\u0301' differ only"),
        ("latin-1.jsonl", JSONL.replace(b"bad", b"caf\xe9"), "line 2 is not UTF-8"),
        ("utf-16.jsonl", JSONL.decode().encode("utf-16"), "is UTF-16"),
        ("nul.jsonl", JSONL.replace(b"bad", b"b\\u0000d"), "row 2: text 'b\\\\x00d' holds a NUL character"),
        ("half.jsonl", JSONL.replace(b"bad", b"b\\ud83dd"), "line 2: 'text' cannot be kept as it is"),
        ("types.jsonl", JSONL.replace(b'"n"', b"1"), "line 2: 'label' is a whole number, in line 1 it is a text"),
        ("fractions.jsonl", JSONL.replace(b'"p"', b"1").replace(b'"n"', b"0.5"), "line 2: 'label' is a fraction"),
        ("texts.jsonl", JSONL.replace(b'"bad"', b"7"), "line 2: 'text' is a whole number, in line 1 it is a text"),
        ("no object.jsonl", JSONL + b"\n[1]\n", "line 4 is a list; give one object a line"),
        ("two keys.jsonl", JSONL + b'{"text": "a", "text": "b"}', "line 3: two keys of one name"),
        ("nan.jsonl", JSONL.replace(b'"n"', b"NaN"), "line 2: NaN is not JSON"),
        ("deep.jsonl", JSONL + b"[" * 100_000, "line 3"),
        ("no label.jsonl", JSONL + b'{"text": "fine"}', "row 3: column 'label' is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        table_of(tmp_path, name, content)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 500


def parquet(folder: Path, texts: Any, labels: Any, names: tuple[str, ...] = ("text", "label")) -> pa.Table:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.table([texts, labels], names=list(names)), sink)
    return table_of(folder, "rows.parquet", sink.getvalue())


def test_columns_of_parquet_files_are_read_or_named(tmp_path: Path) -> None:
    texts, words = ["good", "bad", "good"], ["p", "n", "p"]
    for kind in (pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        table = parquet(tmp_path, pa.array(texts, kind), pa.array(words, kind))
        assert table.to_pydict() == {"text": texts, "label": words}
    hidden = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["p", None]))
    held = canonical(pa.table({"text": texts, "label": hidden}), DataSpec(), TextClassification.columns, "rows")
    with pytest.raises(DataError, match="row 2: column 'label' is empty"):
        check_table(TextClassification, TextClassificationSpec(labels=("p", "n")), held, "rows")
    offsets, latin = pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xe9b")
    with pytest.raises(DataError, match="row 2: column 'text' is not UTF-8"):
        parquet(tmp_path, pa.Array.from_buffers(pa.string(), 3, [None, offsets, latin]), words)
    with pytest.raises(DataError, match="row 1: text b'good' is empty or not a string"):
        parquet(tmp_path, pa.array(texts, pa.binary()), words)
    with pytest.raises(DataError, match="has 2 columns 'text'"):
        parquet(tmp_path, texts, words, ("text", "text"))


def test_inputs_are_read_as_rows_are(tmp_path: Path) -> None:
    columns, path = TextClassification.columns, tmp_path / "inputs.jsonl"
    given = ["a\u2028b", {"text": "c\x85d"}, "e\x0bf\x1cg", "7"]
    lines = "\r\n".join(json.dumps(value, ensure_ascii=False) for value in given)
    path.write_bytes(codecs.BOM_UTF8 + lines.encode())
    assert read_inputs(str(path), columns) == given
    path.write_bytes(b'"good"\n"caf\xe9"\n')
    with pytest.raises(DataError, match="line 2 is not UTF-8"):
        read_inputs(str(path), columns)
    (tmp_path / "inputs.csv").write_bytes(codecs.BOM_UTF8 + b"text\n007\n2024-01-01\n")
    assert read_inputs(str(tmp_path / "inputs.csv"), columns) == [{"text": "007"}, {"text": "2024-01-01"}]
