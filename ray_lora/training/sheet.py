"""A sheet of examples: some training rows as they were read, and what augmentation makes of each in the first epochs.

Pictures are drawn with their boxes and masks, sounds as spectrograms; texts are a table, a row before and after. It is
for people.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ray_lora.augmentation.apply import altered
from ray_lora.inference.windows import spread_windows
from ray_lora.tasks.augmented import Augmented, Picture, Sound, Tokens, View
from ray_lora.training.member import Member

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROWS, _EPOCHS = 4, 3
_NAME = "augmentation"
_WINDOW = 256  # samples of one column of a spectrogram
_SIDE = 2.2  # of a picture, in inches


def write_sheet(member: Member, folder: Path) -> None:
    """Write `augmentation.png`, of texts `augmentation.csv`, into a folder; nothing for a job that alters no rows."""
    job, task = member.job, member.task
    if not job.augmentation or not isinstance(task, Augmented):
        return
    numbers = list(islice(member.splits.train.rows, _ROWS))
    rows = [spread_windows({0: task}, [member.splits.train.rows[number]], [0]).features[0] for number in numbers]
    seen = [
        [task.view(row)]
        + [
            task.view(altered(task, job.augmentation, row, (job.training.seed, epoch, number, 0)))
            for epoch in range(_EPOCHS)
        ]
        for row, number in zip(rows, numbers, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(seen[0][0], Tokens):
        _write_texts(numbers, seen, folder / f"{_NAME}.csv")
    else:
        _draw(numbers, seen, folder / f"{_NAME}.png")


def _when(place: int) -> str:
    return "as read" if place == 0 else f"epoch {place}"


def _write_texts(numbers: Sequence[int], seen: Sequence[Sequence[View]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["row", "when", "tokens"])
        for number, views in zip(numbers, seen, strict=True):
            for place, view in enumerate(views):
                assert isinstance(view, Tokens)
                table.writerow([number, _when(place), " ".join(view.names(view.ids))])


def _draw(numbers: Sequence[int], seen: Sequence[Sequence[View]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIDE * (1 + _EPOCHS), _SIDE * len(seen)), layout="tight")
    axes = figure.subplots(len(seen), 1 + _EPOCHS, squeeze=False)
    for number, views, places in zip(numbers, seen, axes, strict=True):
        for place, (view, axis) in enumerate(zip(views, places, strict=True)):
            if isinstance(view, Sound):
                _draw_sound(view, axis)
            else:
                assert isinstance(view, Picture)
                _draw_one(view, axis)
            axis.set_title(f"row {number}, {_when(place)}", fontsize=8)
    figure.savefig(path)


def _draw_one(view: Picture, axis: Axes) -> None:
    from matplotlib.patches import Rectangle

    height, width = view.pixels.shape[-2:]
    axis.set_axis_off()
    pixels = view.pixels if len(view.pixels) == 3 else view.pixels[:1].expand(3, -1, -1)
    axis.imshow(pixels.clamp(0, 1).permute(1, 2, 0).numpy(), extent=(0, width, height, 0))
    if view.mask is not None:
        labels = view.mask.numpy()
        hidden = (labels == view.unlabelled) | (labels == 0)
        axis.imshow(labels, extent=(0, width, height, 0), alpha=0.5 * ~hidden, cmap="tab10", interpolation="nearest")
    for x, y, far, low in view.boxes.tolist() if view.boxes is not None else ():
        axis.add_patch(Rectangle((x, y), far - x, low - y, fill=False, edgecolor="lime"))


def _draw_sound(view: Sound, axis: Axes) -> None:
    """Its spectrogram, in decibels, and what is hidden; bands are those of its features, which lie closer below."""
    from matplotlib.patches import Rectangle
    from scipy.signal import spectrogram

    seconds, highest = len(view.samples) / view.rate, view.rate / 2
    axis.set_axis_off()
    if len(view.samples) >= _WINDOW:
        _, _, power = spectrogram(view.samples.numpy(), view.rate, nperseg=_WINDOW)
        extent = (0.0, seconds, 0.0, highest)
        axis.imshow(10 * np.log10(power + 1e-10), extent=extent, origin="lower", aspect="auto", cmap="magma")
    for along, start, end in view.hidden:
        time = along == "time"
        corner = (start * seconds, 0) if time else (0, start * highest)
        sides = ((end - start) * seconds, highest) if time else (seconds, (end - start) * highest)
        axis.add_patch(Rectangle(corner, *sides, color="lightgrey"))
