"""The low-rank terms of tokens whose slots' pairs lie side by side: two products for all slots of a pass.

`side_by_side` keeps the pairs and says where each token finds its own. It knows tokens and tensors, not slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """The tokens of one pass whose slots' pairs lie side by side: the last ones that are anybody's.

    Attributes:
        pairs: of each layer its A, [places, in, rank], and B, [places, rank, out].
        begin, end: the first of the tokens, and one behind the last.
        take: the token at each place, [places * tokens]; None where they lie so.
        put: of each token from `begin` to `end` its place.
    """

    pairs: Mapping[int, tuple[Tensor, Tensor]]
    begin: int
    end: int
    take: Tensor | None
    put: Tensor | None

    def add(self, index: int, x: Tensor, y: Tensor) -> None:
        """Add the low-rank terms of layer `index` for x, [tokens, in], to y, [tokens, out], in place."""
        a, b = self.pairs[index]
        inputs = x[self.begin : self.end] if self.take is None else x.index_select(0, self.take)
        narrow = torch.bmm(inputs.to(a.dtype).view(len(a), -1, a.shape[1]), a)
        mine = y[self.begin : self.end]
        if self.put is None and y.dtype == b.dtype:
            mine.view(len(b), -1, b.shape[2]).baddbmm_(narrow, b)
            return
        term = torch.bmm(narrow, b).flatten(0, 1)
        mine.add_(term if self.put is None else term.index_select(0, self.put))
