"""A label of interest: its measures, its threshold, the answers that it gives, and the card that keeps it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import ViTImageProcessor
from transformers.modeling_outputs import ImageClassifierOutput

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import LoraSpec, TaskSpec
from ray_lora.tasks import build_task
from ray_lora.tasks.image_classification import ImageClassification, ImageClassificationSpec, PictureInspection
from ray_lora.tasks.inspection import recall_from, threshold_of
from ray_lora.training.settling import settled
from tests.unit.cases import picture

LABELS = ("good", "dent", "scratch")
PIXELS = ViTImageProcessor(size={"height": 16, "width": 16})


def task_of(**options: Any) -> PictureInspection:
    told = {"type": "image-classification", "labels": LABELS, "positive": "scratch"} | options
    task = build_task(TaskSpec.model_validate(told), PIXELS)
    assert isinstance(task, PictureInspection)
    return task


def test_old_cards_and_hashes_stay() -> None:
    spec = ImageClassificationSpec(labels=LABELS)
    assert spec.recorded() == {"type": "image-classification", "labels": list(LABELS), "max_length": 128}
    assert type(build_task(spec, PIXELS)) is ImageClassification


def test_what_does_not_belong_together_is_refused() -> None:
    for options in ({"threshold": 0.5}, {"false_alarms": 0.1}):
        with pytest.raises(ValidationError, match=r"of a label of interest; name it: task\.positive"):
            ImageClassificationSpec(**options)
    with pytest.raises(ValidationError, match=r"positive 'scrach' is not one of the labels .* did you mean 'scratch'"):
        ImageClassificationSpec(labels=LABELS, positive="scrach")
    spec = ImageClassificationSpec(positive="hole")
    with pytest.raises(RecipeError, match="positive 'hole' is not one of the labels dent, good"):
        PictureInspection.merge(spec, [(["good", "dent"], [])])


rated = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])), min_size=1, max_size=30)


@given(rows=rated, share=st.sampled_from([0.0, 0.01, 0.2, 0.5]))
@settings(max_examples=300, deadline=None)
def test_the_threshold_finds_most_at_so_many_false_alarms(rows: list[tuple[bool, float]], share: float) -> None:
    """No other threshold finds more within the alarms that are allowed."""
    truth, scores = [positive for positive, _ in rows], [score for _, score in rows]
    threshold = threshold_of(truth, scores, share)
    assert threshold > 0

    def alarms(at: float) -> float:
        return sum(score >= at for score, positive in zip(scores, truth, strict=True) if not positive)

    allowed = int(share * truth.count(False) + 1e-9)
    assert alarms(threshold) <= allowed
    tried = [at for at in [*scores, 2.0] if at > 0 and alarms(at) <= allowed]
    best = max(recall_from(truth, scores, at) for at in tried)
    assert recall_from(truth, scores, threshold) == best


def outputs_of(scores: list[list[float]]) -> ImageClassifierOutput:
    return ImageClassifierOutput(logits=torch.tensor(scores, dtype=torch.float64).log())


def test_the_threshold_decides_the_label_and_no_score() -> None:
    outputs = outputs_of([[0.6, 0.1, 0.3], [0.1, 0.3, 0.6], [0.5, 0.4, 0.1], [0.2, 0.05, 0.75]])
    rows: list[dict[str, Any]] = [{}] * 4
    plain, low, high = (task_of(threshold=at) for at in (None, 0.2, 0.7))
    for task, labels in (
        (plain, ["good", "scratch", "good", "scratch"]),
        (low, ["scratch", "scratch", "good", "scratch"]),
        (high, ["good", "dent", "good", "scratch"]),
    ):
        answers = task.decode(outputs, rows, {})
        assert [answer["label"] for answer in answers] == labels
        for answer, row in zip(answers, outputs.logits.exp().tolist(), strict=True):
            assert answer["score"] == pytest.approx(row[LABELS.index(answer["label"])])
        assert task.decode(outputs, rows, {"top_k": 2}) == plain.decode(outputs, rows, {"top_k": 2})
    raw = high.decode(outputs, rows, {"function_to_apply": "none"})  # the threshold is of probabilities all the same
    assert [answer["label"] for answer in raw] == ["good", "dent", "good", "scratch"]
    assert raw[3]["score"] == pytest.approx(float(np.log(0.75)), abs=1e-6)


def test_measures_are_scikit_learns() -> None:
    from sklearn.metrics import average_precision_score, roc_curve

    draw = np.random.default_rng(0)
    scores = draw.dirichlet([1, 1, 1], 200)
    targets = [2 if draw.random() < score[2] else int(draw.integers(2)) for score in scores]
    task = task_of(false_alarms=0.05)
    features = [{"labels": target} for target in targets]
    found = task.score(task.decode(outputs_of(scores.tolist()), features, task.full), features)
    truth = [target == 2 for target in targets]
    assert found["average_precision"] == pytest.approx(average_precision_score(truth, scores[:, 2]))
    alarms, recall, _ = roc_curve(truth, scores[:, 2], drop_intermediate=False)
    assert found["recall_at_false_alarms"] == pytest.approx(max(recall[alarms <= 0.05]))
    assert found["accuracy"] == pytest.approx(float(np.mean(scores.argmax(1) == targets)))
    nobody = [{"labels": 0}] * 200
    assert task.score(task.decode(outputs_of(scores.tolist()), nobody, task.full), nobody)["average_precision"] == 0


def test_the_card_keeps_a_threshold_of_the_scores_that_it_answers_with() -> None:
    """Outputs are divided by the temperature when an adapter is written: the threshold is one of scores after that."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 3, generator=draw, dtype=torch.float64)
    features = [{"labels": int(target)} for target in torch.randint(3, (60,), generator=draw)]
    task = task_of(false_alarms=0.2)
    answers = task.decode(ImageClassifierOutput(logits=logits), features, task.scoring)
    card = Card(task=task.spec, temperature=2.5)
    adapter = settled(Adapter(LoraSpec(target_modules=()), {}, {}, card), task, (answers, features))
    kept = Card.model_validate(json.loads(adapter.card.model_dump_json())).task
    assert isinstance(kept, ImageClassificationSpec)
    assert kept.threshold is not None
    truth = [row["labels"] == 2 for row in features]
    divided = (logits / 2.5).softmax(-1)[:, 2].tolist()
    assert kept.threshold == pytest.approx(threshold_of(truth, divided, 0.2), abs=1e-6)
    answering = build_task(kept, PIXELS)
    said = answering.decode(ImageClassifierOutput(logits=logits / 2.5), features, {})
    alarms = [answer["label"] == "scratch" for answer, positive in zip(said, truth, strict=True) if not positive]
    assert sum(alarms) / len(alarms) <= 0.2
    assert any(alarms)
    given_by_hand = task_of(threshold=0.3)
    same = settled(Adapter(LoraSpec(target_modules=()), {}, {}, card), given_by_hand, (answers, features))
    assert same.card.task == given_by_hand.spec
    assert settled(adapter, task, None) is adapter


def test_pictures_are_of_the_size_that_is_asked_for() -> None:
    for side in (None, 24):
        task = build_task(ImageClassificationSpec(labels=LABELS, image_size=side), PIXELS)
        (row,) = task.encode([{"image": picture(0)}])
        assert row["pixel_values"].shape == (3, side or 16, side or 16)
    with pytest.raises(DataError):
        task.encode([{"image": "?"}])
