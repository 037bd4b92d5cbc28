"""The names of labels that `datasets` keeps beside a column of indices (ClassLabel), in a file's schema.

    named(table, roles)          # its label 0 is "cat", as the schema says

It knows columns; it knows nothing of files and tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_lora.errors import DataError
from ray_lora.tasks import Column

_NONE = -1  # a row without a label, as `datasets` writes it


def named(table: pa.Table, roles: Mapping[str, Column], where: str) -> pa.Table:
    """A table whose columns of labels hold names where they held indices into names that the schema has.

    Args:
        where: the file, for messages.

    Raises:
        DataError: an index has no name.
    """
    for name, role in roles.items():
        if "label" not in role.kinds or table.column_names.count(name) != 1:
            continue
        words, column = _names(table.schema, name), table.column(name)
        if words is None or not pa.types.is_integer(column.type):
            continue
        known = pc.if_else(pc.equal(column, _NONE), pa.scalar(None, column.type), column)
        wrong = pc.or_(pc.less(known, 0), pc.greater_equal(known, len(words)))
        if pc.any(wrong).as_py():
            row = pc.index(wrong, True).as_py()
            raise DataError(
                f"{where}, row {row + 1}: label {column[row].as_py()} is no index of the {len(words)} names that the "
                f"file has for {name!r}"
            )
        table = table.set_column(table.column_names.index(name), name, pa.array(words).take(known))
    return table


def _names(schema: pa.Schema, column: str) -> Sequence[str] | None:
    """The names that the schema has for a column; None where it has none."""
    try:
        told: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        words = told["names"] if told["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None
    right = isinstance(words, list) and words and all(isinstance(word, str) for word in words)
    return words if right else None
