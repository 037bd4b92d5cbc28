"""Sequential recommendation: what comes next. A row is

    {"items": [50, 172, 133], "next": 210}

the ids of what somebody took, the oldest first, and what came after. A row that is to be answered has no `next`. Every
item of a training row but the first is learned from those before it; scores are of `next` alone.

It is for bases whose vocabulary is items: a SASRec.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.recommendation.histories import is_id, say_unknown, wrong_history
from ray_lora.tasks.recommendation.measures import measures
from ray_lora.tasks.recommendation.options import FULL, options_of
from ray_lora.tasks.rows import shown
from ray_lora.tasks.task import Column, Features, Row

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

_PLAIN = {  # a SASRec's plain classes, as its folder names them, by whose output layer it is
    "base": "AutoModelForNextItem",
    "adapter": "AutoModelForNextItemUntied",
}


class SequentialRecommendationSpec(TaskSpec):
    """Options of the task.

    Attributes:
        max_length: items of a history that are read, the latest; None: as many as the base takes.
        exclude_seen: whether answers, and the lists that are scored, leave out the items of their history.
        output_layer: whose scores the items have: the base's own, frozen, which are its item embeddings; or the
            adapter's, which begin as those and are trained, vocabulary times hidden size numbers an adapter.
    """

    type: Literal["sequential-recommendation"] = "sequential-recommendation"
    max_length: int | None = Field(default=None, ge=1)
    exclude_seen: bool = True
    output_layer: Literal["base", "adapter"] = Field(default="base", exclude_if=lambda told: told == "base")

    def describe(self) -> dict[str, Json]:
        return {"exclude_seen": self.exclude_seen}


class SequentialRecommendation:
    """Items with scores, from the plain class AutoModelForNextItem or AutoModelForNextItemUntied."""

    spec_type: ClassVar[type[TaskSpec]] = SequentialRecommendationSpec
    columns: ClassVar[Mapping[str, Column]] = {
        "items": Column(("items",), about="ids of what somebody took, the oldest first"),
        "next": Column(("item",), "training", "the id of what came after"),
    }
    input: ClassVar[str] = "items"
    pipeline: ClassVar[str] = "sequential-recommendation"
    full: ClassVar[Mapping[str, Json]] = FULL
    fits_head: ClassVar[bool] = False  # the output layer is the base's own, or begins as that
    metric: ClassVar[str] = "ndcg_10"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {"ndcg_10": "max", "hit_rate_10": "max"}
    peft_type: ClassVar[str | None] = None

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        if not hasattr(processor, "unknown"):
            raise RecipeError(
                "sequential-recommendation needs a base whose vocabulary is items, such as a folder of "
                "ray_lora.bases.sasrec; this base is none"
            )
        options = cast(SequentialRecommendationSpec, spec)
        if options.max_length is not None and options.max_length > processor.positions:
            raise RecipeError(
                f"task.max_length {options.max_length} exceeds the {processor.positions} items that this base reads"
            )
        self.spec = spec
        self.head = HeadSpec(_PLAIN[options.output_layer], len(processor.ids))
        self.longest: int = options.max_length or processor.positions
        self._items, self._exclude = processor, options.exclude_seen

    # ------------------------------------------------------------ of a block of rows, before anything is loaded

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> None:
        """Nothing: which items there are, the base says."""

    @classmethod
    def merge(cls, spec: TaskSpec, learned: Iterable[None]) -> TaskSpec:
        return spec

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        for row, (items, after) in enumerate(_pairs(block)):
            why = wrong_history(items)
            if why is None and not is_id(after):
                why = f"next {shown(after)} is no id; an id is a whole number or a text"
            if why is not None:
                yield row, why

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        whose = {name: whose for whose, name in _PLAIN.items()}.get(head.architecture)
        return None if whose is None else SequentialRecommendationSpec.model_validate({"output_layer": whose})

    def unknown(self, block: pa.Table) -> Iterator[tuple[int, str]]:
        """The rows that hold items which the base does not know."""
        for row, (items, after) in enumerate(_pairs(block)):
            if wrong_history(items) is None and is_id(after):
                why = self._say_unknown([*items, after])
                if why is not None:
                    yield row, why

    # ------------------------------------------------------------ of rows on their way through the model

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        return [self._encode(row) for row in rows]

    def _encode(self, row: Row) -> Features:
        items, after = row["items"], row.get("next")
        why = wrong_history(items) or self._say_unknown(items if after is None else [*items, after])
        if why is not None:
            raise DataError(why)
        numbers = [self._items.number(item) for item in items]
        features = Features(ids=numbers[-self.longest :])
        if after is not None:
            features["next"] = self._items.number(after)
        if len(numbers) > self.longest:
            features["cut"] = f"longer than {self.longest} items"
            features["before"] = sorted(set(numbers[: -self.longest]))  # seen, though not read
        return features

    def _say_unknown(self, items: Sequence[Any]) -> str | None:
        unknown = self._items.unknown(items)
        return say_unknown(unknown, self._items.ids, self._items.kind) if unknown else None

    def size(self, features: Features) -> int:
        """Items that are read."""
        return len(features["ids"])

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """input_ids and attention_mask, [rows, longest]."""
        from ray_lora.bases.padding import pad

        return pad([row["ids"] for row in features], self._items)

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """Cross entropy over all items at every place; a row has as many terms as items that are read."""
        import torch
        from torch.nn.functional import cross_entropy

        logits = outputs["logits"]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nowhere = -100
        targets = torch.full(logits.shape[:2], nowhere, device=logits.device)
        for row, one in enumerate(features):
            following = [*one["ids"][1:], one["next"]]
            targets[row, : len(following)] = torch.tensor(following, device=logits.device) - 1
        losses = cross_entropy(logits.transpose(1, 2), targets, ignore_index=nowhere, reduction="none")
        return losses.sum(1), (targets != nowhere).sum(1).to(losses)

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        options_of(parameters, self._exclude)

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        """Each row's items, best first; a score is the item's share of all items, those that are left out included."""
        import torch

        options = options_of(parameters, self._exclude)
        logits = outputs["logits"]
        last = torch.tensor([len(row["ids"]) - 1 for row in features], device=logits.device)
        mine = logits[torch.arange(len(features), device=logits.device), last]
        shares = mine.to(torch.promote_types(mine.dtype, torch.float32)).softmax(-1).cpu()
        answers: list[Json] = []
        for row, one in enumerate(features):
            seen = {*one["ids"], *one.get("before", ())} if options.exclude_seen else set()
            wanted = len(self._items.ids) if options.top_k is None else options.top_k + len(seen)
            best = shares[row].topk(min(wanted, len(self._items.ids)))
            found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            listed = [{"item": self._items.ids[at], "score": share} for share, at in found if at + 1 not in seen]
            answers.append(listed[: options.top_k])
        return answers

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """Over the full ranking: a row's next item is looked for in its list of ten of all items."""
        truths = [self._items.ids[row["next"] - 1] for row in features]
        return measures([[one["item"] for one in answer] for answer in predictions], truths)

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        from ray_lora.tasks.recommendation.drawing import drawn

        return drawn(predictions, features, self._items.ids, self._exclude)


def _pairs(block: pa.Table) -> Iterable[tuple[Any, Any]]:
    return zip(block.column("items").to_pylist(), block.column("next").to_pylist(), strict=True)
