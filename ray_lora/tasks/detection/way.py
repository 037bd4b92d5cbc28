"""How a kind of base sees a picture, learns its objects and says what it found: the part of object detection that
differs between an anchor-free YOLOX and a base of queries.

    pixels, inside = way.pixels(picture)
    way.found(outputs).boxes

It knows processors, pictures and tensors; no rows, no files, no adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True)
class Found:
    """What a base says of a batch of pictures.

    Attributes:
        scores: from 0 to 1, [rows, places, labels]; boxes: corners in input pixels, [rows, places, 4].
        finite: of each row, whether all that was said of it are numbers.
    """

    scores: Tensor
    boxes: Tensor
    finite: list[bool]


class Way(Protocol):
    """One kind of base.

    Attributes:
        size: height and width of its input, in pixels.
        iou: of two answered boxes of one label that share more of their joint area only the surer one is answered,
            where nobody asks for another share; 1 answers all.
        masked: whether the class is told which pixels are the picture's, as `pixel_mask`.
        ground: what lies beside a picture in its input, of red, green and blue from 0 to 1.
    """

    size: tuple[int, int]
    iou: float
    masked: bool
    ground: tuple[float, ...]

    def pixels(self, picture: Image) -> tuple[Tensor, tuple[int, int]]:
        """The input of an RGB picture, [3, height, width], and the width and height that it takes of it."""
        ...

    def shown(self, pixels: Tensor) -> Tensor:
        """An input, or a part of it, as red, green and blue from 0, black, to 1, [3, height, width] float32."""
        ...

    def of_shown(self, pixels: Tensor) -> Tensor:
        """The other way round, in the input's own type."""
        ...

    def losses(self, outputs: Any, objects: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The sum of each row's losses and its number of terms, both [rows].

        Args:
            objects: of each row the corners in input pixels, [objects, 4], and the classes, [objects].
        """
        ...

    def found(self, outputs: Any) -> Found:
        """What the plain class's outputs say."""
        ...
