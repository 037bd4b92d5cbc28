"""The folder of a run's answers: files that are whole or not there, what was asked, and how far the run is."""

from __future__ import annotations

import json
from collections import Counter
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from ray_lora.errors import DataError, RecipeError
from ray_lora.running.parts import Format, Parts, check_format
from ray_lora.running.rows_progress import RowsProgress
from ray_lora.running.tally import Done, Tally

TABLE = pa.table({"day": [date(2026, 1, 31), None], "x": [float("nan"), 1.5], "text": ["é\u2028", '"']})


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_a_part_is_whole_or_not_there(tmp_path: Path, format: Format) -> None:
    parts = Parts(str(tmp_path / "out"), format)
    with parts.claimed():
        assert parts.asked() is None
        parts.begin({"a": 1})
        parts.write(12, TABLE)
        assert parts.there() == {12}
        (tmp_path / "out" / ".part-torn").write_text("half")
        whole = parts.read(12, ["text"])
        assert whole is not None
        assert whole.column("text").to_pylist() == ["é\u2028", '"']
        path = tmp_path / "out" / f"part-00012.{format}"
        path.write_bytes(path.read_bytes()[:-7])
        assert parts.read(12, ["text"]) is None
        parts.drop(12)
        assert parts.there() == set()
    with parts.claimed():
        assert parts.asked() == {"a": 1}
        assert not list((tmp_path / "out").glob(".part-*"))
        with (
            pytest.raises(RecipeError, match="another process is writing"),
            Parts(str(tmp_path / "out"), format).claimed(),
        ):
            pass


def test_the_folder_is_a_table_of_its_own(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path), "parquet")
    with parts.claimed():
        parts.begin({})
        for number in (1, 0):
            parts.write(number, pa.table({"row": [number]}))
    assert pa.parquet.read_table(tmp_path).column("row").to_pylist() == [0, 1]


def test_jsonl_is_json(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path), "jsonl")
    with parts.claimed():
        parts.write(0, TABLE)
    lines = (tmp_path / "part-00000.jsonl").read_bytes().decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [
        {"day": "2026-01-31", "x": None, "text": "é\u2028"},
        {"day": None, "x": 1.5, "text": '"'},
    ]
    with pytest.raises(DataError, match="column 'image' holds bytes"):
        check_format(pa.schema({"image": pa.struct({"bytes": pa.binary()})}), "jsonl", "a.parquet")
    check_format(pa.schema({"image": pa.binary()}), "parquet", "a.parquet")


def test_what_is_no_folder_of_answers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(RecipeError, match=r"holds 'mine\.txt'"):
        Parts(str(tmp_path), "parquet").asked()
    (tmp_path / "_asked.json").write_text("{")
    with pytest.raises(RecipeError, match=r"_asked\.json cannot be read"):
        Parts(str(tmp_path), "parquet").asked()
    with pytest.raises(RecipeError, match="cannot be made"), Parts(str(tmp_path / "mine.txt"), "parquet").claimed():
        pass


def test_a_piece_that_is_begun_again_counts_once() -> None:
    tally = Tally(None, 20_000, {0: Done(100, 1, 0, Counter({"a@1": 99}), ["row 7: x"], whole=True)})
    assert tally.told(1, Done(512, 100, wrong=["row 1: y"]))
    assert tally.told(1, Done(256, 50, wrong=["row 1: y"]))  # its actor died
    state = tally.state()
    assert (state["rows"], state["errors"], state["pieces"], state["allowed"]) == (356, 51, 1, 200)
    assert state["wrong"] == ["row 7: x", "row 1: y"]
    assert not tally.told(2, Done(200, 150))
    assert Tally(None, None, {}).allowed() == 100  # of rows whose number is not known before they are read
    assert not Tally(0, 1, {}).told(0, Done(1, 1))


def test_progress_says_how_fast_and_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RowsProgress("predict", rows=10_000)
    assert progress.text(0, 0, 5.0) == "0 of 10,000 rows"
    assert progress.text(1_000, 2, 10.0) == "1,000 of 10,000 rows, 2 errors"
    assert progress.text(3_000, 0, 12.0) == "3,000 of 10,000 rows, 1,000 rows/s, 7 s left"
    assert RowsProgress("predict").text(7, 0, 1.0) == "7 rows"
    parts = RowsProgress("people", rows=10_000, done=1_000, parts=True)  # two parts end within a moment
    assert parts.text(1_000, 0, 0.5) == "1,000 of 10,000 rows"
    assert parts.text(3_000, 0, 99.0) == "3,000 of 10,000 rows, 20 rows/s, 6 min left"
    assert parts.text(5_000, 0, 100.0) == "5,000 of 10,000 rows, 40 rows/s, 2 min left"
    progress.show(3_000)
    progress.show(3_001)  # said a moment ago
    RowsProgress("predict", quiet=True).show(1)
    assert capsys.readouterr().err.count("predict:") == 1
