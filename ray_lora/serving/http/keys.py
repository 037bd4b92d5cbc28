"""API keys: who may use which adapters, and who may load and unload them. Knows no routes and no adapters.

A YAML file, a list; names of adapters may hold `*`:

    - {key: sk-1, name: news-team, adapters: [tweets, "movies*"]}
    - {key: sk-2, name: ops, admin: true}
    - {key: sk-3, adapters: [chat], writing_answers: 8, writing_s: 60}

`RAY_LORA_API_KEYS` holds more keys, with commas between them, each for all adapters without administration.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from ray_lora.errors import RayLoraError, RecipeError
from ray_lora.recipe import Spec

ENVIRONMENT = "RAY_LORA_API_KEYS"


class KeyMissingError(RayLoraError, PermissionError):
    """The request carries no key, or one that is not known."""


class KeyScopeError(RayLoraError, PermissionError):
    """The key is known, but not for this."""


class Key(Spec):
    """One key and what it is for."""

    key: str = Field(min_length=1, repr=False)
    name: str = ""
    adapters: tuple[str, ...] = ("*",)
    admin: bool = False  # may load, unload, refresh and see all; and use every adapter
    writing_answers: int | None = Field(
        default=None, ge=1
    )  # written for it at once, with those that wait; of a replica
    writing_s: float | None = Field(
        default=None, gt=0
    )  # from arrival to the last token, where the endpoint's is longer

    def check_adapter(self, name: str) -> None:
        """KeyScopeError unless the key may use this adapter."""
        if not self.may_use(name):
            raise KeyScopeError(f"this key is not for {name!r}; it is for {', '.join(self.adapters) or 'no adapter'}")

    def check_admin(self) -> None:
        """KeyScopeError unless the key is an administrator's."""
        if not self.admin:
            raise KeyScopeError("this needs a key with admin: true")

    def may_use(self, name: str) -> bool:
        """Whether the key is for this adapter."""
        return self.admin or any(fnmatchcase(name, pattern) for pattern in self.adapters)


EVERYONE = Key(key="-", name="everyone", admin=True)  # where no keys are set


class Keys:
    """The keys of an endpoint; none at all means that everyone may do everything."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._by_hash = {_hash(key.key): key for key in keys}  # a lookup by hash tells nothing by its time

    @classmethod
    def load(cls, path: str | None) -> Keys:
        """The keys of a file and of the environment.

        Raises:
            RecipeError: the file cannot be read or is not a list of keys.
        """
        keys = [Key(key=key.strip()) for key in os.environ.get(ENVIRONMENT, "").split(",") if key.strip()]
        if path is not None:
            try:
                keys += [Key.model_validate(item) for item in yaml.safe_load(Path(path).read_text())]
            except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
                raise RecipeError(f"keys file {path!r} cannot be read: {error}") from None
            except ValidationError as error:
                where = {str(problem["loc"][0]) if problem["loc"] else "an item" for problem in error.errors()}
                raise RecipeError(
                    f"keys file {path!r}: wrong {', '.join(sorted(where))}; see docs/serving.md"
                ) from None
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._by_hash)

    def of(self, headers: Mapping[str, str]) -> Key:
        """The key of a request: `Authorization: Bearer …` or `x-api-key`.

        Raises:
            KeyMissingError: there is none, or it is not known.
        """
        if not self._by_hash:
            return EVERYONE
        kind, _, given = headers.get("authorization", "").partition(" ")
        secret = given.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        key = self._by_hash.get(_hash(secret)) if secret else None
        if key is None:
            said = "this API key is not known" if secret else "an API key is needed"
            raise KeyMissingError(f"{said}; send it as 'Authorization: Bearer KEY'")
        return key


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
