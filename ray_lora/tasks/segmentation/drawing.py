"""Pictures of a segmenter's answers: masks on held-out pictures, which label is taken for which, precision over recall,
and what of small and of large objects is found. It knows matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_lora.tasks.segmentation.masks import IGNORED, Array
from ray_lora.tasks.segmentation.scoring import SIZES, count, found_by_size, measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS, _COLUMNS = 2, 4  # of pictures: one row that are right, one that are wrong
_MOST_LABELS = 40  # of a matrix that can be read
_MOST_CURVES = 12  # labels whose curves can be told apart
_LEVELS = 256  # of an 8-bit probability
_RIGHT, _WRONG, _MISSED = (0, 255, 0), (255, 0, 0), (255, 255, 255)
_SHARE = 0.5  # of a colour over the picture


def drawn(
    maps: Sequence[Array],
    sures: Sequence[Array],
    truths: Sequence[Array],
    features: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    background: str | None,
) -> Mapping[str, Figure]:
    """`masks`, `confusion_matrix`, `precision_recall` and `found_by_size`.

    Args:
        maps, truths: classes of each picture's pixels; sures: probabilities times 255.
    """
    ground = labels.index(background) if background in labels else None
    figures = {
        "masks": _masks(maps, truths, features, labels, background),
        "precision_recall": _precision_recall(maps, sures, truths, labels, ground),
        "found_by_size": _by_size(maps, truths, ground),
    }
    if len(labels) <= _MOST_LABELS:
        figures["confusion_matrix"] = _matrix(maps, truths, labels)
    return figures


def _masks(
    maps: Sequence[Array],
    truths: Sequence[Array],
    features: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    background: str | None,
) -> Figure:
    """In the upper row the pictures with the best Dice, in the lower one those with the worst. A pixel is green where
    it is right, red where it has another label than it should, white where its object was missed."""
    from matplotlib.figure import Figure

    def dice(row: int) -> float:
        return measure(count([maps[row]], [truths[row]], len(labels)), labels, background)["dice"]

    ground = labels.index(background) if background in labels else -1
    scores = [dice(row) for row in range(len(maps))]
    order = sorted(range(len(maps)), key=lambda row: -scores[row])
    shown = [*order[:_COLUMNS], *order[_COLUMNS:][-_COLUMNS:]]
    figure = Figure(figsize=(3 * _COLUMNS, 3 * _ROWS), layout="tight")
    for axis in (axes := figure.subplots(_ROWS, _COLUMNS, squeeze=False).flatten()):
        axis.set_axis_off()
    for axis, row in zip(axes, shown, strict=False):
        width, height = features[row]["extent"]
        answer, truth = maps[row], truths[row]
        over = np.zeros((height, width, 4), np.uint8)
        known = truth != IGNORED
        for where, colour in (
            ((answer == truth) & (truth != ground), _RIGHT),
            ((answer != truth) & (answer != ground) & known, _WRONG),
            ((answer != truth) & (answer == ground) & known, _MISSED),
        ):
            over[where] = (*colour, round(255 * _SHARE))
        axis.imshow(_picture(features[row]), extent=(0, width, height, 0))
        axis.imshow(over, extent=(0, width, height, 0), interpolation="nearest")
        axis.set_title(f"Dice {scores[row]:.2f}", fontsize=8)
    return figure


def _picture(one: Mapping[str, Any]) -> Array:
    """What the network read, from 0 to 255; a normalised one from its darkest to its brightest."""
    wide, high = one["inside"]
    pixels = one["pixel_values"][:, :high, :wide].permute(1, 2, 0).numpy()
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, np.uint8)
    low, top = pixels.min(), pixels.max()
    return np.asarray((pixels - low) / max(top - low, 1e-9) * 255, np.uint8)


def _matrix(maps: Sequence[Array], truths: Sequence[Array], labels: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    counts = count(maps, truths, len(labels))
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    known = list(range(len(labels)))
    figure = Figure(figsize=(3 + 0.5 * len(known), 3 + 0.5 * len(known)), layout="tight")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xlabel="answer", ylabel="truth", xticks=known, yticks=known, yticklabels=labels)
    axis.set_xticklabels(labels, rotation="vertical")
    for row, found in enumerate(shares.tolist()):
        for column, share in enumerate(found):
            if counts[row, column]:
                colour = "white" if share > 0.5 else "black"
                axis.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=7)
    return figure


def _precision_recall(
    maps: Sequence[Array], sures: Sequence[Array], truths: Sequence[Array], labels: Sequence[str], ground: int | None
) -> Figure:
    """Of each label's pixels, as only surer and surer ones are taken for it."""
    from matplotlib.figure import Figure

    right, all_of = (np.zeros((len(labels), _LEVELS), np.int64) for _ in range(2))
    there = np.zeros(len(labels), np.int64)
    for answer, sure, truth in zip(maps, sures, truths, strict=True):
        known = truth != IGNORED
        mine, level, wanted = answer[known].astype(np.int64), sure[known], truth[known]
        place = mine * _LEVELS + level
        size = len(labels) * _LEVELS
        all_of += np.bincount(place, minlength=size).reshape(all_of.shape)
        right += np.bincount(place[mine == wanted], minlength=size).reshape(right.shape)
        there += np.bincount(wanted, minlength=len(labels))
    figure = Figure(figsize=(5, 5), layout="tight")
    axis = figure.subplots()
    shown = [at for at in range(len(labels)) if at != ground and there[at]]
    for at in shown[:_MOST_CURVES]:
        hits, answers = right[at, ::-1].cumsum(), all_of[at, ::-1].cumsum()
        some = answers > 0
        axis.plot(hits[some] / there[at], hits[some] / answers[some], linewidth=1, label=labels[at])
    if shown:
        axis.legend(fontsize=7)
    axis.set(xlabel="recall of pixels", ylabel="precision of pixels", xlim=(0, 1), ylim=(0, 1.02))
    return figure


def _by_size(maps: Sequence[Array], truths: Sequence[Array], ground: int | None) -> Figure:
    from matplotlib.figure import Figure

    found = found_by_size(maps, truths, ground)
    figure = Figure(figsize=(5, 2), layout="tight")
    axis = figure.subplots()
    names = [f"{size} ({found[size][1]:,} px)" for size in SIZES]
    axis.barh(names, [hit / max(area, 1) for hit, area in found.values()])
    axis.set(xlabel="share of objects' pixels that are found", xlim=(0, 1))
    axis.invert_yaxis()
    return figure
