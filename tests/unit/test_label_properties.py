"""What a column of labels teaches is what is answered, whatever wrote it; else the file and the row are named."""

from __future__ import annotations

import csv
import datetime
import json
import math
import re
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_lora.errors import DataError
from ray_lora.recipe import Recipe, TaskSpec
from ray_lora.running.sources import inspect, read_tables
from ray_lora.tasks.text_classification import TextClassification

Values = list[Any]
WORDS = st.sampled_from(
    ["x", "01", "1", "1.0", "True", "true", "null", "NA", "nan", " x", "\u200bx", "", " ", "caf\u00e9"]
)
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "ints": st.integers(-12, 12),
    "large ints": st.integers(-(2**70), 2**70),
    "bools": st.booleans(),
    "floats": st.floats(),
    "few floats": st.sampled_from([0.0, -0.0, 1.0, 0.5]),
    "strings": st.text(max_size=4),
    "words": WORDS | st.just("cafe\u0301"),
    "dates": st.dates(datetime.date(2024, 1, 1), datetime.date(2024, 1, 9)),
    "mixed": st.one_of(st.integers(-3, 3), st.booleans(), st.floats(0, 1), WORDS),
}


class Letters:
    """A tokenizer as far as a task needs one."""

    pad_token_id = 0

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[len(text)] for text in texts]}


@st.composite
def columns(draw: st.DrawFn) -> tuple[str, Values, Values]:
    """The kind, and the labels of training and of validation rows, some of them missing, of one kind or of two."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    other = draw(st.sampled_from([kind, kind, *sorted(KINDS)]))
    holes = st.none() if draw(st.integers(0, 5)) == 0 else st.nothing()
    train = draw(st.lists(holes | KINDS[kind], min_size=2, max_size=15))
    fresh = draw(st.lists(holes | KINDS[other], min_size=1, max_size=4))
    known = draw(st.lists(st.sampled_from(train), max_size=4))
    return kind, train, known if known and draw(st.booleans()) else fresh


def as_csv(path: Path, labels: Values) -> list[str] | None:
    written = ["" if label is None else str(label) for label in labels]
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *((f"row {n}", word) for n, word in enumerate(written))])
    except UnicodeEncodeError:
        return None
    return written


def as_jsonl(path: Path, labels: Values) -> list[str] | None:
    labels = [str(label) if isinstance(label, datetime.date) else label for label in labels]
    lines = [json.dumps({"text": f"row {number}", "label": label}) for number, label in enumerate(labels)]
    path.write_text("".join(line + "\n" for line in lines))
    return [str(label) for label in labels]


def as_parquet(path: Path, labels: Values) -> list[str] | None:
    try:
        array = pa.array(labels)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return None
    table = pa.table({"text": [f"row {number}" for number in range(len(labels))], "label": array})
    pa.parquet.write_table(table, path)
    return [str(label) for label in array.to_pylist()]


FORMATS: dict[str, Callable[[Path, Values], list[str] | None]] = {
    "csv": as_csv,
    "jsonl": as_jsonl,
    "parquet": as_parquet,
}


def inspected(recipe: Recipe) -> tuple[TaskSpec | None, str]:
    """The task that the files teach, or what is said of them."""
    try:
        return inspect(recipe)[0], ""
    except DataError as error:
        return None, str(error)


def clean(kind: str, train: Values, validation: Values) -> bool:
    """Whether there is nothing to refuse: of one plain kind, none missing, two classes, none unseen."""
    plain = kind in ("ints", "bools", "dates") and {type(value) for value in [*train, *validation]} == {type(train[0])}
    return plain and len(set(train)) > 1 and set(validation) <= set(train)


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(columns(), st.sampled_from(sorted(FORMATS)), st.sampled_from(sorted(FORMATS)))
@example(("ints", list(range(12)), [2, 10]), "parquet", "csv")
@example(("ints", [1, 2, 3], [0]), "parquet", "parquet")
@example(("words", ["01", "x", "01"], ["1"]), "csv", "csv")
@example(("words", ["a", "b"], [0, 1]), "csv", "csv")
@example(("few floats", [0.0, -0.0, 1.0], [1.0]), "parquet", "jsonl")
@example(("bools", [True, False], [True]), "parquet", "csv")
@example(("bools", [True, False], ["true"]), "jsonl", "csv")
@example(("ints", [0, 1], [1.0]), "csv", "parquet")
def test_what_was_learnt_is_what_is_answered(given: tuple[str, Values, Values], first: str, second: str) -> None:
    kind, train, validation = given
    with tempfile.TemporaryDirectory() as folder:
        files = {"train": Path(folder) / f"train.{first}", "validation": Path(folder) / f"validation.{second}"}
        written = {
            "train": FORMATS[first](files["train"], train),
            "validation": FORMATS[second](files["validation"], validation),
        }
        if None in written.values():
            return  # no such file can be written
        recipe = Recipe.parse({"data": {split: str(path) for split, path in files.items()}})
        spec, refused = inspected(recipe)
        if spec is None:
            assert not clean(kind, train, validation), refused
            assert re.search(r"(row|line) [1-9]|at least two are needed", refused), refused
            assert any(str(path) in refused for path in files.values()), refused
            return
        task = TextClassification(spec, Letters())
        for split, rows in read_tables(recipe, None).items():
            targets = task.targets(task.encode(rows.table.to_pylist()))
            assert [task.labels[target] for target in targets] == written[split]
        bare = [unicodedata.normalize("NFC", label.strip()) for label in task.labels]
        assert all(bare)
        assert len(set(bare)) == len(bare)
        if kind == "ints":
            assert list(map(int, task.labels)) == sorted(map(int, task.labels))


def test_a_float_that_is_none_is_no_class(tmp_path: Path) -> None:
    for wrong in (math.nan, math.inf, -math.inf):
        as_parquet(tmp_path / "rows.parquet", [0.5, 1.5, wrong])
        with pytest.raises(DataError, match=f"row 3: label {wrong!r} names no class"):
            inspect(Recipe.parse({"data": {"train": str(tmp_path / "rows.parquet")}}))
