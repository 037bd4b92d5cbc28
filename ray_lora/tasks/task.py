"""The one interface a task implements.

A task is handed rows of its own kind and never learns which adapters they belong to. Its module must import without
torch: recipes and search trials ask it for its options. `docs/add-a-task.md` writes one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from ray_lora.recipe import Json, TaskSpec

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

    from ray_lora.bases.plain import HeadSpec

Row = Mapping[str, Any]  # one row of the data, under the task's column names
Features = dict[str, Any]  # one row's model inputs, and its target when the row has one
FILE_KINDS = frozenset({"image", "audio"})  # kinds of value that are files: their bytes, or in data a path


@dataclass(frozen=True)
class Column:
    """One column of a task's rows.

    Attributes:
        kinds: the kinds of value that may stand in it. A file's "text", "label" and "labels" are read as written; a
            value of kind "image" or "audio" may be given as a file's path; other words ("integer", "boxes") are for
            people.
        required: always, or only in the rows that train and score. An optional one may be missing, in a file for all
            of its rows; then rows do not have it.
        about: what it is, for people.
    """

    kinds: tuple[str, ...]
    required: Literal["always", "training", "optional"] = "always"
    about: str = ""


class Task(Protocol):
    """What is predicted and how it is scored. One whose rows may be longer than what a base reads at once is `Windowed`
    too (`inference/windows.py`).

    Attributes:
        spec_type: the task's own options, a `TaskSpec`.
        columns: the columns of a training row, by role.
        input: the column that a bare value in a request stands for.
        pipeline: the Hugging Face pipeline whose answers `decode` gives.
        full: parameters with which `decode` leaves nothing of an answer out.
        metric: the metric that decides by default; metrics: every metric and whether more is better.
        peft_type: PEFT's task_type of a saved adapter.
        head: the plain class that answers, transformers' or the base's builder's.
        longest: the largest `size` a row can have.
    """

    spec_type: ClassVar[type[TaskSpec]]
    columns: ClassVar[Mapping[str, Column]]
    input: ClassVar[str]
    pipeline: ClassVar[str]
    full: ClassVar[Mapping[str, Json]]
    metric: ClassVar[str]
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]]
    peft_type: ClassVar[str | None]
    spec: TaskSpec
    head: HeadSpec

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        """RecipeError when the options are not complete, or do not fit a base with this processor."""
        ...

    # ------------------------------------------------------------ of a block of rows, before anything is loaded

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> Any:
        """What a block of training rows teaches (its labels, its words), for `merge`; a value that pickles."""
        ...

    @classmethod
    def merge(cls, spec: TaskSpec, learned: Iterable[Any]) -> TaskSpec:
        """The options completed by what all blocks taught; DataError when that is too little."""
        ...

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        """The wrong rows of a block: the row's number in it, from 0, and what is wrong and allowed.

        Args:
            spec: completed by `merge`.
            block: with every column; none of its values is null.
        """
        ...

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        """The options of an adapter that plain PEFT wrote, if a head like this can only be this task's."""
        ...

    # ------------------------------------------------------------ of rows on their way through the model

    @property
    def longest(self) -> int: ...

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        """Model inputs of rows; a row that cannot be read is a DataError that says which and why.

        A row of which not all is read says why under `cut` ("longer than 9 tokens"); such rows are counted.
        """
        ...

    def size(self, features: Features) -> int:
        """How much of a pass this row takes (tokens, patches); rows of like size are computed together."""
        ...

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """The backbone's inputs, [rows, ...], padded to the longest row."""
        ...

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """(sum of losses, number of terms) for each row, both [rows]; an adapter's loss is its rows' sum over count."""
        ...

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        """RecipeError unless `decode` takes these parameters; called before anything is computed."""
        ...

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        """Each row's answer in the shape of the Hugging Face pipeline of this task."""
        ...

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """Metrics of predictions made with no parameters."""
        ...

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure | str]:
        """Pictures, or pages of HTML, of predictions made with no parameters, by name; an empty mapping where there is
        nothing to see."""
        ...
