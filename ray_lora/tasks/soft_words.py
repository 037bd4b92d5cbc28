"""Soft targets of words: what a teacher says at the piece that stands for a word goes to the student's piece for it.

So teacher and student may have different tokenizers, and windows of different lengths. A word that the teacher does not
read, because its text is cut before, is trained by its label alone. It knows words and pieces, no adapters.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ray_lora.errors import DataError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.soft_targets import SOFT, Agreement, distance, exact
from ray_lora.tasks.task import Features
from ray_lora.tasks.words import numbered

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class SoftWords:
    """One label a word, from logits [rows, pieces, labels]; `pieces` of a row's features are those of its words."""

    agreement: ClassVar[Agreement] = "rows"
    labels: tuple[str, ...]

    @abstractmethod
    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Any]:
        """The logits of each window, [pieces, labels] float32."""

    @abstractmethod
    def held(self, count: int, width: int) -> slice:
        """Where in a padded row its tokens lie."""

    def teaching(self, spec: TaskSpec) -> TaskSpec:
        """With this task's labels, so that an index among the rows' labels means the same."""
        return spec.model_copy(update={"labels": self.labels})

    def logits(self, outputs: Any, features: Sequence[Features]) -> list[Tensor]:
        return self.decode(outputs, features, {})

    def soft_targets(self, parts: Sequence[Tensor], features: Features) -> Tensor:
        """[words, labels]; NaN for a word that is cut."""
        import torch

        whole = torch.cat(list(parts))
        found = torch.full((len(features["pieces"]), whole.shape[1]), float("nan"))
        read = [(word, piece) for word, piece in enumerate(features["pieces"]) if piece is not None]
        found[[word for word, _ in read]] = whole[[piece for _, piece in read]]
        return found

    def with_soft_targets(self, features: Features, soft: NDArray[np.float32]) -> Features:
        """In each window: the pieces that stand for words, and the soft targets of these words."""
        words = len(features["pieces"])
        if soft.shape != (words, len(self.labels)):
            raise DataError(f"soft targets {soft.shape} were given for a row of {words} words")
        windows = features.get("windows", [features])
        firsts = numbered(windows)
        mine: list[list[tuple[int, int]]] = [[] for _ in windows]
        for word, piece in enumerate(features["pieces"]):
            if piece is not None:
                window = bisect_right(firsts, piece) - 1
                mine[window].append((piece - firsts[window], word))
        told = [([piece for piece, _ in one], soft[[word for _, word in one]]) for one in mine]
        if "windows" not in features:
            return features | {SOFT: told[0]}
        return features | {"windows": [window | {SOFT: one} for window, one in zip(windows, told, strict=True)]}

    def divergence(self, outputs: Any, features: Sequence[Features], temperatures: Tensor) -> Tensor:
        import numpy as np
        import torch
        import torch.nn.functional as F

        rows, columns, truth = [], [], []
        for row, feature in enumerate(features):
            begin = self.held(len(feature["labels"]), outputs.logits.shape[1]).start
            pieces, _ = feature[SOFT]
            rows += [row] * len(pieces)
            columns += [begin + piece for piece in pieces]
            truth += [feature["labels"][piece] for piece in pieces]
        of_row = torch.tensor(rows, dtype=torch.int64, device=outputs.logits.device)
        mine = exact(outputs.logits[of_row, torch.tensor(columns, dtype=torch.int64, device=of_row.device)])
        soft = torch.from_numpy(np.concatenate([feature[SOFT][1] for feature in features])).to(mine)
        unread = soft.isnan().any(-1)
        losses = distance(mine, soft.masked_fill(unread[:, None], 0), temperatures.to(mine)[of_row])
        labels = torch.tensor(truth, dtype=torch.int64, device=mine.device)
        losses = torch.where(unread, F.cross_entropy(mine, labels, reduction="none"), losses)
        return losses.new_zeros(len(features)).index_add(0, of_row, losses)
