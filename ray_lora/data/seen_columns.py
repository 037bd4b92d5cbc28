"""What columns seem to hold, from their types and values: texts, labels, lists of words, pictures, sounds.

    [seen.name for seen in look_at_columns(table) if "text" in seen.kinds]

It knows values, and no tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ray_lora.data.pictures import ENDS, SOUND_ENDS

_MOST_LABELS = 200
_LONGEST_LABEL = 4  # words
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
_SOUNDS = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3")


@dataclass(frozen=True)
class Seen:
    """A column.

    Attributes:
        kinds: what it may be, of image, audio, messages, answers, objects, words, tags, items, labels, label, text,
            number; none where nothing is known.
        values: of labels, how often each was seen.
        words: of nineteen of twenty texts, or lists, no more.
        lengths: of each list.
    """

    name: str
    kinds: frozenset[str]
    about: str
    values: Mapping[str, int] = field(default_factory=dict)
    words: int = 0
    lengths: tuple[int, ...] = ()


def look_at_columns(table: pa.Table) -> list[Seen]:
    """Each column of a table."""
    found = []
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        values = [value for value in column.to_pylist() if value is not None]
        found.append(_seen(name, column.type, values))
    return found


def _seen(name: str, kind: pa.DataType, values: Sequence[Any]) -> Seen:
    if not values:
        return Seen(name, frozenset(), "empty")
    if pa.types.is_struct(kind):
        return _struct(name, {kind.field(at).name for at in range(kind.num_fields)}, values)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _list(name, kind.value_type, values)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        held = _file(values[0])
        return Seen(name, frozenset({held} if held else ()), held or "bytes")
    if pa.types.is_floating(kind):
        if all(float(value).is_integer() for value in values):
            return _words(name, [f"{value:g}" for value in values], {"number"})
        return Seen(name, frozenset({"number"}), "numbers")
    if pa.types.is_integer(kind):
        return _words(name, [str(value) for value in values], {"number"})
    if pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _words(name, [str(value) for value in values], set())
    return Seen(name, frozenset(), str(kind))


def _struct(name: str, fields: set[str], values: Sequence[Any]) -> Seen:
    if {"bytes", "path"} <= fields:
        first = values[0]
        held = _file(first["bytes"]) or _by_end(str(first["path"]))
        return Seen(name, frozenset({held} if held else ()), held or "files")
    if {"text", "answer_start"} <= fields:
        return Seen(name, frozenset({"answers"}), "answers")
    if "bbox" in fields and fields & {"category", "category_id", "label", "categories"}:
        return Seen(name, frozenset({"objects"}), "boxes")
    return Seen(name, frozenset(), f"fields {', '.join(sorted(fields))}")


def _list(name: str, kind: pa.DataType, values: Sequence[list[Any]]) -> Seen:
    longest = _most([len(value) for value in values])
    if pa.types.is_struct(kind):
        fields = {kind.field(at).name for at in range(kind.num_fields)}
        return Seen(name, frozenset({"messages"} if {"role", "content"} <= fields else ()), "a list of fields")
    inside = [item for value in values for item in value if item is not None]
    few = len(set(inside)) <= min(_MOST_LABELS, max(2, len(inside) // 4))
    kinds, lengths = {"items", *(["tags"] if few else [])}, tuple(map(len, values))
    if pa.types.is_integer(kind):
        return Seen(name, frozenset(kinds), "lists of numbers", Counter(map(str, inside)), longest, lengths)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return Seen(name, frozenset(), f"lists of {kind}")
    kinds |= {"words", *(["labels"] if few else [])}
    return Seen(name, frozenset(kinds), "lists of words", Counter(map(str, inside)), longest, lengths)


def _words(name: str, values: Sequence[str], kinds: set[str]) -> Seen:
    ends = {_by_end(value) for value in values[:50]}
    if len(ends) == 1 and None not in ends:
        held = ends.pop()
        assert held is not None
        return Seen(name, frozenset({held}), f"paths of files ({held})")
    counts, lengths = Counter(values), [len(value.split()) for value in values]
    few = len(counts) <= min(_MOST_LABELS, max(2, len(values) // 3)) and max(lengths) <= _LONGEST_LABEL
    between = "number" not in kinds and _few_between(values)
    if few and not between:
        kinds = kinds | {"label"}
    if between:
        kinds = kinds | {"labels"}
    if "number" not in kinds and not between and not (few and max(lengths) == 1):
        kinds = kinds | {"text"}
    about = f"{len(counts)} labels" if "label" in kinds else "texts" if "text" in kinds else "values"
    return Seen(name, frozenset(kinds), about, counts if "label" in kinds else {}, _most(lengths))


def _few_between(values: Sequence[str]) -> bool:
    """Whether texts are labels between bars, as several labels of a row are written."""
    if not any("|" in value for value in values):
        return False
    parts = Counter(part for value in values for part in value.split("|"))
    return len(parts) <= min(_MOST_LABELS, max(2, len(values) // 2)) and all(
        len(part.split()) <= _LONGEST_LABEL for part in parts
    )


def _most(lengths: Sequence[int]) -> int:
    return sorted(lengths)[int(0.95 * (len(lengths) - 1))]


def _by_end(value: str) -> str | None:
    end = value.rsplit(".", 1)[-1].lower() if "." in value else ""
    return "image" if end in ENDS else "audio" if end in SOUND_ENDS else None


def _file(content: Any) -> str | None:
    """What bytes begin as."""
    if not isinstance(content, bytes):
        return None
    if content.startswith(_SOUNDS) or (content[:4] == b"RIFF" and content[8:12] == b"WAVE"):
        return "audio"
    return "image" if content.startswith(_PICTURES) or content[8:12] == b"WEBP" else None
