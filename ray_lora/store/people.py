"""What a person's or a group's adapter is called in a store. A key is data: any text has a name, and each its own.

    person_name("tweets", "alice@example.com")     # "tweets.person.alice_40example_2ecom"
    group_name("tweets", "Berlin")                 # "tweets.group._42erlin"

Small letters, digits and "-" stand for themselves, other bytes of UTF-8 as "_" and two hexadecimal digits, so that
names differ on file systems too that do not tell large letters from small ones. A key that is too long for a name has
its SHA-256 after two dots.
"""

from __future__ import annotations

import hashlib
import string

from ray_lora.errors import RecipeError
from ray_lora.store.refs import PERSON, check_name

_PLAIN = frozenset((string.ascii_lowercase + string.digits + "-").encode())
_GROUP = ".group."
_LONGEST = 100


def person_name(name: str, key: str) -> str:
    """The name of a person's adapter among those of `name`."""
    return _name(f"{name}{PERSON}", key)


def group_name(name: str, key: str) -> str:
    """The name of a group's adapter among those of `name`."""
    return _name(f"{name}{_GROUP}", key)


def check_parent(name: str) -> None:
    """RecipeError for a name whose people's names could be mistaken for another's."""
    if any(mark in f"{name}." for mark in (PERSON, _GROUP)):
        raise RecipeError(
            f"name {name!r} has '.person' or '.group' in it, which mark people's adapters; choose another"
        )
    if len(name) > 40:
        raise RecipeError(f"name {name!r} has {len(name)} letters; where people's adapters are called by it at most 40")


def _name(prefix: str, key: str) -> str:
    data = key.encode("utf-8", "surrogatepass")
    named = prefix + "".join(chr(byte) if byte in _PLAIN else f"_{byte:02x}" for byte in data)
    if len(named) > _LONGEST:
        named = f"{prefix}.{hashlib.sha256(data).hexdigest()[:40]}"
    check_name(named)
    return named
