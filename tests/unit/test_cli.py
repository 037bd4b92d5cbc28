"""The command line: its last line, its exit codes, and one readable message for each wrong input."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.bases.load import load_base
from ray_lora.cli import main
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import DataError, RayLoraError, RecipeError
from ray_lora.recipe import BaseSpec, LoraSpec, Recipe
from ray_lora.running.doctor import examine
from ray_lora.tasks.question_answering import QuestionAnsweringSpec
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.conftest import rated

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, standard output, standard error)."""

    def command(*arguments: Any) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture(scope="module")
def folder(tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with random tensors of rank 4 for a two-label task."""
    base = load_base(BaseSpec(model=str(tiny_bert_folder), dtype="float32"))
    engine = AdapterEngine(base, slots=1, max_rank=4)
    slot = engine.init(LoraSpec(r=4), HeadSpec("AutoModelForSequenceClassification", 2), seed=0, peft_type="SEQ_CLS")
    task = TextClassificationSpec(labels=("negative", "positive"))
    adapter = engine.export(slot, Card(task=task, metrics={"accuracy": 0.5}))
    folder = tmp_path_factory.mktemp("adapters") / "moods"
    adapter.save(folder)
    return folder


@pytest.fixture
def store(folder: Path, tmp_path: Path, run: Run) -> Path:
    """A folder store that holds `moods@1`."""
    code, _, said = run("adapters", "import", folder, "moods", "--store", tmp_path / "store")
    assert code == 0, said
    return tmp_path / "store"


@pytest.fixture
def recipe(tiny_bert_folder: Path, tmp_path: Path) -> Path:
    """A recipe on the tiny base whose files are there."""
    for split, seed in (("train", 0), ("validation", 1)):
        pa.parquet.write_table(pa.Table.from_pylist(rated(32, seed)), tmp_path / f"{split}.parquet")
    tree = {
        "name": "moods",
        "base": {"model": str(tiny_bert_folder), "dtype": "float32"},
        "task": {"labels": ["negative", "positive"]},
        "data": {split: str(tmp_path / f"{split}.parquet") for split in ("train", "validation")},
        "tracking": {"uri": None},
        "store": str(tmp_path / "store"),
        "output_dir": str(tmp_path / "runs"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


def last(out: str) -> dict[str, Any]:
    """The JSON object on the last line."""
    value = json.loads(out.splitlines()[-1])
    assert isinstance(value, dict)
    return value


# ---------------------------------------------------------------- what it does


def test_help_names_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name in "train search evaluate predict explain merge prune adapters serve plan schema".split():
        assert f"  {name} " in out
    code, out, _ = run("adapters", "--help")
    assert all(f"  {name} " in out for name in ("list", "show", "alias", "import", "export", "rm"))


def test_schema_is_the_recipes(run: Run) -> None:
    assert last(run("schema", "--json")[1]) == Recipe.model_json_schema()
    assert json.loads(run("schema")[1]) == Recipe.model_json_schema()


def test_plan_says_what_it_costs(run: Run, recipe: Path) -> None:
    code, out, said = run("plan", recipe, "lora.r=2", "--json")
    assert code == 0, said
    assert last(out)["rows"] == {"train": 32, "validation": 32}
    assert last(out)["foreseen"]["kind"] == "training"
    assert "a process will train" in said
    code, out, said = run("plan", recipe, "--no-probe")
    assert (code, "slots" in out, "by a probe's peak" in out, "will train" in said) == (0, True, False, False)


def test_adapters_come_and_go(run: Run, store: Path, folder: Path, tmp_path: Path) -> None:
    where = ("--store", store, "--json")
    code, out, _ = run("adapters", "import", folder, "moods", "--alias", "champion", *where)
    assert (code, last(out)["ref"]) == (0, "moods@2")
    aliased = last(run("adapters", "alias", "moods@1", "old", *where)[1])
    assert aliased == {"name": "moods", "alias": "old", "version": 1}
    listed = last(run("adapters", "list", *where)[1])["adapters"]
    assert [(entry["ref"], entry["aliases"]) for entry in listed] == [("moods@1", ["old"]), ("moods@2", ["champion"])]
    shown = last(run("adapters", "show", "moods@old", *where)[1])
    assert shown["version"] == 1
    assert shown["task"]["labels"] == ["negative", "positive"]
    code, out, _ = run("adapters", "export", "moods@old", tmp_path / "out", *where)
    assert Adapter.load(tmp_path / "out").sha256 == last(out)["sha256"] == shown["sha256"]
    assert run("adapters", "alias", "moods@1", "old", "--remove", *where)[0] == 0
    assert last(run("adapters", "rm", "moods@1", *where)[1]) == {"removed": "moods@1"}
    assert [entry["ref"] for entry in last(run("adapters", "list", *where)[1])["adapters"]] == ["moods@2"]


def test_tables_for_people_name_the_adapter(run: Run, store: Path) -> None:
    assert "moods" in run("adapters", "list", "--store", store)[1]
    assert "negative" in run("adapters", "show", "moods", "--store", store)[1]
    assert "holds no adapters" in run("adapters", "list", "--store", store.parent / "empty")[1]


def test_predict_and_evaluate_agree(run: Run, store: Path, recipe: Path) -> None:
    rows = rated(32, 1)
    lines = recipe.parent / "rows.jsonl"
    lines.write_text("\n".join(json.dumps({"text": row["text"]}) for row in rows))
    code, out, said = run("predict", "moods", "--input-file", lines, "--store", store, "--json")
    assert code == 0, said
    answers = last(out)["predictions"]
    right = sum(answer["label"] == row["label"] for answer, row in zip(answers, rows, strict=True))
    held_out = recipe.parent / "validation.parquet"
    code, out, said = run("evaluate", "moods", "--data", held_out, "--store", store, "--json")
    assert code == 0, said
    assert last(out)["metrics"]["accuracy"] == pytest.approx(right / len(rows))
    assert last(out)["rows"] == 32
    for name, part in {"test/a": rows[:9], "test/b": rows[9:], "train/c": rated(8, 2)}.items():
        (path := recipe.parent / f"parted/{name}.jsonl").parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(json.dumps(row) for row in part))
    for parted in ("parted", "parted/test/*.jsonl"):
        code, again, said = run("evaluate", "moods", "--data", recipe.parent / parted, "--store", store, "--json")
        assert code == 0, said
        assert last(again) | {"data": ""} == last(out) | {"data": ""}


@pytest.mark.parametrize(
    ("task", "labels", "train", "metrics"),
    [
        (
            {"labels": ["bad", "good"], "problem_type": "multi_label_classification"},
            2,
            "text,text_pair,label\na good film,a day,good\na day,so sad,bad|good\n",
            {"f1_macro", "f1_micro", "accuracy"},
        ),
        (
            {"problem_type": "regression"},
            1,
            "text,text_pair,label\na good film,a day,1\na day,so sad,-0.5\n",
            {"mse", "mae", "pearson"},
        ),
    ],
)
def test_pairs_of_several_labels_and_of_numbers(
    run: Run,
    recipe: Path,
    tmp_path: Path,
    task: dict[str, Any],
    labels: int,
    train: str,
    metrics: set[str],
) -> None:
    (tmp_path / "rows.csv").write_text(train)
    (tmp_path / "asked.jsonl").write_text('{"text": "a day", "text_pair": "so sad", "label": 7}\n"a day"\n')
    where = ("--store", tmp_path / "store", "--json")
    tree = json.loads(recipe.read_text()) | {"task": task, "data": {"train": str(tmp_path / "rows.csv")}}
    recipe.write_text(json.dumps(tree))
    code, out, said = run("plan", recipe, "--no-probe", "--json")
    assert code == 0, said
    assert last(out)["task"] == {"type": "text-classification", **task}
    base = load_base(BaseSpec(model=tree["base"]["model"], dtype="float32"))
    engine = AdapterEngine(base, slots=1, max_rank=4)
    torch.manual_seed(0)
    slot = engine.init(LoraSpec(r=4), HeadSpec("AutoModelForSequenceClassification", labels), 0, peft_type="SEQ_CLS")
    engine.write(slot, {key: value + 0.5 * torch.randn(value.shape) for key, value in engine.read(slot).items()})
    engine.export(slot, Card(base=tree["base"]["model"])).save(tmp_path / "theirs")
    told = json.dumps({"type": "text-classification", **task})
    code, _, said = run("adapters", "import", tmp_path / "theirs", "own", "--task", told, *where)
    assert code == 0, said
    code, out, said = run("predict", "own", "--input-file", tmp_path / "asked.jsonl", *where)
    assert code == 0, said
    pair, alone = last(out)["predictions"]
    assert pair["label"] == alone["label"] or labels > 1
    assert pair["score"] != pytest.approx(alone["score"], abs=1e-6)
    given = ('{"text": "a day", "text_pair": "so sad"}', "a day", '{"text": "a day"}', "{")
    code, out, said = run("predict", "own", *given, *where)
    assert code == 0, said
    again, lone, written = last(out)["predictions"][:3]
    assert [again["label"], lone["label"]] == [pair["label"], alone["label"]]
    assert [again["score"], lone["score"]] == pytest.approx([pair["score"], alone["score"]], abs=1e-6)
    assert written["score"] != pytest.approx(alone["score"], abs=1e-6)  # a text, whatever is written in it
    code, out, said = run("evaluate", "own", "--data", tmp_path / "rows.csv", *where)
    assert code == 0, said
    assert set(last(out)["metrics"]) == metrics
    (tmp_path / "rows.csv").write_text(train + "a day,,zzz\n")
    said = refused(run, "evaluate", "own", "--data", tmp_path / "rows.csv", *where)
    assert "rows.csv, row 3: text_pair '' is empty" in said


def test_inputs_of_a_file_are_those_of_a_table(run: Run, store: Path, tmp_path: Path) -> None:
    where = ("--store", store, "--json", "--parameters", '{"top_k": 2}')
    asked = ["good\u2028film", "007", "bad\x85day"]
    right = last(run("predict", "moods", *asked, *where)[1])["predictions"]
    files = {
        "a.jsonl": "\ufeff" + "".join(json.dumps(text, ensure_ascii=False) + "\r\n" for text in asked),
        "b.jsonl": "".join(json.dumps({"text": text, "more": 1}, ensure_ascii=False) + "\n\n" for text in asked),
        "c.csv": "\ufefftext,more\n" + "".join(f"{text},1\n" for text in asked),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode())
        code, out, said = run("predict", "moods", "--input-file", tmp_path / name, *where)
        assert code == 0, said
        assert last(out)["predictions"] == right


def test_texts_that_are_cut_are_counted(
    run: Run, store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": "good " * count, "label": "positive"} for count in (3, 62, 63, 200)]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "long.parquet")
    assert run("evaluate", "moods", "--data", tmp_path / "long.parquet", "--store", store)[0] == 0
    assert caplog.messages == [
        f"{tmp_path}/long.parquet: 2 of 4 rows are longer than what the base takes, 64 tokens, and are cut"
    ]


def test_a_question_is_a_row(run: Run, tiny_bert_folder: Path, tmp_path: Path) -> None:
    """On the command line as JSON, and as a file's row; a bare text lacks its context."""
    engine = AdapterEngine(load_base(BaseSpec(model=str(tiny_bert_folder), dtype="float32")), slots=1, max_rank=4)
    slot = engine.init(LoraSpec(r=4), HeadSpec("AutoModelForQuestionAnswering", 2), seed=0, peft_type="QUESTION_ANS")
    engine.export(slot, Card(task=QuestionAnsweringSpec(max_question_len=8))).save(tmp_path / "asked")
    where = ("--store", tmp_path / "store", "--json")
    assert run("adapters", "import", tmp_path / "asked", "asked", "--store", tmp_path / "store")[0] == 0
    row = {"question": "rain ?", "context": "the quiet rain and the snow"}
    [answer] = last(run("predict", "asked", "--input", json.dumps(row), *where)[1])["predictions"]
    assert row["context"][answer["start"] : answer["end"]] == answer["answer"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"answers": "rain"}))
    data = ("--data", tmp_path / "rows.jsonl")
    assert last(run("evaluate", "asked", *data, *where)[1])["metrics"].keys() == {"f1", "exact_match"}
    assert "has no 'context'; write" in refused(run, "predict", "asked", "--input", "rain ?", *where)
    assert "is no JSON" in refused(run, "predict", "asked", "--input", "{rain", *where)


