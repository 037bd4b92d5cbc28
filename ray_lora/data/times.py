"""In which order rows came: times, dates and numbers, and texts that say one of them.

    sort_keys(["9", "10"], "at", "rows.csv")              # [9, 10]
    sort_keys(["2026-01-31", "2026-02-01T08:00"], "at", "rows.csv")

A text is never compared letter by letter: "10" would come before "9", and 10/1/2026 before 9/1/2026. It knows values.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any

from ray_lora.errors import DataError
from ray_lora.tasks.rows import shown

_FORMS = "write ISO 8601 (2026-01-31T08:00:00, all with an offset or none), seconds since 1970, or another number"


def sort_keys(values: Sequence[Any], name: str, where: str) -> list[Any]:
    """What values are sorted by: numbers, times and dates as they are, texts as the numbers or times that they say.

    Args:
        name, where: of the column and its table, for messages.

    Raises:
        DataError: a text says no time, or some have an offset from UTC and others have none.
    """
    if not any(isinstance(value, str) for value in values):
        return list(values)
    numbers = [_number(value) for value in values]
    if None not in numbers:
        return numbers
    times = [_time(value) for value in values]
    if None in times:
        raise DataError(
            f"{where}: column {name!r} holds {shown(values[times.index(None)])}, which says no time; {_FORMS}"
        )
    if len({time.tzinfo is None for time in times if time is not None}) > 1:
        raise DataError(f"{where}: column {name!r} holds times with and without an offset from UTC; {_FORMS}")
    return times


def _number(value: Any) -> float | int | None:
    if not isinstance(value, str):
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    try:
        return int(value)
    except ValueError:
        pass
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _time(value: Any) -> datetime.datetime | None:
    if isinstance(value, datetime.datetime):
        return value
    if isinstance(value, datetime.date):
        return datetime.datetime.combine(value, datetime.time())
    if not isinstance(value, str):
        return None
    try:
        return datetime.datetime.fromisoformat(value.strip())
    except ValueError:
        return None
