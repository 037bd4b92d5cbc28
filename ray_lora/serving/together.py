"""Several adapters asked of the same inputs: their rows begin to wait for a batch at one moment, so that those that may
share a pass do. Knows nothing of adapters, batches or HTTP.

    together = Together(2)
    async with together.member() as member:      # one of the two, each in a task of its own
        ...                                      # encode; who fails here keeps nobody waiting
        await member.meet()                      # until both have come so far, or left
"""

from __future__ import annotations

import asyncio


class Together:
    """`count` members that meet once. Nobody may hold what another needs to come so far. Use from one event loop."""

    def __init__(self, count: int) -> None:
        self._missing = count
        self._all = asyncio.Event()

    def member(self) -> Member:
        """One of them."""
        return Member(self)

    def _arrived(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._all.set()


class Member:
    """One of those that meet."""

    def __init__(self, together: Together) -> None:
        self._together, self._here = together, False

    async def meet(self) -> None:
        """Wait for the others."""
        self._arrive()
        await self._together._all.wait()

    async def __aenter__(self) -> Member:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._arrive()

    def _arrive(self) -> None:
        if not self._here:
            self._here = True
            self._together._arrived()