def test_predict_takes_texts_and_parameters(run: Run, store: Path) -> None:
    given = ("predict", "moods@1", "--input", "good film", "bad film", "--store", store)
    answers = last(run(*given, "--parameters", '{"top_k": 2}', "--json")[1])["predictions"]
    assert [len(answer) for answer in answers] == [2, 2]
    assert run(*given)[1].count("film") == 2


def test_columns_of_the_file_are_mapped(run: Run, store: Path, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"review": row["text"], "mood": row["label"]} for row in rated(4)])
    pa.csv.write_csv(table, tmp_path / "rows.csv")
    given = ("evaluate", "moods", "--data", tmp_path / "rows.csv", "--store", store)
    assert run(*given, "--column", "text=review", "--column", "label=mood")[0] == 0
    code, _, said = run(*given)
    assert (code, "'text'" in said, "review" in said) == (2, True, True)


def test_several_adapters_are_compared_by_slice(run: Run, store: Path, tmp_path: Path, folder: Path) -> None:
    """Each adapter's scores are those that it has alone, on all rows and on each value's."""
    other = Adapter.load(folder)
    head = {name: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)) for name, tensor in
            other.head.items()}  # fmt: skip
    replace(other, head=head, card=other.card.model_copy(update={"sha256": None})).save(tmp_path / "other")
    assert run("adapters", "import", tmp_path / "other", "other", "--store", store)[0] == 0
    rows = [row | {"shop": "ab"[at % 2]} for at, row in enumerate(rated(40, 1))]
    files = {"all": rows, "a": rows[::2], "b": rows[1::2]}
    for name, mine in files.items():
        pa.parquet.write_table(pa.Table.from_pylist(mine), tmp_path / f"{name}.parquet")
    where = ("--store", store, "--json")
    code, out, said = run("evaluate", "moods", "other", "--data", tmp_path / "all.parquet", "--by", "shop", *where)
    assert code == 0, said
    told = last(out)
    assert (told["rows"], told["metric"], len(told["scores"])) == (40, "accuracy", 6)
    assert "the base alone" in told["notes"][0]
    for line in told["scores"]:
        path = tmp_path / f"{line['slice'] or 'all'}.parquet"
        alone = last(run("evaluate", line["ref"].partition("@")[0], "--data", path, *where)[1])
        assert (line["sha256"], line["rows"]) == (alone["sha256"], alone["rows"])
        assert {name: score["value"] for name, score in line["metrics"].items()} == pytest.approx(alone["metrics"])
        assert all(score["low"] <= score["value"] <= score["high"] for score in line["metrics"].values())
    for name in (None, "a", "b"):
        mine = [line for line in told["scores"] if line["slice"] == name]
        best = max(mine, key=lambda line: line["metrics"]["accuracy"]["value"])
        assert [line["best"] for line in mine] == [line is best for line in mine]
    text = run("evaluate", "moods", "other", "--data", tmp_path / "all.parquet", "--by", "shop", "--store", store)[1]
    assert "other@1" in text
    assert "all rows" in text
    pa.parquet.write_table(pa.Table.from_pylist([{"text": "a day"}]), tmp_path / "bare.parquet")
    assert "has no column 'label'" in refused(run, "evaluate", "moods", "other", "--data", tmp_path / "bare.parquet",
                                              "--store", store)  # fmt: skip
    assert "to score by" in refused(run, "evaluate", "moods", "--data", tmp_path / "a.parquet", "--by", "shp",
                                    "--store", store)  # fmt: skip
    assert "is not in the store" in refused(run, "evaluate", "moods", "moodz", "--data", tmp_path / "a.parquet",
                                            "--store", store)  # fmt: skip


