"""Whose adapter answers a request that names a person: the person's own, else the group's, else what both come from.

    {"model": "shops", "person": "shop 4", "group": "a", "inputs": "..."}      # served_by: person, group or parent

Which one it was is said in the answer. A key must be for all of the names that may answer, so that it learns of nobody
that it is not for. Knows names and keys; nothing of slots.
"""

from __future__ import annotations

from typing import Literal

from fastapi import Request

from ray_lora.errors import DataError
from ray_lora.serving.endpoint import Endpoint
from ray_lora.store.people import group_name, person_name

ServedBy = Literal["person", "group", "parent"]


async def served_by(
    endpoint: Endpoint, ref: str, person: str | None, group: str | None, request: Request
) -> tuple[str, ServedBy | None]:
    """The ref that answers, and as what; the request's own and None where it names nobody."""
    if person is None and group is None:
        return ref, None
    if "@" in ref or endpoint.names.is_base(ref) or ref in endpoint.names.peers.bases:
        raise DataError(f"model is {ref!r}; where person or group is given, name the adapter that people's come from")
    key = endpoint.keys.of(request.headers)
    named: list[tuple[ServedBy, str]] = []
    if person is not None:
        named.append(("person", person_name(ref, some("person", person))))
    if group is not None:
        named.append(("group", group_name(ref, some("group", group))))
    for _, name in named:
        key.check_adapter(name)
    for kind, name in named:
        if await endpoint.names.registry.holds(name):
            return name, kind
    return ref, "parent"


def some(what: str, key: str) -> str:
    """The key of a person or a group; DataError where it can be none."""
    if not key.strip() or len(key) > 512:
        raise DataError(f"{what} has {len(key)} characters; give a key of 1 to 512 that is not blank")
    return key
