"""How a kind of base sees a picture, learns its objects and says what it found: the part of object detection that
differs between an anchor-free YOLOX and a base of queries.

    way = way_of(processor, labels)        # RecipeError for a base that is neither
    pixels, inside = way.pixels(picture)

It knows processors, pictures and tensors; no rows, no files, no adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ray_lora.errors import RecipeError

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
        ground: what lies beside a picture in its input, of red, green and blue from 0 to 1.
    """

    size: tuple[int, int]
    iou: float
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


def way_of(processor: Any, labels: Sequence[str]) -> Way:
    """The way of a base with this processor.

    Raises:
        RecipeError: it is no base that finds objects, or one whose loss is not of its own row alone.
    """
    if hasattr(processor, "strides"):
        from ray_lora.tasks.detection.anchored import Anchored

        return Anchored(processor)
    if (queries := getattr(processor, "queries", None)) is not None:
        from ray_lora.tasks.detection.queried import Queried

        return Queried(processor, queries, labels)
    kind = getattr(processor, "base_type", "")
    raise RecipeError(
        "object-detection needs a YOLOX as its base, such as yolox-tiny, or a YOLOS of transformers; this base is "
        + _REFUSED.get(kind, f"a {kind!r}" if kind else "none")
    )


_REFUSED: Mapping[str, str] = {
    "rt_detr": "an RT-DETR, whose training adds queries that are drawn at random for the whole batch, and losses of "
    "its encoder and of every layer: no row's loss would be its own",
    "rt_detr_v2": "an RT-DETR v2, whose training adds queries that are drawn at random for the whole batch",
}
