"""Sounds as files: transcripts beside them, LibriSpeech's, AudioFolder's metadata, paths, Hugging Face's parquet."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_lora.data.check import check_table
from ray_lora.data.files import check_unchanged, find_files
from ray_lora.data.piece_types import read_piece, settle
from ray_lora.data.pieces import cut, digest
from ray_lora.data.read import canonical, roles
from ray_lora.data.rows import read_rows
from ray_lora.errors import DataError
from ray_lora.recipe import DataSpec, TaskSpec
from ray_lora.running.large import is_large
from ray_lora.tasks import Column
from ray_lora.tasks.sounds import decode, open_sound
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.unit.test_sounds import tone, written

COLUMNS = {"audio": Column(("audio",)), "text": Column(("text",), "training")}
ROLES = roles(DataSpec(), COLUMNS)


def sound(seed: int = 0) -> bytes:
    return written(tone(seconds=0.05, hertz=300 + 50 * seed))


def put(path: Path, seed: int = 0, text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sound(seed))
    if text is not None:
        path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return path


def rows_of(path: Path | str, split: str = "train", **columns: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_rows(str(path), DataSpec(columns=columns), COLUMNS, split).table.to_pylist()
    return found


def test_a_transcript_beside_each_sound(tmp_path: Path) -> None:
    put(tmp_path / "b.wav", 1, "\ufeffperché no?\n")
    put(tmp_path / "deep" / "a.FLAC", 2, "two words")
    rows = rows_of(tmp_path)
    assert [(row["audio"]["path"], row["text"]) for row in rows] == [("b.wav", "perché no?"), ("a.FLAC", "two words")]
    assert np.array_equal(open_sound(rows[1]["audio"]), decode(sound(2)))


def test_librispeech_and_its_splits(tmp_path: Path) -> None:
    for split, reader in (("train-clean-100", "19"), ("dev-clean", "84")):
        folder = tmp_path / split / reader / "198"
        for at in range(3):
            put(folder / f"{reader}-198-000{at}.flac", at)
        lines = [f"{reader}-198-000{at} {split.upper()} WORD{at}" for at in range(3)]
        (folder / f"{reader}-198.trans.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "README.TXT").write_text("about")
    assert [row["text"] for row in rows_of(tmp_path)] == [f"TRAIN-CLEAN-100 WORD{at}" for at in range(3)]
    assert rows_of(tmp_path, "validation")[2]["text"] == "DEV-CLEAN WORD2"
    assert rows_of(tmp_path)[2]["audio"]["bytes"] == sound(2)


def test_splits_of_transcripts_beside_sounds(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put(tmp_path / split / "a.wav", 0, f"of {split}")
    assert [row["text"] for row in rows_of(tmp_path)] == ["of train"]
    assert [row["text"] for row in rows_of(tmp_path, "test")] == ["of test"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["text", "transcription"])
def test_a_metadata_file_names_sounds_and_texts(tmp_path: Path, kind: str, column: str) -> None:
    put(tmp_path / "deep" / "a.wav", 1)
    put(tmp_path / "b.mp3", 2)
    rows = [{"file_name": "deep/a.wav", column: "007"}, {"file_name": "b.mp3", column: "two, words"}]
    path = tmp_path / f"metadata.{kind}"
    if kind == "csv":
        path.write_text(f"file_name,{column}\n" + "".join(f'{row["file_name"]},"{row[column]}"\n' for row in rows))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = rows_of(tmp_path)
    assert [(row["audio"]["bytes"], row["text"]) for row in found] == [(sound(1), "007"), (sound(2), "two, words")]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "struct", "base64"])
def test_tables_hold_paths_or_bytes(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "sounds" / "a.wav", 1)
    (tmp_path / "rows").mkdir()
    path = tmp_path / "rows" / f"rows.{kind if kind in ('csv', 'jsonl') else 'parquet'}"
    held: dict[str, Any] = {
        "struct": {"bytes": None, "path": "../sounds/a.wav"},
        "base64": base64.b64encode(sound(1)).decode(),
    }
    value = held.get(kind, "../sounds/a.wav")
    if kind == "csv":
        path.write_text(f"audio,sentence\n{value},ciao\n")
    elif kind == "jsonl":
        path.write_text(json.dumps({"audio": value, "sentence": "ciao"}))
    else:
        pq.write_table(pa.table({"audio": [value], "sentence": ["ciao"]}), path)
    [row] = rows_of(path, text="sentence")
    assert (row["audio"]["bytes"], row["text"]) == (sound(1), "ciao")


def test_hugging_face_audio_parquet(tmp_path: Path) -> None:
    rows = [{"bytes": sound(at), "path": f"{at}.wav"} for at in range(3)]
    table = pa.table({"audio": rows, "text": ["a", "b", "c"]})
    told = {"audio": {"sampling_rate": 16_000, "_type": "Audio"}, "text": {"dtype": "string", "_type": "Value"}}
    path = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": told}})}), path, row_group_size=1
    )
    pieces = settle(cut(find_files(str(path)), most_rows=1), ROLES)
    found = [read_piece(piece, ROLES).to_pylist()[0] for piece in pieces]
    assert [(row["audio"]["bytes"], row["text"]) for row in found] == [(sound(at), "abc"[at]) for at in range(3)]


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{"audio": {"bytes": sound(at), "path": None}, "text": "abc"[at]} for at in range(3)]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    assert [(row["audio"]["bytes"], row["text"]) for row in rows_of(tmp_path / "saved")] == [
        (sound(at), "abc"[at]) for at in range(3)
    ]


def test_sounds_without_transcripts_are_asked(tmp_path: Path) -> None:
    put(tmp_path / "a.wav", 1)
    [file] = find_files(str(tmp_path))
    table = read_piece(settle(cut([file]), ROLES)[0], ROLES)
    assert table.column_names == ["audio"]
    with pytest.raises(DataError, match="has no column 'text'; it has audio"):
        canonical(table, DataSpec(), COLUMNS, file.path)


def test_pieces_and_digests_of_sounds_and_transcripts(tmp_path: Path) -> None:
    for at in range(5):
        put(tmp_path / f"{at}.wav", at, f"word {at}")
    files = find_files(str(tmp_path))
    pieces = settle(cut(files, most_rows=2), ROLES)
    assert [(piece.first, piece.rows) for piece in pieces] == [(0, 2), (2, 2), (4, 1)]
    assert [text for piece in pieces for text in read_piece(piece, ROLES).column("text").to_pylist()] == [
        f"word {at}" for at in range(5)
    ]
    assert not is_large({"train": files})
    before = digest(files)
    (tmp_path / "3.txt").write_text("another")
    assert digest(find_files(str(tmp_path))) != before
    with pytest.raises(DataError, match="has changed since it was found"):
        check_unchanged(files[0])


def test_wrong_folders_are_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path / "a.wav", 0, "a")
    put(tmp_path / "b.wav", 0)
    with pytest.raises(DataError, match=r"sound '.*b\.wav' has no transcript; write 'b\.txt' beside it"):
        find_files(str(tmp_path))
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c.txt").write_text("c")
    with pytest.raises(DataError, match=r"'.*c\.txt' is the transcript of no sound"):
        find_files(str(tmp_path))
    (tmp_path / "c.txt").rename(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"holds pictures and '.*a\.(txt|wav)', which is none"):
        find_files(str(tmp_path))
    (tmp_path / "c.png").unlink()
    put(tmp_path / "a.mp3")
    with pytest.raises(DataError, match=r"'.*a\.(mp3|wav)' and 'a\.(mp3|wav)' have one name"):
        find_files(str(tmp_path))
    (tmp_path / "a.mp3").unlink()
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(DataError, match=r"holds sounds and '.*notes\.doc', which is none; .* the sounds alone"):
        find_files(str(tmp_path))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a one\n", r"sound '.*b\.wav' has no line in x\.trans\.txt; add 'b WORDS'"),
        ("a one\nb two\na three\n", r"x\.trans\.txt', line 3: 'a' has a line already"),
    ],
)
def test_wrong_lines_of_transcripts_are_named(tmp_path: Path, lines: str, said: str) -> None:
    put(tmp_path / "a.wav")
    put(tmp_path / "b.wav")
    (tmp_path / "x.trans.txt").write_text(lines)
    with pytest.raises(DataError, match=said):
        rows_of(tmp_path)


def test_a_transcript_that_is_no_utf_8(tmp_path: Path) -> None:
    put(tmp_path / "a.wav", 0, "x").with_suffix(".txt").write_bytes("perché".encode("latin-1"))
    with pytest.raises(DataError, match=r"transcript '.*a\.txt' is not UTF-8"):
        rows_of(tmp_path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("gone.wav", "row 2: column 'audio': sound '.*gone.wav' cannot be read"),
        ("https://example.org/a.wav", "is an address, and nothing is fetched; give a path of a file, or the sound's"),
        ("ab?", r"'ab\?' is neither a path, which ends as a sound's does \(.wav\), nor base64 text"),
    ],
)
def test_a_path_that_gives_no_sound_is_refused_by_row(tmp_path: Path, value: str, said: str) -> None:
    put(tmp_path / "a.wav")
    (tmp_path / "rows.csv").write_text(f"audio,text\na.wav,x\n{value},y\n")
    with pytest.raises(DataError, match=said):
        rows_of(tmp_path / "rows.csv")


class Checking:
    """Of a task, what checks rows: each sound is decoded before anything is loaded."""

    columns: ClassVar[Mapping[str, Column]] = COLUMNS

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        for row, value in enumerate(block.column("audio").to_pylist()):
            try:
                open_sound(value)
            except DataError as error:
                yield row, str(error)


def test_wrong_sounds_are_refused_by_file_and_row(tmp_path: Path) -> None:
    for at in range(4):
        put(tmp_path / f"{at}.wav", at, "x")
    (tmp_path / "1.wav").write_bytes(sound(1)[:-100])
    (tmp_path / "3.wav").write_bytes(b"")
    [(where, table)] = read_rows(str(tmp_path), DataSpec(), COLUMNS).tables
    with pytest.raises(DataError) as error:
        check_table(Checking, TextClassificationSpec(), table, where)  # type: ignore[arg-type]
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{tmp_path}, row 2: a sound ('1.wav') cannot be read (its header announces 1,600 bytes")
    assert second.startswith(f"{tmp_path}, row 4: a sound ('3.wav') cannot be read (it is empty, 0 bytes)")
