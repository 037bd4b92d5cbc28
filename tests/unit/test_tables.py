"""Answers of tables: each row by its own adapter, as that adapter alone would answer it, whoever is beside it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ray_lora.errors import AdapterNotFoundError, DataError, RecipeError
from ray_lora.inference import stored
from ray_lora.inference import tables as tables_module
from ray_lora.inference.answer_columns import AnswerColumns
from ray_lora.inference.comparing import BASE, compare
from ray_lora.inference.intervals import as_good, intervals, standard_error
from ray_lora.inference.pinned import pin
from ray_lora.inference.predict import predict
from ray_lora.inference.tables import Answer, TableAnswers
from ray_lora.running.predictor import LoraPredictor
from ray_lora.serving.trials.feedback_table import feedback_table
from ray_lora.store import open_store
from ray_lora.tasks import build_task
from ray_lora.tasks.text_classification import TextClassification, TextClassificationSpec
from tests.unit.serving_world import WORDS, card, make_adapter, make_base, make_tagger, peft_probabilities

NAMES = [f"a{number}" for number in range(5)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`root` with base/ and store/: five classifiers of several ranks and labels and a tagger, all on one base; `other`
    on another base, `wrong` that names it and does not fit, `torn` that is cut, `wild` whose answers are no numbers."""
    root = make_tagger(tmp_path_factory.mktemp("tables"))
    base, store = root / "base", root / "store"
    for number, name in enumerate(NAMES):
        labels = [f"{name}-{label}" for label in range(2 + number % 2)]
        folder = make_adapter(base, store / name, seed=number, rank=(4, 8, 12)[number % 3], labels=len(labels))
        card(folder, base, labels)
    other = make_base(root / "other-base", seed=5)
    card(make_adapter(other, store / "other", seed=9), other, ["no", "yes"])
    card(make_adapter(base, store / "wrong", seed=10), base, ["no", "yes"], fingerprint="0" * 64)
    card(make_adapter(base, store / "away", seed=12), root / "nowhere", ["no", "yes"])
    weights = card(make_adapter(base, store / "wild", seed=11), base, ["no", "yes"]) / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({key: value * (1e30 if "lora_" in key else 1) for key, value in tensors.items()}, weights)
    _forget_hash(store / "wild")
    torn = card(make_adapter(base, store / "torn", seed=13), base, ["no", "yes"]) / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:1000])
    return root


def _forget_hash(folder: Path) -> None:
    told = json.loads((folder / "ray_lora.json").read_text())
    (folder / "ray_lora.json").write_text(json.dumps(told | {"sha256": None}))


def texts(count: int, seed: int = 0) -> list[str]:
    drawn = random.Random(seed)
    return [" ".join(drawn.choices(WORDS, k=drawn.randint(1, 12))) for _ in range(count)]


def ask(world: Path, refs: Sequence[str | None], given: Sequence[Any], **options: Any) -> list[Answer]:
    store = open_store(str(world / "store"))
    tables = TableAnswers(store, pin(store, [ref for ref in refs if ref]), dtype="float32", **options)
    try:
        return tables.answer(pa.table({"text": given, "tokens": given}), refs)
    finally:
        tables.close()


@pytest.fixture(scope="module")
def alone(world: Path) -> Any:
    """What a ref alone answers, with an engine of its own."""

    def answers(ref: str, wanted: Sequence[str]) -> list[Any]:
        _, adapter = open_store(str(world / "store")).load(ref)
        engine, slot, task = stored.alone(adapter, ref, dtype="float32")
        try:
            features = task.encode([{"text": text, "tokens": text} for text in wanted])
            return predict(engine, {slot: task}, features, [slot] * len(features))
        finally:
            engine.close()

    return answers


def close(a: Any, b: Any) -> bool:
    if isinstance(a, float):
        return bool(a == pytest.approx(b, abs=2e-6))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return bool(a == b)


@pytest.mark.parametrize("slots", [1, 2, 32])
def test_a_mixed_table_is_each_adapter_alone(world: Path, alone: Any, slots: int) -> None:
    """Fewer slots than adapters, two tasks, two bases; in the table's order."""
    names = [*NAMES, "tagger", "other"]
    given = texts(60)
    refs = random.Random(1).choices(names, k=len(given))
    answers = ask(world, refs, given, slots=slots)
    assert [answer.entry.name for answer in answers if answer.entry] == refs
    for name in names:
        mine = [row for row, ref in enumerate(refs) if ref == name]
        assert close([answers[row].prediction for row in mine], alone(name, [given[row] for row in mine])), name


