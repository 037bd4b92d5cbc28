"""Answers as columns of a table, of types that do not change from one part of a run to the next.

    columns = AnswerColumns(pinned.pipelines, {"top_k": 2}, prefix="")
    columns.of(answers)      # prediction, adapter, version, sha256, error

A run of one pipeline's adapters has that pipeline's answer as `prediction`; of several, a struct with a field for each
(`text_classification`, `token_classification`), of which one is set. It knows answers and Arrow, no adapters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from ray_lora.errors import DataError
from ray_lora.recipe import Json

if TYPE_CHECKING:
    from ray_lora.inference.tables import Answer

_LABEL = {"label": pa.string(), "score": pa.float64()}
_SPAN = {"score": pa.float64(), "start": pa.int64(), "end": pa.int64()}
_FIELDS: dict[str, dict[str, pa.DataType]] = {  # of one answer, or of each item where a pipeline gives a list
    "text-classification": _LABEL,
    "image-classification": _LABEL,
    "token-classification": {"entity": pa.string(), "index": pa.int64(), "word": pa.string(), **_SPAN},
    "question-answering": {"answer": pa.string(), **_SPAN},
}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ENTITIES = {"entity_group": pa.string(), "word": pa.string(), **_SPAN}
NAMES = ("prediction", "adapter", "version", "sha256", "error")


class AnswerColumns:
    """See the module.

    Args:
        pipelines: those of the run's adapters.
        parameters: of all answers.
        prefix: of the columns' names.
    """

    def __init__(self, pipelines: Sequence[str], parameters: Mapping[str, Json], prefix: str = "") -> None:
        self._types = {name: _type(name, parameters) for name in pipelines}
        self.names = tuple(prefix + name for name in NAMES)
        self._prefix = prefix

    @property
    def type(self) -> pa.DataType:
        """Of the column `prediction`."""
        if len(self._types) == 1:
            return next(iter(self._types.values()))
        fields = [pa.field(name.replace("-", "_"), kind) for name, kind in self._types.items()]
        return pa.struct(fields) if fields else pa.null()

    def check(self, names: Sequence[str], where: str) -> None:
        """DataError where a table has a column of one of these names."""
        taken = [name for name in self.names if name in names]
        if taken:
            raise DataError(
                f"{where} has a column {taken[0]!r} already, and answers are written into columns of that name; give a "
                "prefix for theirs, such as lora_"
            )

    def of(self, refs: Sequence[str | None], answers: Sequence[Answer]) -> dict[str, pa.Array]:
        """The columns, by name.

        Args:
            refs: as the rows name their adapters.
        """
        answers = [self._placed(answer) for answer in answers]
        entries = [answer.entry for answer in answers]
        values: list[tuple[Sequence[Json], pa.DataType]] = [
            ([self._value(answer) for answer in answers], self.type),
            ([ref if entry is None else entry.name for ref, entry in zip(refs, entries, strict=True)], pa.string()),
            ([None if entry is None else entry.version for entry in entries], pa.int64()),
            ([None if entry is None else entry.sha256 for entry in entries], pa.string()),
            ([answer.error for answer in answers], pa.string()),
        ]
        return {name: pa.array(column, kind) for name, (column, kind) in zip(self.names, values, strict=True)}

    def _placed(self, answer: Answer) -> Answer:
        if answer.error is not None or answer.pipeline in self._types:
            return answer
        return Answer(
            answer.entry,
            error=f"the adapter's answers are of {answer.pipeline}, which none were when this run began; begin anew",
        )

    def _value(self, answer: Answer) -> Json:
        if answer.error is not None:
            return None
        assert answer.pipeline is not None
        kind = self._types[answer.pipeline]
        value = json.dumps(answer.prediction) if kind == pa.string() else answer.prediction
        if pa.types.is_list(kind) and not isinstance(value, list):
            value = [value]
        return value if len(self._types) == 1 else {answer.pipeline.replace("-", "_"): value}


def _type(pipeline: str, parameters: Mapping[str, Json]) -> pa.DataType:
    """Of one row's answer; a pipeline that is not known here answers in JSON."""
    if pipeline == "object-detection":
        pixels = pa.int64() if parameters.get("rounded", True) else pa.float64()
        box = pa.struct(dict.fromkeys(_CORNERS, pixels))
        return pa.list_(pa.struct({"score": pa.float64(), "label": pa.string(), "box": box}))
    if pipeline == "image-segmentation":
        if parameters.get("form") == "map":
            return pa.struct({"score": pa.float64(), "map": pa.string(), "sure": pa.string()})
        return pa.list_(pa.struct({"score": pa.float64(), "label": pa.string(), "mask": pa.string()}))
    if pipeline not in _FIELDS:
        return pa.string()
    entities = pipeline == "token-classification" and parameters.get("aggregation_strategy") not in (None, "none")
    item = pa.struct(_ENTITIES if entities else _FIELDS[pipeline])
    several = pipeline == "token-classification" or "top_k" in parameters
    return pa.list_(item) if several else item
