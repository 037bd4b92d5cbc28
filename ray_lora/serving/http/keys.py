"""API keys: who may use which adapters, and who may load and unload them. Knows no routes and no adapters.

A YAML file, a list; names of adapters may hold `*`:

    - {key: sk-1, name: news-team, adapters: [tweets, "movies*"]}
    - {key: sk-2, name: ops, admin: true}
    - {key: sk-3, adapters: [chat], writing_answers: 8, writing_s: 60}

The file is read again within a second of its change. `RAY_LORA_API_KEYS` holds more keys, with commas between them,
each for all adapters without administration.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from ray_lora.errors import RayLoraError, RecipeError
from ray_lora.recipe import Json, Spec

ENVIRONMENT = "RAY_LORA_API_KEYS"
AGAIN_S = 1.0  # how often a file of keys is looked at, to see whether it has changed
_SHOWN = 80  # letters of a name that a message repeats
_logger = logging.getLogger(__name__)


class KeyMissingError(RayLoraError, PermissionError):
    """The request carries no key, or one that is not known."""


class KeyScopeError(RayLoraError, PermissionError):
    """The key is known, but not for this."""


class Key(Spec):
    """One key and what it is for."""

    key: str = Field(min_length=1, max_length=512, pattern=r"^[!-~]+$", repr=False)  # no two clients code others alike
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
            mine = ", ".join(self.adapters)[:_SHOWN] or "no adapter"
            raise KeyScopeError(f"this key is not for {name[:_SHOWN]!r}; it is for {mine}")

    def check_base(self) -> None:
        """KeyScopeError unless the key may use some adapter: the bare base goes with any of them."""
        if not self.admin and not self.adapters:
            raise KeyScopeError("this key is for no adapter, and so for no base")

    def check_admin(self) -> None:
        """KeyScopeError unless the key is an administrator's."""
        if not self.admin:
            raise KeyScopeError("this needs a key with admin: true")

    def may_use(self, name: str) -> bool:
        """Whether the key is for this adapter."""
        return self.admin or any(fnmatchcase(name, pattern) for pattern in self.adapters)


EVERYONE = Key(key="-", name="everyone", admin=True)  # where no keys are set


class Keys:
    """The keys of an endpoint; none at all means that everyone may do everything.

    With `path` the file is read again when it has changed. What cannot be read then changes nothing, with a warning;
    and who began with keys never opens to everyone.
    """

    def __init__(self, keys: Sequence[Key], path: str | None = None) -> None:
        self._by_hash = {_hash(key.key): key for key in keys}  # a lookup by hash tells nothing by its time
        self._path, self._mark, self._looked = path, path and _mark(path), time.monotonic()

    @classmethod
    def load(cls, path: str | None) -> Keys:
        """The keys of a file and of the environment.

        Raises:
            RecipeError: the file cannot be read or is not a list of keys, or a key has other letters than ASCII's.
        """
        return cls(_read(path), path)

    def __bool__(self) -> bool:
        return bool(self._by_hash)

    def of(self, headers: Mapping[str, str]) -> Key:
        """The key of a request: `Authorization: Bearer …` or `x-api-key`.

        Raises:
            KeyMissingError: there is none, or it is not known.
        """
        if not self._by_hash:
            return EVERYONE
        self._look_again()
        kind, _, given = headers.get("authorization", "").partition(" ")
        secret = given.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        key = self._by_hash.get(_hash(secret)) if secret else None
        if key is None:
            said = "this API key is not known" if secret else "an API key is needed"
            raise KeyMissingError(f"{said}; send it as 'Authorization: Bearer KEY'")
        return key

    def _look_again(self) -> None:
        now = time.monotonic()
        if self._path is None or now - self._looked < AGAIN_S:
            return
        self._looked = now
        mark = _mark(self._path)
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self._by_hash = {_hash(key.key): key for key in _read(self._path)}
        except RecipeError as error:
            _logger.warning("%s; the keys stay as they were", error)


def _read(path: str | None) -> list[Key]:
    """The environment's keys, and the file's."""
    told: list[tuple[str, Json]] = [
        (ENVIRONMENT, {"key": key.strip()}) for key in os.environ.get(ENVIRONMENT, "").split(",") if key.strip()
    ]
    if path is not None:
        where = f"keys file {path!r}"
        try:
            held = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RecipeError(f"{where} cannot be read: {error}") from None
        if not isinstance(held, list) or not held:
            raise RecipeError(f"{where} holds no list of keys; write one as `- {{key: SECRET, adapters: [NAME]}}`")
        told += [(where, item) for item in held]
    keys = []
    for where, item in told:
        try:
            keys.append(Key.model_validate(item))
        except ValidationError as error:
            wrong = {str(problem["loc"][0])[:_SHOWN] if problem["loc"] else "an item" for problem in error.errors()}
            letters = "; a key has letters of ASCII alone, without blanks" if "key" in wrong else ""
            raise RecipeError(f"{where}: wrong {', '.join(sorted(wrong))}{letters}; see docs/serving.md") from None
    return keys


def _mark(path: str) -> tuple[int, int, int] | None:
    """What changes when a file does."""
    try:
        held = Path(path).stat()
    except OSError:
        return None
    return held.st_ino, held.st_mtime_ns, held.st_size


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
