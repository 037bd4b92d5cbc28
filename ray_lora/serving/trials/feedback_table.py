"""What people said of answers, as a table to be joined with rows of one's own by the id of the request.

    table = feedback_table(Path("results"))      # id, name, version, variant, value, time
    mine.join(table, "id", join_type="inner")    # `mine` has each request's id and text

The endpoint keeps no inputs and no answers, so neither are here.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from ray_lora.serving.trials.compare import read_results

_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "name": pa.string(),
        "version": pa.int64(),
        "variant": pa.string(),
        "value": pa.float64(),
        "time": pa.timestamp("ms", "UTC"),
    }
)


def feedback_table(folder: Path) -> pa.Table:
    """The last feedback on each answer, from all replicas; true is 1 and false 0. Sorted by time."""
    rows = [
        {**arm._asdict(), "id": told, "value": float(value), "time": round(1000 * at)}
        for arm, outcome in read_results(folder).items()
        for told, (at, value) in outcome.feedback.items()
    ]
    rows.sort(key=lambda row: row["time"])
    return pa.Table.from_pylist([{name: row[name] for name in _SCHEMA.names} for row in rows], schema=_SCHEMA)
