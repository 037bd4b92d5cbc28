"""One label of interest among others, such as a rare defect: how well its rows are found, and from which score on a row
is answered as one of them.

    {"type": "image-classification", "positive": "defect"}       # of a recipe; its adapter's card has the threshold too

The threshold is chosen on the validation rows: the lowest score at which no more than `false_alarms` of the others'
rows are called positive. It decides the label of an answer; scores, and the order of `top_k`, are what they are without
it. It knows labels and scores, no pictures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.classification import METRICS, Classification
from ray_lora.tasks.pictures import precision_recall
from ray_lora.tasks.scored import Scored
from ray_lora.tasks.task import Features

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Interest:
    """What is looked for.

    Attributes:
        label: the positive one.
        threshold: the score from which on a row is answered so; None: where it is the best label.
        false_alarms: share of the other rows that may be called positive.
    """

    label: str
    threshold: float | None
    false_alarms: float


class Inspection(Classification):
    """A classification in which one label is of interest.

    Attributes:
        interest: which one.
    """

    interest: Interest
    scoring: ClassVar[Mapping[str, Json]] = Scored.full
    metric: ClassVar[str] = "average_precision"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {
        "average_precision": "max",
        "recall_at_false_alarms": "max",
        **METRICS,
    }

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        threshold = self.interest.threshold
        if threshold is None or "top_k" in parameters:
            return super().decode(outputs, features, parameters)
        ranked = super().decode(outputs, features, {**parameters, **self.full})
        sure = outputs.logits.float().softmax(-1)[:, self.labels.index(self.interest.label)].tolist()
        return [self._chosen(row, score >= threshold) for row, score in zip(ranked, sure, strict=True)]

    def _chosen(self, ranked: Sequence[Json], positive: bool) -> Json:
        """The positive label, or the best of the others."""
        return next(answer for answer in ranked if (answer["label"] == self.interest.label) == positive)

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """Average precision and the recall at `false_alarms` are of the positive label's scores; where no row has that
        label both are 0. Accuracy and F1 are of the answered labels."""
        from sklearn.metrics import average_precision_score

        truth, scores = self._positives(features), self._scores(predictions)
        found = {
            "average_precision": float(average_precision_score(truth, scores)) if any(truth) else 0.0,
            "recall_at_false_alarms": recall_from(
                truth, scores, threshold_of(truth, scores, self.interest.false_alarms)
            ),
        }
        return found | super().score(self._answered(predictions), features)

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        """What the class draws of the answered labels, and `precision_recall` of the positive one."""
        drawn = super().figures(self._answered(predictions), features)
        curve = precision_recall(self._positives(features), self._scores(predictions), self.interest.label)
        return {**drawn, **curve}

    def settled(self, predictions: Sequence[Json], features: Sequence[Features], temperature: float) -> TaskSpec:
        """The options with the threshold that these validation rows ask for, unless they say one themselves.

        Args:
            predictions: answers with `scoring`, before outputs are divided by the temperature.
        """
        if self.interest.threshold is not None:
            return self.spec
        scores = [self._calibrated(answer, temperature) for answer in predictions]
        threshold = threshold_of(self._positives(features), scores, self.interest.false_alarms)
        return self.spec.model_copy(update={"threshold": threshold})

    def _calibrated(self, answer: Json, temperature: float) -> float:
        """The positive label's score once all outputs are divided: softmax(x / t) is softmax(x) ** (1 / t), scaled."""
        powers = {item["label"]: item["score"] ** (1 / temperature) for item in answer}
        return float(powers[self.interest.label] / math.fsum(powers.values()))

    def _answered(self, predictions: Sequence[Json]) -> list[Json]:
        """The single answers that answers with all scores stand for."""
        threshold = self.interest.threshold
        if threshold is None:
            return [ranked[0] for ranked in predictions]
        scores = self._scores(predictions)
        return [self._chosen(ranked, score >= threshold) for ranked, score in zip(predictions, scores, strict=True)]

    def _positives(self, features: Sequence[Features]) -> list[bool]:
        return [self.labels[target] == self.interest.label for target in self.targets(features)]

    def _scores(self, predictions: Sequence[Json]) -> list[float]:
        at = self.labels.index(self.interest.label)
        return [self.probabilities(answer)[at] for answer in predictions]


def threshold_of(truth: Sequence[bool], scores: Sequence[float], false_alarms: float) -> float:
    """The lowest score at which no more than a share of the negative rows is called positive: in the middle between the
    last row that is and the first that is not, and never 0."""
    allowed = int(false_alarms * sum(not positive for positive in truth) + 1e-9)
    ordered = sorted(zip(scores, truth, strict=True), reverse=True)
    called, alarms = 0, 0  # of the rows, from the top; rows of one score are called together
    while called < len(ordered):
        alike = [positive for score, positive in ordered[called:] if score == ordered[called][0]]
        alarms += sum(not positive for positive in alike)
        if alarms > allowed:
            break
        called += len(alike)
    above = ordered[called - 1][0] if called else 1.0
    below = ordered[called][0] if called < len(ordered) else 0.0
    middle = (above + below) / 2 if called else math.nextafter(max(above, below), 2)
    return max(middle, math.nextafter(0, 1))


def recall_from(truth: Sequence[bool], scores: Sequence[float], threshold: float) -> float:
    """The share of positive rows whose score reaches it; 0 where there are none."""
    found = [score >= threshold for score, positive in zip(scores, truth, strict=True) if positive]
    return sum(found) / len(found) if found else 0.0
