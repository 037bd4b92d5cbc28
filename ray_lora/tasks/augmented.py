"""What a task shows of an encoded training row so that it can be altered, and takes back.

    view = task.view(features)                      # Picture(pixels [3, 224, 224], ...)
    features = task.with_view(features, altered)    # what is trained on

Transforms know views, a task knows what its rows are: how pictures are normalised and where they lie in a base's input,
which of a row's values are its boxes, its mask, its tokens. It knows no transform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ray_lora.tasks.task import Features
from ray_lora.transform_spec import Needs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """A picture and what lies in it.

    Attributes:
        pixels: [channels, height, width] float32, from 0, black, to 1; colours are red, green and blue.
        ground: of what comes into the picture from outside, the value of each channel.
        boxes: corners (x, y, x, y) in pixels from the upper left corner, [objects, 4] float64; objects: which of the
            row's boxes each one is, [objects] int64. Both None where rows have no boxes.
        mask: the label of each pixel, [height, width] int64; None where rows have none.
        unlabelled: the label of what comes into a mask from outside.
    """

    pixels: Tensor
    ground: tuple[float, ...]
    boxes: Tensor | None = None
    objects: Tensor | None = None
    mask: Tensor | None = None
    unlabelled: int = -100


@dataclass(frozen=True)
class Tokens:
    """A row's tokens.

    Attributes:
        ids: their numbers; places: where in the row each stood.
        fixed: which of them stay what and where they are: those that a tokenizer sets around a text.
        mask: the number of the token that hides another one; None where there is none.
        names: tokens as people read them, of their numbers.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    fixed: tuple[bool, ...]
    mask: int | None
    names: Callable[[Sequence[int]], Sequence[str]]


View = Picture | Tokens


@runtime_checkable
class Augmented(Protocol):
    """What a `Task` has beside, whose training rows can be altered. Of one that is `Windowed`, rows are windows."""

    @property
    def augments(self) -> frozenset[Needs]:
        """What the rows have that transforms need."""
        ...

    def view(self, features: Features) -> Any:
        """What can be altered of an encoded row that has its target: a `Picture` or `Tokens`."""
        ...

    def with_view(self, features: Features, view: Any) -> Features:
        """The row, with what was altered of it; `features` stay what they are.

        Args:
            view: of the same shape; some of its boxes, or of its tokens, may be missing, and tokens be elsewhere.
        """
        ...
