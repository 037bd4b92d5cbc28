"""Soft targets of tokens that are written: what a teacher says of each token of an answer, of the likeliest alone.

A vocabulary has fifty thousand tokens and a teacher believes in few of them, so what is kept of each place are its
`MOST` likeliest tokens, and all the others as one. Both distributions are over these classes: the distance is none
where the student gives each of them the teacher's probability. It knows tokens, no adapters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ray_lora.errors import DataError
from ray_lora.tasks.soft_targets import SOFT, Agreement, distance
from ray_lora.tasks.task import Features
from ray_lora.tasks.token_losses import logits_of, places, summed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

MOST = 32


class SoftTokens:
    """The next token at each of a row's places. Of each are kept log p of the likeliest tokens, log p of all others
    together, and the likeliest tokens' numbers, which float32 has exactly below 2**24."""

    agreement: ClassVar[Agreement] = "vocabulary"

    @abstractmethod
    def asked(self, row: Features) -> tuple[int, Sequence[int]]:
        """The column of the token that a row's first target follows, and its targets."""

    @property
    @abstractmethod
    def known(self) -> int:
        """How many of a base's outputs are tokens; the others pad its table."""

    def logits(self, outputs: Any, features: Sequence[Features]) -> list[Tensor]:
        """[places, likeliest tokens, the others, and the likeliest tokens' numbers] of each row."""
        import torch

        found = []
        for row, feature in enumerate(features):
            first, targets = self.asked(feature)
            _, columns = places([(first, len(targets))])
            said = logits_of(outputs, torch.full_like(columns, row), columns)[:, : self.known].float()
            count = min(MOST, said.shape[1] - 1)  # so that there are others
            numbers = said.topk(count).indices
            found.append(torch.cat([_shares(said, numbers), numbers.float()], 1).cpu())
        return found

    def soft_targets(self, parts: Sequence[Tensor], features: Features) -> Tensor:
        return parts[0]

    def with_soft_targets(self, features: Features, soft: NDArray[np.float32]) -> Features:
        count = len(self.asked(features)[1])
        if len(soft) != count:
            raise DataError(f"soft targets of {len(soft)} tokens were given for a row of {count}")
        return features | {SOFT: soft}

    def divergence(self, outputs: Any, features: Sequence[Features], temperatures: Tensor) -> Tensor:
        import numpy as np
        import torch

        told = [(self.asked(row)[0], len(row[SOFT])) for row in features]
        soft = torch.from_numpy(np.concatenate([row[SOFT] for row in features]))
        count = soft.shape[1] // 2
        shares, numbers = soft[:, : count + 1], soft[:, count + 1 :].long()
        heat = temperatures.to(torch.float64)[places(told)[0].to(temperatures.device)]

        def loss(logits: Tensor, part: slice) -> Tensor:
            mine = _shares(logits, numbers[part].to(logits.device))
            return distance(mine, shares[part].to(mine), heat[part].to(mine))

        return summed(outputs, told, loss)[0]


def _shares(logits: Tensor, numbers: Tensor) -> Tensor:
    """log p of some tokens of each place and of all others together, [places, tokens + 1]."""
    import torch

    others = logits.scatter(1, numbers, float("-inf")).logsumexp(1, keepdim=True)
    return torch.cat([logits.gather(1, numbers), others], 1) - logits.logsumexp(1, keepdim=True)
