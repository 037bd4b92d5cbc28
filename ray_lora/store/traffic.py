"""How requests for a bare name are spread over its versions. Knows no files, no HTTP, no adapters.

traffic = Traffic(split={3: 90, 4: 10}, shadow=5, share=0.2)
traffic.pick("tweets", "user-7")      # 3 or 4, for this user the same one as long as the weights stay
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets

from pydantic import Field, ValidationError, field_validator

from ray_lora.bounds import reason, short
from ray_lora.errors import AdapterError
from ray_lora.recipe import Spec


class Traffic(Spec):
    """What a store keeps of a name beside its aliases. Explicit refs (`name@3`, `name@alias`) are not touched by it."""

    split: dict[int, float] = Field(
        default={}, max_length=1000
    )  # version -> weight; empty: the champion (or the newest) answers
    shadow: int | None = None  # a version that answers a copy of the requests, for the record only
    share: float = Field(default=1.0, gt=0, le=1)  # of the requests that are copied to the shadow
    began: str = Field(
        default="", pattern=r"^[ -~]{0,64}$"
    )  # when these versions were put on trial, ISO 8601 in UTC; names the trial
    withdrawn: bool = False  # unloaded: endpoints do not serve the name until it is loaded again
    previous: tuple[int, ...] = ()  # what answered before each promotion, the last one last

    @field_validator("split")
    @classmethod
    def _weights(cls, split: dict[int, float]) -> dict[int, float]:
        if any(weight < 0 for weight in split.values()) or (split and not any(split.values())):
            raise ValueError("weights must not be negative, and one of them must be more than 0")
        return split

    def pick(self, name: str, user: str | None = None) -> int | None:
        """The version that answers this user, or one drawn by the weights for nobody in particular; None: no split.

        Weighted rendezvous hashing (Schindelhauer and Schomaker 2005): a user's version is the one with the least
        exponential draw of rate `weight`, so a version whose weight grows takes users from the others, and no other
        user moves.
        """
        if not self.split:
            return None
        user = secrets.token_hex(8) if user is None else user
        return min(self._parts(), key=lambda part: -math.log(_uniform(name, part[0], user)) / part[1])[0]

    def dump(self) -> str:
        """As JSON, without what is at its default."""
        return self.model_dump_json(exclude_defaults=True)

    def _parts(self) -> list[tuple[int, float]]:
        return [(version, weight) for version, weight in self.split.items() if weight > 0]


def parse_traffic(text: str | bytes, where: str) -> Traffic:
    """What `dump` wrote; AdapterError that names `where` for anything else."""
    try:
        return Traffic.model_validate(json.loads(text))
    except (ValueError, RecursionError) as error:
        why = reason(error) if isinstance(error, ValidationError) else short(str(error), 200)
        raise AdapterError(f"{where} does not say how traffic is split: {why}") from None


def _uniform(name: str, version: int, user: str) -> float:
    """A number in (0, 1) that follows from the three."""
    digest = hashlib.sha256(f"{name}\n{version}\n{user}".encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:6], "big") + 0.5) / 2**48
