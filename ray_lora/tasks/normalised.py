"""Pictures as a base's image processor writes them, and from 0 to 1 again.

    normalised = Normalised.of(processor)      # None: pixels cannot be told from what it writes
    normalised.shown(pixel_values)             # black is 0, white 1

What a processor does is seen from what it makes of pictures of one colour, not from its options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_SIDE = 64  # of the pictures of one colour, in pixels
_GREY, _WHITE = 102, 255
_NEAR = 1e-4


@dataclass(frozen=True)
class Normalised:
    """Attributes: black and white, what a processor writes for them in each channel; colours: whether the channels are
    red, green and blue."""

    black: tuple[float, ...]
    white: tuple[float, ...]
    colours: bool

    @classmethod
    def of(cls, processor: Any) -> Normalised | None:
        """None where a picture of one colour does not become one, or grey does not lie between black and white."""
        levels = ((0, 0, 0), (_WHITE, _WHITE, _WHITE), (_GREY, _GREY, _GREY), (_WHITE, 0, 0))
        seen = [_flat(processor, level) for level in levels]
        black, white, grey, red = seen
        if black is None or white is None or grey is None or red is None:
            return None
        share = _GREY / _WHITE
        for low, high, between in zip(black, white, grey, strict=True):
            if high == low or abs((between - low) / (high - low) - share) > _NEAR:
                return None
        return cls(black, white, len(black) == len(levels[0]) and red == (white[0], *black[1:]))

    @property
    def ground(self) -> tuple[float, ...]:
        """What zero is, of each channel, from black, 0, to white, 1."""
        levels = (-low / (high - low) for low, high in zip(self.black, self.white, strict=True))
        return tuple(min(max(level, 0.0), 1.0) for level in levels)

    def shown(self, pixels: Tensor) -> Tensor:
        """[channels, height, width] float32 from 0 to 1."""
        black, white = self._levels(pixels)
        return (pixels.float() - black) / (white - black)

    def of_shown(self, pixels: Tensor) -> Tensor:
        """As the processor writes it, float32."""
        black, white = self._levels(pixels)
        return pixels * (white - black) + black

    def _levels(self, like: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        black, white = (torch.tensor(level, device=like.device)[:, None, None] for level in (self.black, self.white))
        return black, white


def _flat(processor: Any, colour: tuple[int, int, int]) -> tuple[float, ...] | None:
    """What a picture of one colour becomes, of each channel; None where it is not one value."""
    from PIL import Image

    pixels = processor([Image.new("RGB", (_SIDE, _SIDE), colour)], return_tensors="pt")["pixel_values"][0].float()
    low, high = pixels.amin((1, 2)), pixels.amax((1, 2))
    found: tuple[float, ...] = tuple(((low + high) / 2).tolist())
    return found if bool(((high - low).abs() <= _NEAR * (1 + high.abs())).all()) else None
