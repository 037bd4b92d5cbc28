"""Transforms applied to a row, and whether they can be. What is drawn follows from seed, epoch, row and window alone.

So a row of an epoch is the same alone and in a pack, on any number of workers, and after a restart. It knows views, no
members and no packs.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from ray_lora.augmentation.table import TRANSFORMS, transform_class
from ray_lora.errors import RecipeError
from ray_lora.recipe import TransformSpec
from ray_lora.tasks import Features, Task
from ray_lora.tasks.augmented import Augmented
from ray_lora.transform_spec import Needs

_SAID: dict[Needs, str] = {
    "pictures": "rows of pictures",
    "colours": "pictures in colours",
    "sounds": "rows of sounds",
    "tokens": "rows of texts",
    "order": "rows whose labels are of a text as a whole",
    "mask": "a base whose tokenizer has a mask token",
}


def check_transforms(task: Task, transforms: Sequence[TransformSpec]) -> None:
    """RecipeError unless the rows of this task, on its base, can be altered so, and what does it is installed."""
    has = task.augments if isinstance(task, Augmented) else frozenset[Needs]()
    for number, transform in enumerate(transforms):
        lacks = sorted(transform.needs - has)
        if lacks:
            fits = [name for name in TRANSFORMS if transform_class(name).needs <= has]
            raise RecipeError(
                f"augmentation.{number}: {transform.name} needs {' and '.join(_SAID[need] for need in lacks)}; "
                f"{task.spec.type} on this base takes {', '.join(fits) or 'none'}"
            )
        if transform.library is not None and find_spec(transform.library) is None:
            raise RecipeError(
                f"augmentation.{number}: {transform.name} needs {transform.library}: "
                "pip install 'ray_lora[augmentation]'"
            )


def altered(
    task: Task, transforms: Sequence[TransformSpec], features: Features, drawn: tuple[int, int, int, int]
) -> Features:
    """A training row as it is trained on; the very one that was given where no transform takes part.

    Args:
        drawn: seed, epoch, the row's number among all training rows, and the window's among the row's.
    """
    assert isinstance(task, Augmented)  # check_transforms
    view = given = task.view(features)
    for number, transform in enumerate(transforms):
        view = transform(view, np.random.Generator(np.random.Philox(np.random.SeedSequence((*drawn, number)))))
    return features if view is given else task.with_view(features, view)
