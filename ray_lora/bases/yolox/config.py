"""What a YOLOX is: its sizes, the pictures that it takes, the classes that it was trained on.

YoloxConfig(width=0.375)      # YOLOX-Tiny
YoloxConfig.of(tensors)       # of the tensors of a public checkpoint
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from pydantic import Field, field_validator

from ray_lora.errors import BaseModelError
from ray_lora.recipe import Spec

STRIDES = (8, 16, 32)  # input pixels a cell, of the three levels
_CHANNELS = 64  # of the stem at width 1
_SMALL = 0.5  # widths below it were published for pictures of 416 pixels a side, others for 640
_STEM = "backbone.backbone.stem.conv.conv.weight"
_CLASSES = "head.cls_preds.0.weight"


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


class YoloxConfig(Spec):
    """The file `config.json` of a base's folder.

    Attributes:
        depth, width: multiples of the published large one: nano 0.33 and 0.25, tiny 0.33 and 0.375, s 0.33 and 0.5.
        depthwise: whether convolutions of 3 x 3 are one per channel and one of 1 x 1 behind it, as in nano.
        fused: whether batch norms are folded into the convolutions before them, which then have a bias.
        image_size: height and width of the pictures, in pixels; multiples of 32.
        channel_order: of the pictures that the weights were trained on.
        num_labels: classes of the prediction layers in the file; id2label: their names, by number.
    """

    model_type: Literal["yolox"] = "yolox"
    depth: float = Field(default=0.33, gt=0)
    width: float = Field(default=0.5, gt=0)
    depthwise: bool = False
    fused: bool = False
    image_size: tuple[int, int] = (640, 640)
    channel_order: Literal["bgr", "rgb"] = "bgr"
    num_labels: int = Field(default=80, ge=1)
    id2label: dict[int, str] | None = None

    @field_validator("image_size")
    @classmethod
    def _whole_cells(cls, size: tuple[int, int]) -> tuple[int, int]:
        if any(side < STRIDES[-1] or side % STRIDES[-1] for side in size):
            raise ValueError(f"image_size {list(size)} must be two multiples of {STRIDES[-1]}, height and width")
        return size

    @field_validator("id2label")
    @classmethod
    def _named(cls, names: dict[int, str] | None) -> dict[int, str] | None:
        if names is not None and sorted(names) != list(range(len(names))):
            raise ValueError("id2label must name the outputs 0, 1, 2, … one by one")
        return names

    @property
    def blocks(self) -> int:
        """Bottlenecks of a stage; the two middle ones of the trunk have three times as many."""
        return max(round(3 * self.depth), 1)

    @property
    def num_hidden_layers(self) -> int:
        """Convolutions before the prediction layers; one of each channel and the one behind it count as one."""
        return 50 + 24 * self.blocks

    @property
    def hidden_size(self) -> int:
        """Channels of the stem. A convolution keeps about 32 times as many numbers of a patch of 16 x 16 pixels."""
        return int(_CHANNELS * self.width)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes' names by number; None where they are not known."""
        names = self.id2label
        return None if names is None or len(names) != self.num_labels else tuple(names[at] for at in range(len(names)))

    @classmethod
    def of(cls, tensors: Mapping[str, Shaped]) -> YoloxConfig:
        """What tensors under the public names say; their picture size and channel order are the published ones.

        Raises:
            BaseModelError: they are not a YOLOX's.
        """
        if _STEM not in tensors or _CLASSES not in tensors:
            raise BaseModelError(
                f"these {len(tensors)} tensors are no YOLOX's: {_STEM!r} or {_CLASSES!r} is not among them; give a "
                "checkpoint of YOLOX's own training, or a state dict under its names"
            )
        width = tensors[_STEM].shape[0] / _CHANNELS
        blocks = len({name.split(".")[5] for name in tensors if name.startswith("backbone.backbone.dark2.1.m.")})
        side = 416 if width < _SMALL else 640
        return cls(
            depth=round(blocks / 3, 2),
            width=width,
            depthwise=any(".dconv." in name for name in tensors),
            fused=not any(".bn." in name for name in tensors),
            image_size=(side, side),
            num_labels=tensors[_CLASSES].shape[0],
        )
