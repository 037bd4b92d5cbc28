"""The other bases and replicas behind one address, as an endpoint sees them. Knows no Ray; `handles.py` is the link.

A command for every replica is one of COMMANDS; its answer, or the error that it raised, comes back from each.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from ray_lora.errors import RayLoraError
from ray_lora.recipe import Json
from ray_lora.serving.http.relay import Asked, Head, Told

COMMANDS = ("describe", "prewarm", "renew", "forget", "status")


class Peers(Protocol):
    """Who else is there."""

    bases: Sequence[str]  # ids of the other bases

    async def ask(self, base: str, asked: Asked) -> Told:
        """What some replica of another base answers to a request. BaseAwayError when none does."""
        ...

    def pour(self, base: str, asked: Asked) -> AsyncIterator[Head | bytes]:
        """As `ask`, part by part as it comes."""
        ...

    async def tell(self, base: str | None, command: str, *arguments: Json) -> list[Any]:
        """Give a command to every replica of a base (None: of all bases), this one included; their answers.

        Raises the first error of those that raised one; a replica that has died is passed over.
        """
        ...


class Replica(Protocol):
    """What every replica does when it is told to: COMMANDS."""

    async def describe(self) -> str: ...

    async def prewarm(self, ref: str, pinned: bool = False) -> None: ...

    async def renew(self, gone: str | None = None) -> None: ...

    async def forget(self, name: str) -> dict[str, Json]: ...

    async def status(self) -> dict[str, Json]: ...


class Alone:
    """One base, one replica."""

    bases: Sequence[str] = ()

    def __init__(self, endpoint: Replica) -> None:
        self.endpoint = endpoint

    async def ask(self, base: str, asked: Asked) -> Told:
        """Never called: there is no other base."""
        raise AssertionError(base)

    def pour(self, base: str, asked: Asked) -> AsyncIterator[Head | bytes]:
        """Never called: there is no other base."""
        raise AssertionError(base)

    async def tell(self, base: str | None, command: str, *arguments: Json) -> list[Any]:
        """See `Peers.tell`."""
        return answers_of([await obey(self.endpoint, command, arguments)])


async def obey(endpoint: Replica, command: str, arguments: Sequence[Json]) -> Any:
    """Carry out a command; a user's error is returned, not raised, so that it travels as it is."""
    assert command in COMMANDS, command
    try:
        return await getattr(endpoint, command)(*arguments)
    except RayLoraError as error:
        return error


def answers_of(told: Sequence[Any]) -> list[Any]:
    """The answers; raises the first error among them."""
    for answer in told:
        if isinstance(answer, Exception):
            raise answer
    return list(told)
