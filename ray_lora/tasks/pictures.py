"""Pictures of what was answered. Knows labels and matplotlib, no rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Counts = NDArray[np.int64]
_MOST_SHOWN = 40  # labels of a confusion matrix that can be read


def confusion(labels: Sequence[str], truth: Sequence[str], guess: Sequence[str]) -> Mapping[str, Figure]:
    """`confusion_matrix`: how often each true label (rows) was answered by each (columns); nothing of too many."""
    if len(labels) > _MOST_SHOWN:
        return {}
    from matplotlib.figure import Figure

    known = list(range(len(labels)))
    counts = counted(labels, truth, guess)
    figure = Figure(figsize=(3 + 0.4 * len(known), 3 + 0.4 * len(known)), layout="tight")
    axis = figure.subplots()
    axis.imshow(counts, cmap="Blues")
    axis.set(xlabel="answer", ylabel="truth", xticks=known, yticks=known, yticklabels=labels)
    axis.set_xticklabels(labels, rotation="vertical")
    for row, found in enumerate(counts.tolist()):
        for column, count in enumerate(found):
            colour = "white" if 2 * count > counts.max() else "black"
            if count:
                axis.text(column, row, str(count), ha="center", va="center", color=colour)
    return {"confusion_matrix": figure}


def counted(labels: Sequence[str], truth: Sequence[str], guess: Sequence[str]) -> Counts:
    """[labels, labels]: rows of each true label by their answers, without those of other labels. As scikit-learn's
    `confusion_matrix`, whose import takes a second of every worker's end."""
    place = {label: number for number, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for true, answer in zip(truth, guess, strict=True):
        if true in place and answer in place:
            counts[place[true], place[answer]] += 1
    return counts


def bars(name: str, labels: Sequence[str], values: Sequence[float]) -> Mapping[str, Figure]:
    """One bar from 0 to 1 for each label; nothing of too many."""
    if len(labels) > _MOST_SHOWN:
        return {}
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 1 + 0.3 * len(labels)), layout="tight")
    axis = figure.subplots()
    axis.barh(list(labels), list(values))
    axis.set(xlabel=name, xlim=(0, 1))
    axis.invert_yaxis()
    return {name: figure}


def precision_recall(truth: Sequence[bool], scores: Sequence[float], label: str) -> Mapping[str, Figure]:
    """`precision_recall`: of a label's scores, at every threshold; nothing where no row has the label."""
    if not any(truth):
        return {}
    from matplotlib.figure import Figure
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(list(truth), list(scores))
    figure = Figure(figsize=(5, 4), layout="tight")
    axis = figure.subplots()
    axis.step(recall, precision, where="post")
    axis.set(xlabel=f"recall of {label}", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    return {"precision_recall": figure}


def scatter(name: str, truth: Sequence[float], guess: Sequence[float]) -> Mapping[str, Figure]:
    """A point for each row, and the line on which they would lie if every answer were right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="tight")
    axis = figure.subplots()
    axis.scatter(list(truth), list(guess), s=8)
    axis.axline((truth[0], truth[0]), slope=1, color="black", linewidth=0.5)
    axis.set(xlabel="truth", ylabel="answer")
    return {name: figure}
