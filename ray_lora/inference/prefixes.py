"""What was kept of prompts that were read, so that another that begins alike goes on from there.

    prefixes = Prefixes(most=128 << 20)
    prefixes.keep("9f0c…", [5, 6, 7], kept)
    found = prefixes.longest("9f0c…", [5, 6, 8])          # 2 tokens of it

Whose it is is a content hash, never a name or a slot: what a name means, what sits in a slot and which version is
served may change, and a content that was exchanged has another hash. What was used longest ago goes first. It knows
tokens and tensors; no rows, no adapters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from ray_lora.engine.kv_cache import Pair

LEAST = 16  # tokens that are worth keeping
Kept = dict[int, Pair]  # keys and values by layer, each [heads, tokens, size]


class Prefixes:
    """What is kept, of at most `most` bytes.

    Attributes:
        bytes: that are held.
        hits: prompts that began with what was kept; reused: tokens that were not read again. Both since the start.
    """

    def __init__(self, most: int) -> None:
        self.most, self.bytes, self.hits, self.reused = most, 0, 0, 0
        self._kept: OrderedDict[tuple[str, tuple[int, ...]], Kept] = OrderedDict()  # used longest ago first

    def __len__(self) -> int:
        return len(self._kept)

    def longest(self, owner: str, ids: Sequence[int]) -> tuple[int, Kept] | None:
        """How many of a prompt's tokens are kept for this owner, all but the last at most, and where; None: too few."""
        best, where = 0, None
        for key in self._kept:
            if key[0] == owner and (count := _alike(key[1], ids)) > best:
                best, where = count, key
        best = min(best, len(ids) - 1)
        if where is None or best < LEAST:
            return None
        self._kept.move_to_end(where)
        self.hits += 1
        self.reused += best
        return best, self._kept[where]

    def keep(self, owner: str, ids: Sequence[int], kept: Kept) -> None:
        """Keep a prompt; shorter ones that it begins with are let go."""
        mine = tuple(ids)
        for key in [key for key in self._kept if key[0] == owner and _alike(key[1], mine) == len(key[1])]:
            self._let_go(key)
        size = _bytes(kept)
        if size > self.most:
            return
        self._kept[owner, mine] = kept
        self.bytes += size
        while self.bytes > self.most:
            self._let_go(next(iter(self._kept)))

    def forget(self, owners: Collection[str]) -> int:
        """Let go of what is kept for some owners; how many prompts that were."""
        mine = [key for key in self._kept if key[0] in owners]
        for key in mine:
            self._let_go(key)
        return len(mine)

    def holds(self, owner: str, ids: Sequence[int]) -> bool:
        """Whether all of a prompt is kept, or it is not worth it."""
        return len(ids) < LEAST or any(key[0] == owner and _alike(key[1], ids) == len(ids) for key in self._kept)

    def _let_go(self, key: tuple[str, tuple[int, ...]]) -> None:
        self.bytes -= _bytes(self._kept.pop(key))


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _bytes(kept: Kept) -> int:
    return sum(x.numel() * x.element_size() for pair in kept.values() for x in pair)