TABLES = [
    (("--data", "x.csv", "--output", "o"), "give the ref of the adapter"),
    (("moods", "--data", "x.csv", "--adapter-column", "c", "--output", "o"), "and not both"),
    (("moods", "--data", "x.csv"), "give --output FOLDER"),
    (("moods", "--data", "x.csv", "--output", "o", "--format", "csv"), "must be one of parquet, jsonl"),
    (("moods", "a text", "--data", "x.csv", "--output", "o"), "leave the other inputs out"),
    (("moods", "a text", "--output", "o"), "go with --data"),
    (("moods", "--data", "x.csv", "--output", "o"), "does not exist"),
    ((), "no adapter is named"),
]


@pytest.mark.parametrize(("arguments", "said"), TABLES)
def test_tables_that_cannot_be_answered(run: Run, store: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(run, "predict", *arguments, "--store", store)


def test_what_is_printed_on_the_way_goes_to_standard_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(recipe: Recipe) -> dict[str, Any]:
        print("on the way")
        return {"ref": "a@1", "adapter": Path("x"), "metrics": {"accuracy": 1.0}, "seconds": 1.0}

    monkeypatch.setattr("ray_lora.running.trainer.train_recipe", noisy)
    code, out, said = run("train", "examples/tweets.yaml", "--json")
    assert (code, out.count("\n"), last(out)["ref"]) == (0, 1, "a@1")
    assert "on the way" in said


# ---------------------------------------------------------------- what it refuses

USAGE = [("trian",), ("train",), ("train", "a.yaml", "--jsn"), ("adapters", "alias", "a"), ("serve", "--port", "x")]


@pytest.mark.parametrize("arguments", USAGE)
def test_wrong_usage_is_two(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, said = run(*arguments)
    assert (code, out) == (2, "")
    assert "Error" in said


def refused(run: Run, *arguments: Any) -> str:
    """The message of a refused command."""
    code, out, said = run(*arguments, "--json")
    assert code == 2, said
    assert out == ""
    assert "Traceback" not in said
    assert said.startswith("ray-lora: ")
    return said


WRONG_RECIPES = [
    ("lora.rnk=3", "did you mean 'lora.r"),
    ("lora.r=0", "lora.r"),
    ("lora.r=33", "width"),
    ("lora.target_modules=[q_proj]", "match no layer"),
    ("data.columns={text: review}", "no column 'review'"),
    ("data.train=nowhere.parquet", "does not exist"),
    ("task.labels=[good, bad]", "is not one of 'good', 'bad'"),
    ("base.model=/no/such/folder", "/no/such/folder"),
    ("task.max_length=65", "task.max_length is 65, the base has 64 positions; set it to 64 or less"),
    ("task.labels=[no, yes]", "put each in quotes"),
    ("search.space={}", "search space is empty"),
    ("search.metric=accurracy", "did you mean 'accuracy'"),
]


@pytest.mark.parametrize(("override", "said"), WRONG_RECIPES)
def test_wrong_recipes_are_refused_by_plan(run: Run, recipe: Path, override: str, said: str) -> None:
    assert said in refused(run, "plan", recipe, override, "--no-probe")


WRONG_FILES = [
    ("empty.parquet", b"", "is empty"),
    ("torn.parquet", b"PAR1 and then nothing", "is broken"),
    ("torn.jsonl", b'{"text": "a", "label": "positive"}\n{"text": \n', "line 2"),
    ("rows.xlsx", b"rows", "parquet, csv, jsonl"),
    ("head.csv", b"text,label\n", "no rows"),
    ("hole.csv", b"text,label\ngood,positive\nbad,\n", "row 2"),
    ("latin-1.csv", b"text,label\ngood,positive\nb\xe9d,negative\n", "row 2 is not UTF-8"),
    ("utf-16.csv", "text,label\ngood,positive\n".encode("utf-16"), "is UTF-16; save the file as UTF-8"),
    ("twice.csv", b"text,text,label\ngood,good,positive\n", "2 columns 'text'"),
    ("ragged.csv", b"text,label\ngood, so good,positive\n", "row 1 (line 2): 3 cells"),
    ("blank.csv", b"text,label\ngood, \n", "row 1: label ' ' is blank"),
    ("list.jsonl", b'["good", "positive"]\n', "line 1 is a list"),
    ("types.jsonl", b'{"text": "a", "label": "positive"}\n{"text": "b", "label": 1}\n', "line 2: 'label'"),
    ("unseen.csv", b"text,label\ngood,positive\nbad,lukewarm\n", "lukewarm"),
]


@pytest.mark.parametrize(("name", "content", "said"), WRONG_FILES, ids=[name for name, *_ in WRONG_FILES])
def test_wrong_files_are_named(
    run: Run, recipe: Path, store: Path, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    for arguments in (
        ("plan", recipe, f"data.train={tmp_path / name}", "--no-probe"),
        ("evaluate", "moods", "--data", tmp_path / name, "--store", store),
    ):
        message = refused(run, *arguments)
        assert name in message
        assert said in message


def test_new_rows_of_people_need_people(run: Run, recipe: Path, tmp_path: Path) -> None:
    told = ("personal", recipe, f"output_dir={tmp_path / 'runs'}", f"store={tmp_path / 'store'}", "personal.key=text")
    code, _, said = run(*told, "--update", "a.jsonl", "--follow", "rows")
    assert (code, said) == (
        2,
        "ray-lora: --update takes rows once, --follow as they come, --forget deletes; give one of them\n",
    )
    code, _, said = run(*told, "--update", "a.jsonl")
    assert code == 2
    assert "has no people yet; run the same command without --update first" in said


def test_wrong_refs_are_named(run: Run, store: Path) -> None:
    where = ("--store", store)
    assert "did you mean 'moods'" in refused(run, "predict", "mods", "--input", "good", *where)
    assert "version 7" in refused(run, "adapters", "show", "moods@7", *where)
    assert "alias" in refused(run, "adapters", "show", "moods@chmpion", *where)
    assert "not a ref" in refused(run, "adapters", "rm", "../moods", *where)


def test_wrong_inputs_are_named(run: Run, store: Path, tmp_path: Path) -> None:
    where = ("predict", "moods", "--store", store)
    assert "no input" in refused(run, *where)
    assert "cannot be read" in refused(run, *where, "--input-file", tmp_path / "no.jsonl")
    (tmp_path / "torn.jsonl").write_text('"good"\n{"text"\n')
    assert "line 2" in refused(run, *where, "--input-file", tmp_path / "torn.jsonl")
    (tmp_path / "other.jsonl").write_text('{"txt": "good"}\n')
    assert "'text'" in refused(run, *where, "--input-file", tmp_path / "other.jsonl")
    assert "input 2: text ' ' is empty" in refused(run, *where, "--input", "good", " ")
    (tmp_path / "latin.jsonl").write_bytes(b'"good"\n"b\xe9d"\n')
    assert "line 2 is not UTF-8" in refused(run, *where, "--input-file", tmp_path / "latin.jsonl")
    assert "not JSON" in refused(run, *where, "--input", "good", "--parameters", "top_k=2")
    assert "top_k" in refused(run, *where, "--input", "good", "--parameters", '{"top_k": 0}')


def test_another_base_is_refused(run: Run, store: Path, other_bert_folder: Path, folder: Path) -> None:
    assert "trained on base" in refused(
        run, "predict", "moods", "--input", "good", "--store", store, "--base", other_bert_folder
    )
    said = refused(run, "adapters", "import", folder, "--store", store, "--base", other_bert_folder)
    assert "trained on base" in said


def test_what_is_no_adapter_is_not_imported(run: Run, store: Path, tmp_path: Path) -> None:
    assert "adapter_config.json" in refused(run, "adapters", "import", tmp_path, "x", "--store", store)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    assert "IA3" in refused(run, "adapters", "import", tmp_path, "x", "--store", store)
    listed = last(run("adapters", "list", "--store", store, "--json")[1])["adapters"]
    assert [entry["name"] for entry in listed] == ["moods"]


def test_export_overwrites_nothing(run: Run, store: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    assert "not empty" in refused(run, "adapters", "export", "moods", tmp_path / "full", "--store", store)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_wrong_settings_of_the_endpoint_are_named(run: Run, store: Path) -> None:
    assert "did you mean 'slots'" in refused(run, "serve", "slot=3", "--store", store)
    assert "slots" in refused(run, "serve", "slots=0", "--store", store)
    assert "KEY=VALUE" in refused(run, "serve", "slots", "--store", store)


class Wrapped(Exception):
    """What Ray hands back when a worker raises: the cause is an attribute."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a long traceback of a worker")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "code"),
    [(Wrapped(DataError("row 3")), 2), (RecipeError("row 3"), 2), (RayLoraError("row 3"), 1)],
    ids=["in a worker", "here", "a job failed"],
)
def test_exit_code_of_errors(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int) -> None:
    def fail(recipe: Recipe) -> dict[str, Any]:
        raise error

    monkeypatch.setattr("ray_lora.running.trainer.train_recipe", fail)
    monkeypatch.setattr("ray_lora.running.local_ray.start_ray", lambda: None)
    assert run("train", "examples/tweets.yaml") == (code, "", "tweets: getting ready\nray-lora: row 3\n")


def test_what_is_not_the_users_fault_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_lora.running.trainer.train_recipe", lambda recipe: 1 / 0)
    monkeypatch.setattr("ray_lora.running.local_ray.start_ray", lambda: None)
    with pytest.raises(ZeroDivisionError):
        run("train", "examples/tweets.yaml")


# ---------------------------------------------------------------- as a program


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ray_lora", *arguments], capture_output=True, text=True, check=False)


def test_program_exit_codes() -> None:
    done = program("schema", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert last(done.stdout)["title"] == "Recipe"
    done = program("plan", "no.yaml", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ray-lora: recipe 'no.yaml' does not exist; give the path of a YAML recipe\n"
    assert program("plan").returncode == 2


def test_help_is_quick() -> None:
    script = (
        "import sys; from ray_lora.cli import main; main(['--help']); "
        "print(*{'torch', 'ray', 'mlflow', 'transformers', 'pyarrow'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


def missing(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


def test_the_doctor_says_what_is_there_and_what_is_wrong(
    run: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, out, _ = run("doctor", "--store", store, "--port", port, "--json")
    checks = {check["what"]: check for check in last(out)["checks"]}
    assert code == 1
    assert [what for what, check in checks.items() if check["ok"] is False] == [f"port {port}"]
    assert checks["store"]["found"].startswith(f"{store}: 1 adapters")
    assert f"torch {torch.__version__}" in checks["packages"]["found"]
    assert float(checks["float32"]["found"].split()[0].replace(",", "")) > 1
    declared = importlib.metadata.metadata("ray_lora").get_all("Provides-Extra")
    with monkeypatch.context() as patch:  # as where none of the extras is installed
        real = importlib.metadata.version
        packages = (
            "kornia",
            "gguf",
            "monai",
            "jiwer",
            "soundfile",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "furo",
            "sphinx",
        )
        patch.setattr("importlib.metadata.version", lambda name: missing(name) if name in packages else real(name))
        advice = [line.advice for line in examine(port=0) if line.what.startswith("extra ")]
    assert advice == [f"pip install 'ray_lora[{extra}]'" for extra in sorted(set(declared or ()) - {"test"})]
    code, out, _ = run("doctor", "--tracking-uri", f"http://127.0.0.1:{port}", "--port", "0")
    assert code == 1
    assert "does not answer" in out
