"""A head fitted on the frozen base, of any class and task: where it stands, and what it answers."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ray_lora.engine import AdapterEngine, LoneHead
from ray_lora.inference.frozen import keep
from ray_lora.inference.head_alone import STRENGTHS, fit, fit_best, head_alone, mean_loss
from ray_lora.recipe import LoraSpec, TaskSpec
from ray_lora.tasks import Task, build_task
from ray_lora.tasks.question_answering import QuestionAnsweringSpec
from ray_lora.tasks.token_classification import TokenClassificationSpec
from tests.conftest import sentences
from tests.unit.bases import TEXT_KINDS, open_base, save_base
from tests.unit.cases import TAGS, tagged_rows
from tests.unit.packs import LABELS, ROWS, Letters


@pytest.fixture(scope="module", params=TEXT_KINDS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AdapterEngine:
    folder = save_base(request.param, tmp_path_factory.mktemp("bases") / request.param)
    return AdapterEngine(open_base(folder, torch.float64, Letters()), slots=1)


def task_of(spec: TaskSpec) -> Task:
    return build_task(spec, Letters())


def test_it_answers_better_than_chance_whatever_the_class(engine: AdapterEngine) -> None:
    task, rows = task_of(LABELS[3]), ROWS[3]
    answer = head_alone(engine, task, rows[:40], rows[40:])
    assert task.score(answer(rows[:40]), rows[:40])["accuracy"] > 0.9
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    whole = answer(rows)
    assert [round(one["score"], 9) for one in answer([rows[row] for row in order])] == [
        round(whole[row]["score"], 9) for row in order
    ]


def test_what_is_kept_is_what_the_plain_class_reads(engine: AdapterEngine) -> None:
    """A lone head on kept outputs answers as the same head in a slot does."""
    task, rows = task_of(LABELS[2]), ROWS[2]
    head = LoneHead(engine.base, task.head)
    slot = engine.init(LoraSpec(), task.head, seed=3)
    engine.write(slot, engine.read(slot) | {f"base_model.model.{name}": x for name, x in head.tensors().items()})
    for part in keep(engine, task, rows):
        ((_, outputs),) = engine.forward(task.collate(part.features), torch.full((len(part.rows),), slot))
        torch.testing.assert_close(head(part.hidden, part.inputs).logits, outputs.logits, atol=1e-9, rtol=0)
    engine.evict(slot)


def test_a_linear_head_stands_at_the_optimum(tmp_path: Path) -> None:
    """The one that scikit-learn finds for standardised inputs."""
    with_bert = AdapterEngine(open_base(save_base("bert", tmp_path), torch.float64, Letters()), slots=1)
    task, rows = task_of(LABELS[3]), ROWS[3]
    kept, head = keep(with_bert, task, rows), LoneHead(with_bert.base, task.head)
    x = np.concatenate([part.hidden.pooler_output.numpy() for part in kept])
    y = [row["labels"] for part in kept for row in part.features]
    units = head.units([(part.hidden, part.inputs) for part in kept], lambda tensor: None)
    for strength in STRENGTHS[:3]:
        fit(head, task, kept, units, strength)
        oracle = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (strength * len(y)), tol=1e-9, max_iter=5000))
        expected = oracle.fit(x, y).predict_proba(x)
        with torch.no_grad():
            mine = torch.cat([head(part.hidden, part.inputs).logits.softmax(-1) for part in kept])
        np.testing.assert_allclose(mine.numpy(), expected, atol=2e-4, rtol=0)


def test_the_strength_is_what_the_validation_rows_like_best(engine: AdapterEngine) -> None:
    task, rows = task_of(LABELS[2]), ROWS[2]
    head, validation = LoneHead(engine.base, task.head), keep(engine, task, rows[40:])
    found = fit_best(head, task, keep(engine, task, rows[:40]), validation)
    tried = sorted(found, key=lambda one: -one.strength)
    losses = [one.loss for one in tried]
    assert tuple(one.strength for one in tried) == (math.inf, *STRENGTHS)[: len(tried)]
    assert losses[1:-1] == sorted(losses[1:-1], reverse=True)
    assert len(tried) > len(STRENGTHS) or losses[-1] > losses[-2]
    assert found[0].loss == min(one.loss for one in found) == mean_loss(head, task, validation)[0]
    assert found[0].loss < mean_loss(LoneHead(engine.base, task.head), task, validation)[0]


def test_tags_and_rows_of_padding(tagger: tuple[AdapterEngine, Task, list[dict[str, object]]]) -> None:
    """Padding is no input of a head whose spread counts: however rows share passes, the same head is found."""
    engine, task, rows = tagger
    apart, together = LoneHead(engine.base, task.head), LoneHead(engine.base, task.head)
    for head, kept in (
        (apart, [part for row in rows for part in keep(engine, task, [row])]),
        (together, keep(engine, task, rows)),
    ):
        units = head.units([(part.hidden, part.inputs) for part in kept], lambda tensor: None)
        fit(head, task, kept, units, 0.01)
    torch.testing.assert_close(apart.numbers, together.numbers, atol=1e-6, rtol=1e-6)
    scores = task.score(head_alone(engine, task, rows, rows)(rows), rows)
    assert scores["accuracy"] > 0.8


def test_long_rows_are_read_in_windows(tiny_bert_folder: Path) -> None:
    engine = AdapterEngine(open_base(tiny_bert_folder, torch.float64), slots=1)
    spec = QuestionAnsweringSpec(max_length=20, doc_stride=2, max_question_len=6, handle_impossible_answer=False)
    task = build_task(spec, engine.base.processor)
    rows = []
    for text in sentences(12, seed=2):
        context = f"{text} {text[::-1]} {text}"
        answer = {"text": [text.split()[0]], "answer_start": [0]}
        rows.append({"question": "which", "context": context, "answers": answer})
    features = task.encode(rows)
    assert any(len(row["windows"]) > 1 for row in features)
    answers = head_alone(engine, task, features, features)(features)
    assert task.score(answers, features)["exact_match"] > 0.5
    assert all(set(answer) == {"score", "start", "end", "answer"} for answer in answers)


@pytest.fixture
def tagger(tiny_bert_folder: Path) -> tuple[AdapterEngine, Task, list[dict[str, object]]]:
    engine = AdapterEngine(open_base(tiny_bert_folder, torch.float64), slots=1)
    task = build_task(TokenClassificationSpec(labels=TAGS), engine.base.processor)
    return engine, task, task.encode(tagged_rows())
