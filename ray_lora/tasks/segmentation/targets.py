"""A row's mask as class indices: of a PNG, or of COCO's objects drawn on what is in none of them.

    target(row["mask"], picture.size, options)          # uint8 [height, width], IGNORED where nobody knows

It knows masks and options, no pictures.
"""

from __future__ import annotations

from typing import Any

from ray_lora.errors import DataError
from ray_lora.tasks.segmentation import masks
from ray_lora.tasks.segmentation.masks import IGNORED
from ray_lora.tasks.segmentation.options import ImageSegmentationSpec


def target(value: Any, size: tuple[int, int], options: ImageSegmentationSpec) -> masks.Array:
    """A row's mask as class indices, uint8 [height, width], IGNORED where nobody knows.

    Args:
        size: width and height of its picture.

    Raises:
        DataError: it cannot be read, is not of this picture, or has a class that is no label.
    """
    labels = options.labels or ()
    if masks.is_objects(value):
        if options.background not in labels:
            raise DataError(
                f"objects need a label for what is in none of them, and task.background {options.background!r} is none "
                f"of the labels {list(labels)}; add it to task.labels, or name one of them"
            )
        return masks.drawn_objects(value, size, labels, labels.index(options.background))
    given, found = indices_in(value, options)
    why = masks.of_other_size(given, size) or masks.unknown(found, labels)
    if why is not None:
        raise DataError(why)
    return found


def indices_in(value: Any, options: ImageSegmentationSpec) -> tuple[masks.Array, masks.Array]:
    """A PNG's numbers, and the class indices that the options make of them."""
    import numpy as np

    given = masks.indices_of(value)
    found = given.copy()
    unknown = given == options.ignore_index
    if options.masks == "binary":
        return given, np.minimum(given, 1)
    if options.reduce_labels:
        unknown |= given == 0
        found = found - 1  # of unsigned numbers: what 0 becomes is overwritten
    elif options.ignore_index != IGNORED and (given == IGNORED).any():
        raise DataError(f"the mask has index {IGNORED}, which is beyond all labels; ignored is {options.ignore_index}")
    found[unknown] = IGNORED
    return given, found
