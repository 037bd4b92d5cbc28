"""Held-out pictures beside what was answered of them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessor

from ray_lora.tasks.image_classification import ImageClassification, ImageClassificationSpec

LABELS = ("blue", "red")


@pytest.mark.parametrize("normalised", [True, False])
def test_right_pictures_are_above_and_wrong_ones_below(normalised: bool) -> None:
    size = {"height": 8, "width": 8}
    processor = ViTImageProcessor(
        size=size, do_normalize=normalised, image_mean=[0.2, 0.5, 0.7], image_std=[0.1, 0.5, 2]
    )
    task = ImageClassification(ImageClassificationSpec(labels=LABELS), processor)
    pictures = [Image.new("RGB", (8, 8), (20 * row, 250 - 20 * row, 7 * row)) for row in range(12)]
    features = task.encode([{"image": one, "label": LABELS[row % 2]} for row, one in enumerate(pictures)])
    answers = [{"label": LABELS[row % 2 if row < 7 else 1 - row % 2], "score": 0.5 + row / 100} for row in range(12)]
    figures = task.figures(answers, features)
    assert set(figures) == {"confusion_matrix", "pictures"}
    axes = figures["pictures"].axes
    assert [axis.get_title() for axis in axes] == [
        *("blue 0.56", "red 0.55", "blue 0.54", "red 0.53"),
        *(f"{LABELS[1 - row % 2]} {0.5 + row / 100:.2f}\nis {LABELS[row % 2]}" for row in (8, 9, 10, 11)),
    ]
    assert [axis.title.get_color() for axis in axes] == ["green"] * 4 + ["red"] * 4
    for axis, row in zip(axes, (6, 5, 4, 3, 8, 9, 10, 11), strict=True):
        seen = np.asarray(axis.images[0].get_array())
        assert np.abs(seen * 255 - np.asarray(pictures[row])).max() < 0.01
    few = task.figures(answers[:1], features[:1])["pictures"]
    assert [axis.get_title() for axis in few.axes] == ["blue 0.50"] + [""] * 7
