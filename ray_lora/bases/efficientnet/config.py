"""What an EfficientNet-Lite is: its sizes, and the pictures that it takes.

EfficientNetConfig()                                            # Lite0
EfficientNetConfig(width=1.1, depth=1.2, image_size=(260, 260))     # Lite2
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ray_lora.recipe import Spec

STEM = 32  # channels of the first convolution, at any width
_DIVISOR = 8  # channels are multiples of it


@dataclass(frozen=True)
class Stage:
    """Blocks of one kind: how many, their kernel, the first one's stride, how far they widen, channels behind them."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


_STAGES = (  # table 1 of the paper
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class EfficientNetConfig(Spec):
    """The file `config.json` of a base's folder.

    Attributes:
        width, depth: multiples of Lite0's channels and blocks: Lite1 1.0 and 1.1, Lite2 1.1 and 1.2, Lite3 1.2 and 1.4,
            Lite4 1.4 and 1.8.
        image_size: height and width of the pictures that it was trained on, in pixels. It takes pictures of any size.
        expanded: channels between the convolutions of each block that widens, in their order, where a cut left fewer
            than the stage's; None where none did.
        num_labels: classes of the head in the file; id2label: their names, by number.
    """

    model_type: Literal["efficientnet-lite"] = "efficientnet-lite"
    width: float = Field(default=1.0, gt=0)
    depth: float = Field(default=1.0, gt=0)
    image_size: tuple[int, int] = (224, 224)
    expanded: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    num_labels: int = Field(default=1000, ge=1)
    id2label: dict[int, str] | None = None

    @field_validator("id2label")
    @classmethod
    def _named(cls, names: dict[int, str] | None) -> dict[int, str] | None:
        if names is not None and sorted(names) != list(range(len(names))):
            raise ValueError("id2label must name the outputs 0, 1, 2, … one by one")
        return names

    @model_validator(mode="after")
    def _for_each_block(self) -> EfficientNetConfig:
        wide = sum(stage.blocks for stage in self.stages if stage.expansion > 1)
        if self.expanded is not None and len(self.expanded) != wide:
            raise ValueError(f"expanded has {len(self.expanded)} numbers, and {wide} blocks widen; give one for each")
        return self

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages at this width and depth; Lite scales neither the stem nor the first and last number of blocks."""
        last = len(_STAGES) - 1
        return tuple(
            Stage(
                stage.blocks if at in (0, last) else math.ceil(self.depth * stage.blocks),
                stage.kernel,
                stage.stride,
                stage.expansion,
                _rounded(self.width * stage.channels),
            )
            for at, stage in enumerate(_STAGES)
        )

    @property
    def inner(self) -> tuple[int, ...]:
        """Channels inside each block; one that does not widen has those that come in."""
        told = None if self.expanded is None else iter(self.expanded)
        found, into = [], STEM
        for stage in self.stages:
            for _ in range(stage.blocks):
                wide = into * stage.expansion
                found.append(wide if told is None or stage.expansion == 1 else next(told))
                into = stage.channels
        return tuple(found)

    @property
    def num_hidden_layers(self) -> int:
        """Convolutions before the head."""
        return 2 + sum(stage.blocks * (2 if stage.expansion == 1 else 3) for stage in self.stages)

    @property
    def hidden_size(self) -> int:
        """Channels of the stem. A block widens them six times, at a quarter of the pixels."""
        return STEM

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The classes' names by number; None where they are not known."""
        names = self.id2label
        return None if names is None or len(names) != self.num_labels else tuple(names[at] for at in range(len(names)))


def _rounded(channels: float) -> int:
    """The nearest multiple of 8 that is not a tenth smaller."""
    near = max(_DIVISOR, int(channels + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
    return near + _DIVISOR if near < 0.9 * channels else near
