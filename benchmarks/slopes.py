"""Whether a quantity that was looked at now and then grows: its slope an hour, and what that means.

    slope = fit([0, 60, 120], [10.0, 10.1, 10.0], allowed=1.0)
    slope.says                                             # "flat"

The slope is Theil and Sen's (the median of the slopes between all pairs of points; Sen 1968), which some peaks do not
move, with its 95% interval (scipy.stats.theilslopes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import theilslopes


@dataclass(frozen=True)
class Slope:
    """Units of the quantity an hour."""

    an_hour: float
    low: float
    high: float
    allowed: float

    @property
    def says(self) -> Literal["flat", "grows", "unclear"]:
        """`flat` where the slope is at most what is allowed, `grows` where it is more and the interval lies above zero,
        `unclear` where it is more and the interval holds zero: too few points, or too wild."""
        if self.an_hour <= self.allowed:
            return "flat"
        return "grows" if self.low > 0 else "unclear"


def fit(seconds: Sequence[float], values: Sequence[float], allowed: float) -> Slope:
    """The slope of values that were taken at these seconds.

    Raises:
        ValueError: fewer than three points, or as many seconds as values there are not.
    """
    if len(seconds) != len(values) or len(values) < 3:
        raise ValueError(f"{len(seconds)} times and {len(values)} values; a slope needs three of both or more")
    found = theilslopes(values, [second / 3600 for second in seconds])
    slope, low, high = (float(part) for part in (found.slope, found.low_slope, found.high_slope))
    low, high = (slope if math.isnan(bound) else bound for bound in (low, high))
    return Slope(slope, low, high, allowed)
