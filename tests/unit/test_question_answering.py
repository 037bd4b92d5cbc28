"""Questions about a text: answers are where they are said to be, contexts of any length, on the plain class."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ray_lora.engine import AdapterEngine
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.predict import predict
from ray_lora.inference.windows import spread_windows
from ray_lora.recipe import LoraSpec, Recipe
from ray_lora.running.sources import inspect
from ray_lora.tasks import Task, build_task, plain_spec
from ray_lora.tasks.gold_answers import Gold, answers_of
from ray_lora.tasks.question_answering import QuestionAnsweringSpec
from tests.conftest import WORDS
from tests.unit.bases import open_base
from tests.unit.test_token_classification import byte_pieces

CONTEXT = "Peru: its capital is Lima. Its coast is long."
LIMA = {"text": ["Lima"], "answer_start": [21]}
NONE: dict[str, list[Any]] = {"text": [], "answer_start": []}


@pytest.fixture
def task(tiny_bert_folder: Path) -> Task:
    spec = QuestionAnsweringSpec(max_length=24, doc_stride=4, max_question_len=8, handle_impossible_answer=True)
    return build_task(spec, open_base(tiny_bert_folder, torch.float64).processor)


def test_answers_in_every_shape() -> None:
    assert answers_of(LIMA, CONTEXT) == answers_of("Lima", CONTEXT) == (Gold("Lima", 21),)
    assert answers_of(NONE, CONTEXT) == ()
    assert answers_of("its", CONTEXT) == (Gold("its", 6),)  # the other one has a capital letter
    assert [gold.span for gold in answers_of({"text": [" Lima. "], "answer_start": [20]}, CONTEXT)] == [(21, 26)]
    two = {"text": ["Lima", "Lima."], "answer_start": [21, 21]}
    assert [gold.text for gold in answers_of(two, CONTEXT)] == ["Lima", "Lima."]


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ("Cuzco", "stands 0 times in its context"),
        ("is", "stands 2 times in its context; say which with"),
        ("", "is empty or not a string"),
        (
            {"text": ["Lima"], "answer_start": [20]},
            r"is not at 20 of its context, where ' Lim' stands; it stands at 21",
        ),
        ({"text": ["Lima"], "answer_start": [9_999]}, "starts at 9999; its context has the characters 0 to"),
        ({"text": ["Lima"], "answer_start": ["21"]}, "starts at '21'"),
        ({"text": ["Lima"], "answer_start": [True]}, "starts at True"),
        ({"text": [7], "answer_start": [1]}, "answer text 7 is empty or not a string"),
        ({"text": "Lima", "answer_start": 21}, "have not one start for each text"),
        ({"text": ["Lima"]}, "are no answers; give"),
        (["Lima"], "are no answers; give"),
        (7, "are no answers; give"),
    ],
)
def test_answers_that_do_not_fit_are_named_by_file_and_row(answers: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=why):
        answers_of(answers, CONTEXT)
    path = tmp_path / "rows.jsonl"
    right = {"question": "What?", "context": CONTEXT, "answers": answers if isinstance(answers, str) else LIMA}
    rows = [right | {"answers": "Lima" if isinstance(answers, str) else LIMA}, right | {"answers": answers}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=f"{re.escape(str(path))}, (row|line) 2"):
        inspect(told(path))


def told(path: Path, **options: Any) -> Recipe:
    return Recipe.parse({"task": {"type": "question-answering", **options}, "data": {"train": str(path)}})


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_files_say_whether_there_may_be_no_answer(kind: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"question": "What?", "context": CONTEXT, "answers": LIMA}] * 2
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        path.write_text(f"question,context,answers\nWhat?,{CONTEXT},Lima\n")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    assert inspect(told(path))[0].model_dump()["handle_impossible_answer"] is False
    if kind == "csv":
        return
    rows.append({"question": "Who?", "context": CONTEXT, "answers": NONE})
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    assert inspect(told(path))[0].model_dump()["handle_impossible_answer"] is True
    with pytest.raises(DataError, match=r"row 3: the question has no answer, and task\.handle_impossible_answer is"):
        inspect(told(path, handle_impossible_answer=False))


def test_every_token_of_a_long_context_is_read_and_the_answer_is_in_its_windows(task: Task) -> None:
    words = [WORDS[at % len(WORDS)] for at in range(60)]
    context = " ".join(words)
    for at in (0, 13, 14, 15, 30, 59):
        start = len(" ".join(words[:at])) + bool(at)
        answers = {"text": [words[at]], "answer_start": [start]}
        [features] = task.encode([{"question": "cloud ?", "context": context, "answers": answers}])
        windows = spread_windows({1: task}, [features], [1]).features
        assert len(windows) >= 3
        assert {place for window in windows for place in window["offsets"][window["begin"] : window["end"]]} == {
            (match.start(), match.end()) for match in re.finditer(r"\S+", context)
        }
        found = [
            context[window["offsets"][window["target"][0]][0] : window["offsets"][window["target"][1]][1]]
            for window in windows
            if window["target"] != (0, 0)
        ]
        assert found
        assert set(found) == {words[at]}
        assert all(len(window["input_ids"]) <= 24 for window in windows)
        assert task.size(features) == sum(map(task.size, windows))


def test_known_logits_give_the_known_answer(task: Task) -> None:
    """The likeliest span whose end is not before its start, in the context, of at most so many tokens."""
    row = {"question": "cloud ?", "context": "the quiet rain and the snow"}
    [features] = task.encode([row])
    [window] = spread_windows({1: task}, [features], [1]).features
    count, begin = len(window["input_ids"]), window["begin"]

    def answer(starts: dict[int, float], ends: dict[int, float], **parameters: Any) -> Any:
        logits = torch.zeros(2, 1, count)
        for side, values in enumerate((starts, ends)):
            for place, value in values.items():
                logits[side, 0, place] = value
        outputs = SimpleNamespace(start_logits=logits[0], end_logits=logits[1])
        return task.whole(task.decode(outputs, [window], parameters), features, parameters)  # type: ignore[attr-defined]

    rain, snow = begin + 2, begin + 5
    assert answer({rain: 9}, {snow: 9})["answer"] == "rain and the snow"
    assert answer({rain: 9, snow: 8}, {snow: 9}, max_answer_len=2)["answer"] == "snow"
    assert answer({snow: 9, rain: 8}, {rain: 9})["answer"] == "rain"
    assert answer({1: 99, rain: 9}, {1: 99, rain: 9})["answer"] == "rain"  # a question's tokens are no answer
    assert answer({0: 9}, {0: 9}) == {"score": pytest.approx(1, abs=0.01), "start": 0, "end": 0, "answer": ""}
    assert answer({0: 9, rain: 5}, {0: 9, rain: 5}, handle_impossible_answer=False)["answer"] == "rain"
    several = answer({rain: 9, snow: 8}, {rain: 9, snow: 8}, top_k=3)
    assert [one["answer"] for one in several][:1] == ["rain"]
    assert len(several) == 3
    assert {one["answer"] for one in several} >= {"rain", "snow"}


def test_scores_are_squads(task: Task) -> None:
    rows: Any = [{"answers": ["the Lima city", "Lima"]}, {"answers": []}, {"answers": ["long coast"]}, {"answers": []}]
    predictions = [{"answer": text} for text in ("Lima", "", "a coast", "Lima")]
    found = task.score(predictions, rows)
    assert found["exact_match"] == pytest.approx(0.5)
    assert found["f1"] == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)


@pytest.mark.parametrize("letters", [100, 100_000])
def test_a_text_of_any_length_is_answered(letters: int, tiny_bert_folder: Path) -> None:
    """A question is cut where it is too long, which is said; a context is read to its end."""
    base = open_base(tiny_bert_folder, torch.float64)
    spec = QuestionAnsweringSpec(max_length=60, doc_stride=8, max_question_len=8)
    task = build_task(spec, base.processor)
    engine = AdapterEngine(base, slots=1, max_rank=2)
    slot = engine.init(LoraSpec(r=2), task.head, seed=0, peft_type=task.peft_type)
    many = (" ".join(WORDS) + " ") * (letters // 40)
    rows = [{"question": "cloud ?", "context": many + "zebra"}, {"question": many, "context": "the rain"}]
    features = task.encode(rows)
    assert ["cut" in row for row in features] == [False, True]
    assert features[1]["cut"] == "questions longer than task.max_question_len, 8 tokens,"
    answers = predict(engine, {slot: task}, features[1:], [slot])
    assert answers[0]["answer"] in ("the", "rain", "the rain", "")
    if letters == 100:
        [found] = predict(engine, {slot: task}, features[:1], [slot], [{"top_k": 5}])
        assert all(rows[0]["context"][one["start"] : one["end"]] == one["answer"] for one in found)
    else:
        assert features[0]["windows"][-1]["offsets"][-2][1] == len(rows[0]["context"])
    engine.close()


@pytest.mark.parametrize("value", ["", " ", "\0a", None, 7, ["a"], "\u200b"])
@pytest.mark.parametrize("column", ["question", "context"])
def test_what_is_no_text_is_refused(value: Any, column: str, task: Task) -> None:
    with pytest.raises(DataError, match=f"{column}: text"):
        task.encode([{"question": "What?", "context": CONTEXT, column: value}])


def test_a_base_without_a_cls_token_is_refused() -> None:
    with pytest.raises(RecipeError, match="begins with a CLS token"):
        build_task(QuestionAnsweringSpec(), byte_pieces("right"))


def test_windows_must_move_on(tiny_bert_folder: Path) -> None:
    processor = open_base(tiny_bert_folder, torch.float64).processor
    with pytest.raises(RecipeError, match=r"leaves 5 tokens to the context .* task\.doc_stride 5 must be less"):
        build_task(QuestionAnsweringSpec(max_length=16, doc_stride=5, max_question_len=8), processor)
    with pytest.raises(RecipeError, match=r"task\.max_length is 100, the base has 64 positions"):
        build_task(QuestionAnsweringSpec(max_length=100), processor)


def test_a_plain_peft_adapter_answers_as_the_pipeline_does_by_default(task: Task) -> None:
    spec: Any = plain_spec(task.head)
    assert (spec.max_answer_len, spec.handle_impossible_answer, spec.max_length, spec.doc_stride) == (
        15,
        False,
        384,
        128,
    )
