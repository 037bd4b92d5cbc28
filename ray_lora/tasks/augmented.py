"""What a task shows of an encoded training row so that it can be altered, and takes back.

    view = task.view(features)                      # Picture(pixels [3, 224, 224], ...)
    features = task.with_view(features, altered)    # what is trained on

Transforms know views, a task knows what its rows are: how pictures are normalised and where they lie in a base's input,
which of a row's values are its boxes, its mask, its tokens. It knows no transform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

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


class Hidden(NamedTuple):
    """A part of what a base's features show of a sound: of its time or of the features' bands, as shares of these."""

    along: Literal["time", "frequency"]
    start: float
    end: float


@dataclass(frozen=True)
class Sound:
    """A sound and what is not to be heard of it.

    Attributes:
        samples: [samples] float32, full scale from -1 to 1; rate: how many there are in a second.
        most: samples that a base hears at once, and a row may have.
        hidden: what features of it are not to show; `hide` does it.
    """

    samples: Tensor
    rate: int
    most: int
    hidden: tuple[Hidden, ...] = ()

    def hide(self, features: Tensor, frames: int | None = None) -> Tensor:
        """Features without what is hidden, in whose place their own mean is.

        Args:
            features: [..., bands, frames], such as log-mel.
            frames: how many of them the sound fills; None: all.
        """
        if not self.hidden:
            return features
        bands, every = features.shape[-2:]
        found, mean = features.clone(), features.mean()
        for along, start, end in self.hidden:
            size = bands if along == "frequency" else every if frames is None else frames
            stretch = slice(round(start * size), round(end * size))
            if along == "time":
                found[..., stretch] = mean
            else:
                found[..., stretch, :] = mean
        return found


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


View = Picture | Sound | Tokens


@runtime_checkable
class Augmented(Protocol):
    """What a `Task` has beside, whose training rows can be altered. Of one that is `Windowed`, rows are windows."""

    @property
    def augments(self) -> frozenset[Needs]:
        """What the rows have that transforms need."""
        ...

    def view(self, features: Features) -> Any:
        """What can be altered of an encoded row that has its target: a `Picture`, a `Sound` or `Tokens`."""
        ...

    def with_view(self, features: Features, view: Any) -> Features:
        """The row, with what was altered of it; `features` stay what they are.

        Args:
            view: a picture of the same shape, some of whose boxes may be missing; a sound of another length, at most
                `most`; some of the tokens, elsewhere.
        """
        ...
