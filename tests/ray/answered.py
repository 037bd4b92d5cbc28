"""Files of rows for the tests that answer them: a store of five classifiers, three files, and what is right."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from ray_lora.inference.pinned import pin
from ray_lora.inference.tables import TableAnswers
from ray_lora.store import open_store
from tests.unit.serving_world import WORDS, card, make_adapter, make_base

NAMES = [f"c{number}" for number in range(5)]
FILES, ROWS, GROUP = 3, 120, 30


def make_world(root: Path) -> Path:
    """`root` with base/, store/ of five classifiers, rows/ of three files of four row groups, and right.json."""
    base = make_base(root / "base")
    for number, name in enumerate(NAMES):
        card(make_adapter(base, root / "store" / name, seed=number, rank=4), base, ["no", "yes"])
    drawn = random.Random(0)
    (root / "rows").mkdir()
    for file in range(FILES):
        rows = [
            {"id": file * ROWS + row, "text": " ".join(drawn.choices(WORDS, k=6)), "customer": drawn.choice(NAMES)}
            for row in range(ROWS)
        ]
        rows[7]["text"], rows[9]["customer"] = " ", "nobody"
        table = pa.Table.from_pylist(rows)
        pa.parquet.write_table(table, root / "rows" / f"{file}.parquet", row_group_size=GROUP)
    return root


def right_answers(world: Path) -> list[dict[str, Any]]:
    """All rows with their answers, from one process."""
    table = pa.concat_tables([pa.parquet.read_table(path) for path in sorted((world / "rows").iterdir())])
    refs = table.column("customer").to_pylist()
    store = open_store(str(world / "store"))
    tables = TableAnswers(store, pin(store, [*NAMES, "nobody"]), dtype="float32")
    answers = tables.answer(table, refs)
    tables.close()
    return [
        row | {"prediction": answer.prediction, "error": answer.error}
        for row, answer in zip(table.to_pylist(), answers, strict=True)
    ]


def check(output: Path, right: list[dict[str, Any]]) -> None:
    """Every row is there once, in its order, with its answer."""
    found = pa.parquet.read_table(output).to_pylist()
    assert [row["id"] for row in found] == [row["id"] for row in right]
    for row, wanted in zip(found, right, strict=True):
        assert (row["text"], str(row["error"])[:30]) == (wanted["text"], str(wanted["error"])[:30])  # no store's place
        if wanted["error"] is None:
            assert row["prediction"]["label"] == wanted["prediction"]["label"]
            assert row["prediction"]["score"] == pytest.approx(wanted["prediction"]["score"], abs=1e-5)
            assert (row["adapter"], row["version"]) == (row["customer"], 1)
        else:
            assert row["prediction"] is None
