"""Types that files of one split have in common: string and large_string are alike, and so are integers of any width.

    agree({"a.csv": schema, "b.csv": other}, roles)    # the schema of both, or a DataError that names the files

It knows names and types of columns, no files' formats and no rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from ray_lora.errors import DataError
from ray_lora.tasks import Column

_MOST_NAMED = 10  # files in one message
_WORDS = {"text", "label", "labels"}  # kinds of value that text files hold as texts
WRITTEN = {b"written": b"text"}  # of a field: a whole number that a text file holds as text


def agree(schemas: Mapping[str, pa.Schema], roles: Mapping[str, Column]) -> pa.Schema:
    """The common type of each column that the roles name and a file has.

    Args:
        schemas: of each file, by its name.

    Raises:
        DataError: a file has another type than others, or lacks a column that others have.
    """
    fields = []
    for name, role in roles.items():
        found = {where: _field(schema, name) for where, schema in schemas.items()}
        if not any(found.values()):
            continue
        common: pa.DataType | None = pa.null()
        for field in found.values():
            common = None if field is None or common is None else join(common, field.type)
        if common is None and all(field and _texts(field) for field in found.values()):
            common = pa.string()  # whole numbers in one text file, words in another
        if common is None:
            raise DataError(_differ(name, found))
        if pa.types.is_null(common) and _WORDS & set(role.kinds):
            common = pa.string()  # no file has a value: csv's are texts all the same
        fields.append(pa.field(name, common))
    return pa.schema(fields)


def join(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that values of both have, or None where there is none."""
    if pa.types.is_dictionary(one) or pa.types.is_dictionary(other):
        return join(_plain(one), _plain(other))
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    for kind, wide in ((_is_string, pa.large_string()), (_is_binary, pa.large_binary())):
        if kind(one) and kind(other):
            return wide
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        signed = pa.types.is_signed_integer(one) or pa.types.is_signed_integer(other)
        return pa.int64() if signed else pa.uint64()
    if pa.types.is_floating(one) and pa.types.is_floating(other):
        return pa.float64()
    if _is_list(one) and _is_list(other):
        inner = join(one.value_type, other.value_type)
        return None if inner is None else pa.large_list(inner)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _join_structs(one, other)
    return None


def _join_structs(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    types = {field.name: field.type for field in one}
    for field in other:
        inner = join(types.get(field.name, pa.null()), field.type)
        if inner is None:
            return None
        types[field.name] = inner
    return pa.struct(list(types.items()))


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _texts(field: pa.Field) -> bool:
    """Whether a column can be had as texts, as they are written."""
    return field.metadata == WRITTEN or pa.types.is_null(field.type) or _is_string(_plain(field.type))


def _field(schema: pa.Schema, name: str) -> pa.Field | None:
    at = schema.get_field_index(name)  # -1 where there are several: the reader of the table names them
    return schema.field(at) if at >= 0 else next((field for field in schema if field.name == name), None)


def _differ(name: str, found: Mapping[str, pa.Field | None]) -> str:
    kinds: dict[str, list[str]] = {}
    for where, field in found.items():
        kinds.setdefault("no such column" if field is None else str(_plain(field.type)), []).append(where)
    lines = [f"column {name!r} differs between files; write it alike in all of them:"]
    for kind, files in kinds.items():
        more = len(files) - _MOST_NAMED
        lines.append(f"  {kind}: {', '.join(files[:_MOST_NAMED])}" + (f" and {more} more" if more > 0 else ""))
    return "\n".join(lines)