def test_answers_are_pefts(world: Path) -> None:
    given = texts(6)
    answers = ask(world, ["a1"] * 6, given, parameters={"top_k": 3})
    for answer, plain in zip(answers, peft_probabilities(world / "base", world / "store" / "a1", given), strict=True):
        scores = {item["label"]: item["score"] for item in answer.prediction}
        assert [scores[f"a1-{label}"] for label in range(3)] == pytest.approx(plain, abs=1e-5)


def test_the_size_of_a_block_changes_nothing(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, refs = texts(40, 2), (NAMES * 8)[:40]
    whole = ask(world, refs, given)
    monkeypatch.setattr(tables_module, "_BLOCK", 7)
    parts = ask(world, refs, given, slots=2)
    assert close([answer.prediction for answer in whole], [answer.prediction for answer in parts])


def test_what_is_wrong_is_the_error_of_its_rows_alone(world: Path, alone: Any) -> None:
    wrong = {
        "nobody": "is not in the store",
        "wrong": "was trained on base",
        "away": "nowhere",
        "torn": "torn",
        "wild": "not finite numbers",
        None: "names no adapter",
        "../etc": "is not a ref",
    }
    given = texts(30, 3)
    refs: list[str | None] = [*wrong, *NAMES, *wrong]
    refs += ["a0"] * (30 - len(refs))
    given[-1], given[-2], given[-3] = "", None, " \n"  # type: ignore[call-overload]
    answers = ask(world, refs, given, slots=2)
    for ref, answer in zip(refs[:-3], answers, strict=False):
        if ref in wrong:
            assert wrong[ref] in str(answer.error), (ref, answer)
            assert answer.prediction is None
        else:
            assert answer.error is None, answer
    assert [answer.error for answer in answers[-3:]] == [
        "text ' \\n' is empty or not a string; give a non-empty string",
        "column 'text' is empty; fill it or leave the row out",
        "text '' is empty or not a string; give a non-empty string",
    ]
    right = [row for row, answer in enumerate(answers) if answer.error is None]
    assert len(right) == 30 - 2 * len(wrong) - 3
    for row in right:
        assert close(answers[row].prediction, alone(str(refs[row]), [given[row]])[0])


def test_a_version_that_changes_is_not_answered_with(world: Path, tmp_path: Path) -> None:
    base = world / "base"
    folder = card(make_adapter(base, tmp_path / "moving", seed=1), base, ["no", "yes"])
    store = open_store(str(tmp_path))
    pinned = pin(store, ["moving"])
    tables = TableAnswers(store, pinned)
    moved = card(make_adapter(base, tmp_path / "elsewhere" / "x", seed=2), base, ["no", "yes"])
    for name in ("adapter_model.safetensors", "ray_lora.json"):
        (moved / name).replace(folder / name)
    [answer] = tables.answer(pa.table({"text": ["a day"]}), ["moving"])
    tables.close()
    assert answer.error is not None
    assert "no longer what it was when this run began" in answer.error or "written" in answer.error


def test_a_folder_of_plain_peft_answers_without_a_card(world: Path, tmp_path: Path) -> None:
    folder = make_adapter(world / "base", tmp_path / "store" / "plain", seed=21)
    store = open_store(str(tmp_path / "store"))
    pinned = pin(store, ["plain"])
    assert pinned.pipelines == ("text-classification",)
    given = texts(4, 5)
    tables = TableAnswers(store, pinned, dtype="float32", parameters={"top_k": 2})
    answers = tables.answer(pa.table({"text": given}), ["plain"] * 4)
    tables.close()
    for answer, plain in zip(answers, peft_probabilities(world / "base", folder, given), strict=True):
        scores = {item["label"]: item["score"] for item in answer.prediction}
        assert [scores["LABEL_0"], scores["LABEL_1"]] == pytest.approx(plain, abs=1e-5)


def test_columns_have_one_type_whatever_a_part_holds(world: Path) -> None:
    given, refs = texts(4), ["a0", "tagger", "nobody", "a1"]
    pinned = pin(open_store(str(world / "store")), refs)
    columns = AnswerColumns(pinned.pipelines, {})
    answers = ask(world, refs, given)
    table = pa.table(columns.of(refs, answers))
    assert table.column_names == ["prediction", "adapter", "version", "sha256", "error"]
    first, tagged, missing, last = table.to_pylist()
    assert first["prediction"]["text_classification"] == answers[0].prediction
    assert first["prediction"]["token_classification"] is None
    assert tagged["prediction"]["token_classification"] == answers[1].prediction
    assert missing["prediction"] is None
    assert (missing["adapter"], missing["version"]) == ("nobody", None)
    assert last["version"] == 1
    assert pa.table(columns.of(refs[:1], answers[:1])).schema == table.schema
    alone = AnswerColumns(("text-classification",), {"top_k": 2}, "lora_")
    assert alone.type == pa.list_(pa.struct({"label": pa.string(), "score": pa.float64()}))
    assert alone.names[0] == "lora_prediction"
    with pytest.raises(DataError, match="has a column 'error' already"):
        columns.check(["text", "error"], "rows.parquet")


def test_parameters_that_a_task_does_not_take_stop_the_job(world: Path) -> None:
    with pytest.raises(RecipeError, match="top_kk"):
        ask(world, ["a0"], ["a day"], parameters={"top_kk": 2})


def test_adapters_are_read_once_and_ahead(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(world / "store"))
    pinned = pin(store, NAMES)
    tables = TableAnswers(store, pinned, slots=2)
    read: list[str] = []
    load = store.load
    monkeypatch.setattr(store, "load", lambda ref: (read.append(ref), load(ref))[1])
    rows = pa.table({"text": texts(10)})
    for _ in range(3):
        tables.answer(rows, NAMES * 2)
    tables.close()
    assert sorted(read) == [f"{name}@1" for name in NAMES]
    assert torch.is_inference_mode_enabled() is False


# ---------------------------------------------------------------- compared on the same rows


def labelled(count: int, labels: Sequence[str], path: Path) -> str:
    rows = [{"text": text, "label": labels[at % 2], "shop": "ab"[at % 2]} for at, text in enumerate(texts(count, 4))]
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_the_base_alone_is_compared_where_it_has_a_trained_head(tmp_path: Path) -> None:
    """A fine-tuned classifier as the base: its own head's answers are the plain class's."""
    plain = make_base(tmp_path / "plain")
    torch.manual_seed(7)
    model = AutoModelForSequenceClassification.from_pretrained(plain, num_labels=2)
    for parameter in model.classifier.parameters():
        parameter.data.normal_(0, 1)
    model.config.id2label, model.config.label2id = {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
    base = tmp_path / "base"
    model.save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.save_pretrained(base)
    for seed, name in enumerate(("one", "two")):
        card(make_adapter(base, tmp_path / "store" / name, seed=seed), base, ["no", "yes"])
    data = labelled(24, ["no", "yes"], tmp_path / "rows.parquet")
    told = compare(["one", "two"], data, str(tmp_path / "store"))
    assert told["notes"] == []
    assert [line["ref"] for line in told["scores"]] == ["one@1", "two@1", BASE]
    model.eval()
    right = 0
    for row in pa.parquet.read_table(data).to_pylist():
        logits = model(**tokenizer(row["text"], return_tensors="pt", return_token_type_ids=False)).logits[0]
        right += row["label"] == ("no", "yes")[int(logits.argmax())]
    assert told["scores"][2]["metrics"]["accuracy"]["value"] == pytest.approx(right / 24)
    card(make_adapter(base, tmp_path / "store" / "three", seed=3), base, ["yes", "no"])
    labels = compare(["three"], data, str(tmp_path / "store"), by="shop")
    assert "its head answers no, yes" in labels["notes"][0]
    assert [line["slice"] for line in labels["scores"]] == [None, "a", "b"]


def test_adapters_of_two_tasks_are_not_compared(world: Path, tmp_path: Path) -> None:
    data = labelled(4, ["a0-0", "a0-1"], tmp_path / "rows.parquet")
    with pytest.raises(RecipeError, match="compare adapters of one task"):
        compare(["a0", "tagger"], data, str(world / "store"))
    with pytest.raises(DataError, match="row 1: label 'a0-0' is not one of"):
        compare(["a0", "a2"], data, str(world / "store"))


def test_rows_are_encoded_once_for_adapters_of_one_task(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = world / "base"
    for seed, name in enumerate(("one", "two", "three")):
        card(make_adapter(base, tmp_path / "store" / name, seed=seed), base, ["no", "yes"])
    encoded: list[str] = []
    encode = TextClassification.encode

    def counting(self: TextClassification, rows: Sequence[Any]) -> Any:
        encoded.extend(row["text"] for row in rows)
        return encode(self, rows)

    monkeypatch.setattr(TextClassification, "encode", counting)
    data = labelled(20, ["no", "yes"], tmp_path / "rows.parquet")
    told = compare(["one", "two", "three"], data, str(tmp_path / "store"), by="shop")
    assert len(told["scores"]) == 9
    assert encoded == texts(20, 4)


def test_intervals_hold_what_chance_does() -> None:
    """Of a share of 200 rows they are as wide as the normal approximation's."""
    task = build_task(TextClassificationSpec(labels=("no", "yes"), max_length=8), SimpleNamespace(
        pad_token_id=0, model_max_length=32, num_special_tokens_to_add=lambda pair=False: 2
    ))  # fmt: skip
    features = [{"labels": at % 2} for at in range(200)]
    answers = [{"label": ("no", "yes")[at % 2 if at < 160 else 1 - at % 2], "score": 1.0} for at in range(200)]
    scored = intervals(task, answers, features)["accuracy"]
    wide = 1.96 * standard_error(0.8, 200)
    assert (scored.value, scored.low, scored.high) == (
        pytest.approx(0.8), pytest.approx(0.8 - wide, abs=0.015), pytest.approx(0.8 + wide, abs=0.015)
    )  # fmt: skip
    assert as_good(scored, scored, "max")
    worse = intervals(task, [{"label": "no", "score": 1.0}] * 200, features)["accuracy"]
    assert not as_good(worse, scored, "max")


def test_feedback_is_a_table(tmp_path: Path) -> None:
    arm = {"name": "tweets", "version": 2, "variant": "split", "began": "x"}
    told = [{"id": "b", "value": True, "time": 3.0}, {"id": "a", "value": 0.5, "time": 1.0}, {"id": "a", "value": False,
            "time": 2.0}]  # fmt: skip
    lines = [json.dumps({**arm, **line, "user": None}) for line in told]
    (tmp_path / "x.feedback.jsonl").write_text("\n".join(lines) + "\n")
    table = feedback_table(tmp_path)
    assert [(row["id"], row["version"], row["value"]) for row in table.to_pylist()] == [("a", 2, 0.0), ("b", 2, 1.0)]
    assert feedback_table(tmp_path / "nothing").num_rows == 0


@pytest.mark.parametrize("kind", ["pyarrow", "pandas", "numpy"])
def test_batches_of_any_kind_are_answered(world: Path, kind: str) -> None:
    given = texts(3, 6)
    table = pa.table({"text": given, "who": ["a0", "nobody", None]})
    batch = {"pyarrow": table, "pandas": table.to_pandas(), "numpy": {
        name: table.column(name).to_numpy() for name in table.column_names
    }}[kind]  # fmt: skip
    predictor = LoraPredictor(str(world / "store"), adapter_column="who", columns={"tokens": "text"})
    found = predictor(batch).to_pylist()
    assert [row["adapter"] for row in found] == ["a0", "nobody", None]
    assert [row["error"] is None for row in found] == [True, False, False]
    one = LoraPredictor(str(world / "store"), "a0", prefix="our_")(table)
    assert one.column_names[2:] == ["our_prediction", "our_adapter", "our_version", "our_sha256", "our_error"]
    with pytest.raises(DataError, match="has no column 'text'"):
        LoraPredictor(str(world / "store"), "a0")(table.rename_columns(["words", "who"]))
    with pytest.raises(AdapterNotFoundError, match="did you mean 'a0'"):
        LoraPredictor(str(world / "store"), "a00")
    with pytest.raises(RecipeError, match="give the adapter that answers all rows, or adapter_column"):
        LoraPredictor(str(world / "store"))
