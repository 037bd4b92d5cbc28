"""How a text begins that a base is to write token by token. Knows numbers alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Begun:
    """One row's text.

    Attributes:
        tokens: what the decoder is given first.
        most: how many it may write.
        timestamps: whether it writes when each sentence begins and ends.
    """

    tokens: tuple[int, ...]
    most: int
    timestamps: bool = False
