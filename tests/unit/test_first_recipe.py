"""Somebody's rows become a recipe: the task and the columns that they are for, rows held back, and what is refused."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_lora.data.files import find_files
from ray_lora.data.first_recipe import begin
from ray_lora.data.guess import guess, guess_table
from ray_lora.data.held_back import hold_back
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Recipe
from tests.conftest import sentences

TEXTS = sentences(60)
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
PICTURE, SOUND = {"bytes": PNG, "path": "a.png"}, {"bytes": b"RIFF\0\0\0\0WAVEfmt ", "path": "a.wav"}
NAMES = ["cat", "dog", "cow"]


def rows(**columns: Any) -> pa.Table:
    """A table of sixty rows; a function gives each row's value."""
    return pa.table({name: [of(row) for row in range(60)] for name, of in columns.items()})


CASES: dict[str, tuple[pa.Table, dict[str, Any], dict[str, str]]] = {
    "labels": (
        rows(id=lambda n: n, review=TEXTS.__getitem__, stars=lambda n: 1 + n % 5),
        {"type": "text-classification"},
        {"text": "review", "label": "stars"},
    ),
    "a rare label": (
        rows(text=TEXTS.__getitem__, label=lambda n: "spam" if n % 20 == 0 else "ham"),
        {"type": "text-classification", "class_weights": "balanced"},
        {},
    ),
    "pairs": (
        rows(premise=TEXTS.__getitem__, hypothesis=lambda n: TEXTS[-n], label=lambda n: n % 3),
        {"type": "text-classification"},
        {"text": "premise", "text_pair": "hypothesis"},
    ),
    "several labels": (
        rows(text=TEXTS.__getitem__, topics=lambda n: ["price", "quality"][: 1 + n % 2]),
        {"type": "text-classification", "problem_type": "multi_label_classification"},
        {"label": "topics"},
    ),
    "labels between bars": (
        rows(text=TEXTS.__getitem__, topics=lambda n: ["price|quality", "price", "service"][n % 3]),
        {"type": "text-classification", "problem_type": "multi_label_classification"},
        {"label": "topics"},
    ),
    "numbers": (
        rows(text=TEXTS.__getitem__, score=lambda n: n / 7),
        {"type": "text-classification", "problem_type": "regression"},
        {"label": "score"},
    ),
    "tags": (
        rows(
            words=lambda n: TEXTS[n].split(),
            ner_tags=lambda n: ["B-x" if word < "d" else "O" for word in TEXTS[n].split()],
        ),
        {"type": "token-classification"},
        {"tokens": "words", "tags": "ner_tags"},
    ),
    "tags by index": (
        rows(tokens=lambda n: TEXTS[n].split(), tags=lambda n: [len(word) % 3 for word in TEXTS[n].split()]),
        {"type": "token-classification"},
        {},
    ),
    "questions": (
        rows(
            question=TEXTS.__getitem__,
            context=lambda n: f"{TEXTS[n]} at noon",
            answers=lambda n: {"text": ["noon"], "answer_start": [len(TEXTS[n]) + 4]},
        ),
        {"type": "question-answering"},
        {},
    ),
    "prompts": (
        rows(instruction=TEXTS.__getitem__, output=lambda n: TEXTS[-n]),
        {"type": "text-generation", "rows": "prompt"},
        {"prompt": "instruction", "completion": "output"},
    ),
    "dialogues": (
        rows(conversation=lambda n: [{"role": "user", "content": TEXTS[n]}, {"role": "assistant", "content": "yes"}]),
        {"type": "text-generation", "rows": "messages"},
        {"messages": "conversation"},
    ),
    "texts alone": (rows(content=TEXTS.__getitem__), {"type": "text-generation", "rows": "text"}, {"text": "content"}),
    "pictures": (
        rows(image=lambda n: PICTURE, animal=lambda n: NAMES[n % 3]),
        {"type": "image-classification"},
        {"label": "animal"},
    ),
    "pictures by path": (
        rows(file=lambda n: f"pictures/{n}.jpg", label=lambda n: NAMES[n % 3]),
        {"type": "image-classification"},
        {"image": "file"},
    ),
    "masks": (
        rows(image=lambda n: PICTURE, annotation=lambda n: PICTURE),
        {"type": "image-segmentation"},
        {"mask": "annotation"},
    ),
    "boxes": (
        rows(image=lambda n: PICTURE, objects=lambda n: {"bbox": [[0.0, 0.0, 1.0, 1.0]], "category": [n % 3]}),
        {"type": "object-detection"},
        {},
    ),
    "speech": (
        rows(audio=lambda n: SOUND, sentence=TEXTS.__getitem__),
        {"type": "automatic-speech-recognition"},
        {"text": "sentence"},
    ),
    "histories": (
        rows(items=lambda n: [n, n + 1, n * 2], next_item=lambda n: n % 7),
        {"type": "sequential-recommendation"},
        {"next": "next_item"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_task_of_rows(name: str) -> None:
    table, task, columns = CASES[name]
    found = guess_table(table, "rows")
    assert found.task == task
    assert found.columns == columns
    assert found.why
    assert guess_table(table, "rows", str(task["type"])).task == task


def test_what_cannot_be_told_is_said() -> None:
    with pytest.raises(DataError, match=r"it cannot be told what its rows are for from the columns a \(numbers\)"):
        guess_table(rows(a=lambda n: n / 7), "x.csv")
    with pytest.raises(DataError, match="it cannot be told for question-answering from the columns text"):
        guess_table(CASES["numbers"][0], "x.csv", "question-answering")


def test_a_csv_becomes_a_recipe_that_runs(tmp_path: Path) -> None:
    lines = ["id,review,stars", *(f'{n},"{text}",{"good" if n % 4 else "bad"}' for n, text in enumerate(TEXTS))]
    (tmp_path / "Shop reviews.csv").write_text("\n".join([*lines, f'99,"{TEXTS[0]}",bad']))
    begun = begin([str(tmp_path / "Shop reviews.csv")], tmp_path)
    recipe = Recipe.load(Path(str(begun["recipe"])))
    assert (recipe.name, recipe.task.type) == ("shop-reviews", "text-classification")
    assert recipe.data.columns == {"text": "review", "label": "stars"}
    parts = [pq.read_table(str(path)) for path in (recipe.data.train, recipe.data.validation)]
    train, validation = (part.column("review").to_pylist() for part in parts)
    assert sorted([*train, *validation]) == sorted([*TEXTS, TEXTS[0]])
    assert not set(train) & set(validation)
    assert set(parts[1].column("stars").to_pylist()) == {"good", "bad"}
    with pytest.raises(RecipeError, match="is there; take it away, or give another --name"):
        begin([str(tmp_path / "Shop reviews.csv")], tmp_path)


def test_a_folder_that_tells_its_splits(tmp_path: Path) -> None:
    (tmp_path / "moods").mkdir()
    for split in ("train", "valid"):
        pq.write_table(CASES["a rare label"][0], tmp_path / "moods" / f"{split}.parquet")
    begun = begin([str(tmp_path / "moods")], tmp_path / "out", base="some/model")
    recipe = Recipe.load(Path(str(begun["recipe"])))
    assert [path.name for path in map(Path, (str(begun["train"]), str(begun["validation"])))] == [
        "train.parquet", "valid.parquet",
    ]  # fmt: skip
    assert recipe.base.model == "some/model"
    assert recipe.name == "moods"


def test_no_test_split_chooses(tmp_path: Path) -> None:
    (tmp_path / "moods").mkdir()
    train = CASES["a rare label"][0]
    held = train.set_column(0, "text", pa.array([f"later {text}" for text in TEXTS]))
    for split, part in (("train", train), ("test", held)):
        pq.write_table(part, tmp_path / "moods" / f"{split}.parquet")
    begun = begin([str(tmp_path / "moods")], tmp_path / "out")
    parts = [pq.read_table(str(begun[split])).column("text").to_pylist() for split in ("train", "validation")]
    assert sorted(parts[0] + parts[1]) == sorted(TEXTS)
    assert "test.parquet" not in Path(str(begun["recipe"])).read_text()


def test_pictures_in_folders(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    for split in ("train", "validation"):
        for name in NAMES:
            folder = tmp_path / "animals" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{number}.png").write_bytes(png)
    begun = begin([str(tmp_path / "animals")], tmp_path)
    assert begun["task"] == {"type": "image-classification"}
    assert begun["train"] == begun["validation"] == str(tmp_path / "animals")
    assert len(find_files(str(tmp_path / "animals"), "validation")) == 3


def test_wrong_rows_are_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(json.dumps({"text": t, "label": n % 2}) for n, t in enumerate(TEXTS))
    )
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"text": " ", "label": 1}))
    with pytest.raises(DataError, match=r"rows\.jsonl, row 61: text ' ' is empty"):
        begin([str(tmp_path / "rows.jsonl")], tmp_path, name="mine")
    assert not list(tmp_path.glob("*.yaml"))
    with pytest.raises(RecipeError, match="'text-clasification' is not a task; did you mean 'text-classification'"):
        begin([str(tmp_path / "rows.jsonl")], tmp_path, task="text-clasification")


def test_rows_held_back() -> None:
    draw = random.Random(0)
    table = pa.table({"text": draw.choices(TEXTS[:40], k=200), "label": draw.choices("abbbbb", k=200)})
    train, held = hold_back(table, 0.2, ["text"], "label")
    assert train.num_rows + held.num_rows == 200
    assert not set(train.column("text").to_pylist()) & set(held.column("text").to_pylist())
    assert 25 <= held.num_rows <= 45
    assert hold_back(table, 0.2, ["text"], "label")[1].equals(held)
    assert set(Counter(held.column("label").to_pylist())) == {"a", "b"}
    with pytest.raises(DataError, match="9 rows are too few to hold some back"):
        hold_back(table.slice(0, 9), 0.2, ["text"])
    with pytest.raises(DataError, match="every row asks the same"):
        hold_back(pa.table({"text": ["a"] * 20}), 0.2, ["text"])


def test_annotated_pictures_are_boxes(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    told = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(told))
    files = find_files(str(tmp_path / "instances.json"))
    assert guess(files).task == {"type": "object-detection"}
    with pytest.raises(DataError, match="which is object-detection and not text-classification"):
        guess(files, "text-classification")
