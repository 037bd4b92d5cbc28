"""How much a row of each label weighs in the loss: scikit-learn's `class_weight`, over training rows.

    counts = count(["a", "a", "b"], None)         # {"a": 2, "b": 1}
    balanced([counts], ("a", "b"))                # {"a": 0.75, "b": 1.5}

It knows labels, no tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray_lora.errors import DataError, did_you_mean
from ray_lora.tasks.labels import label_index, label_word
from ray_lora.tasks.rows import shown


def count(values: Iterable[Any], labels: Sequence[str] | None) -> Counter[str]:
    """Rows of each label among values; those that have none are named elsewhere.

    Args:
        labels: None: they are not known yet.
    """
    found: Counter[str] = Counter()
    for value in values:
        try:
            found[label_word(value) if labels is None else labels[label_index(value, labels)]] += 1
        except DataError:
            continue
    return found


def balanced(counts: Iterable[Counter[str]], labels: Sequence[str]) -> dict[str, float]:
    """Rows / (labels * rows of the label), as `sklearn.utils.class_weight.compute_class_weight("balanced", ...)`.

    Raises:
        DataError: a label has no row.
    """
    total = sum(counts, Counter[str]())
    for label in labels:
        if not total[label]:
            raise DataError(
                f"label {shown(label)} has no training row, so it has no balanced weight; leave it out of task.labels, "
                "or write task.class_weights as label: weight"
            )
    return {label: total.total() / (len(labels) * total[label]) for label in labels}


def check_names(weights: Mapping[str, float], labels: Sequence[str]) -> None:
    """ValueError for a weight of something that is no label."""
    for label in weights:
        if label not in labels:
            raise ValueError(
                f"class_weights names {shown(label)}, which is not one of {', '.join(map(shown, labels))}"
                f"{did_you_mean(label, labels)}"
            )


def in_order(weights: Mapping[str, float], labels: Sequence[str]) -> list[float]:
    """The weight of each label; one that is not named weighs 1, as in scikit-learn."""
    return [weights.get(label, 1.0) for label in labels]
