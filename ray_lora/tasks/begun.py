"""How a text begins that a base is to write token by token, and what was looked at meanwhile. Knows numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Begun:
    """One row's text.

    Attributes:
        tokens: what the decoder is given first.
        most: how many it may write.
        timestamps: whether it writes when each sentence begins and ends.
        looks: (layer, head) of the decoder's attention to the encoder whose weights are kept; none for most texts.
    """

    tokens: tuple[int, ...]
    most: int
    timestamps: bool = False
    looks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Looked:
    """A text that was written, and where some heads looked.

    Attributes:
        tokens: without the end.
        weights: of each head, for each token that the decoder was given, float32 [heads, given, positions]. The last
            one of a text that was cut was not given.
    """

    tokens: list[int]
    weights: Tensor
