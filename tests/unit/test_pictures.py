"""Pictures of what was answered."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as some
from sklearn.metrics import confusion_matrix

from ray_lora.tasks.pictures import confusion, counted

LABELS = ("no", "yes", "perhaps")


@given(some.lists(some.tuples(some.sampled_from([*LABELS, "O"]), some.sampled_from([*LABELS, "O"]))))
def test_labels_are_counted_as_scikit_learn_counts_them(pairs: list[tuple[str, str]]) -> None:
    """Beginning with a row of a known label, without which it refuses."""
    truth, guess = zip(("yes", "perhaps"), *pairs, strict=True)
    np.testing.assert_array_equal(counted(LABELS, truth, guess), confusion_matrix(truth, guess, labels=list(LABELS)))


def test_the_matrix_shows_the_counts_and_too_many_labels_have_none() -> None:
    figure = confusion(LABELS, ["no", "no", "yes", "O"], ["no", "yes", "yes", "no"])["confusion_matrix"]
    [axis] = figure.axes
    assert {text.get_position()[::-1]: text.get_text() for text in axis.texts} == {
        (0, 0): "1",
        (0, 1): "1",
        (1, 1): "1",
    }
    assert confusion([str(number) for number in range(41)], ["1"], ["2"]) == {}
