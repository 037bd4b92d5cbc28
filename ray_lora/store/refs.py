"""How a person names an adapter. Knows no files, no MLflow, no tensors.

A ref is written in one of three ways:

    parse_ref("tweets")           # ("tweets", None, None): its champion if there is one, else its newest version
    parse_ref("tweets@canary")    # ("tweets", "canary", None)
    parse_ref("tweets@3")         # ("tweets", None, 3)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from ray_lora.errors import AdapterError, AdapterNotFoundError, did_you_mean

CHAMPION = "champion"
PERSON = ".person."  # in the names of single persons' adapters
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ALIAS = re.compile(r"(?!latest$|v[0-9]+$)[A-Za-z][A-Za-z0-9._-]{0,99}")  # MLflow keeps "latest" and "v3" for itself
_EXACT = re.compile(r"sha256:([0-9a-f]{64})")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class UnknownNameError(AdapterNotFoundError):
    """The store does not have this name; `near` says which one is like it, or is empty."""

    def __init__(self, message: str, name: str = "", near: str = "") -> None:
        super().__init__(message)
        self.name, self.near = name, near

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, str]]:
        return type(self), (str(self), self.name, self.near)


def parse_ref(ref: str) -> tuple[str, str | None, int | None]:
    """(name, alias, version); at most one of the last two is set. AdapterNotFoundError for what cannot be a ref."""
    name, at, selector = ref.partition("@")
    if _NAME.fullmatch(name):
        if not at:
            return name, None, None
        if _VERSION.fullmatch(selector):
            return name, None, int(selector)
        if _ALIAS.fullmatch(selector):
            return name, selector, None
    raise AdapterNotFoundError(f"{ref[:120]!r} is not a ref; write name, name@alias or name@3")


def parse_exact(ref: str) -> tuple[str, str] | None:
    """(name, hash) of a ref that names a content, `name@sha256:` and 64 hexadecimal digits; None for any other."""
    name, _, selector = ref.partition("@")
    found = _EXACT.fullmatch(selector)
    return (name, found[1]) if found is not None and is_name(name) else None


def is_name(name: str) -> bool:
    """Whether this can name an adapter: no separators, nothing hidden, at most 100 letters."""
    return _NAME.fullmatch(name) is not None


def is_person(name: str) -> bool:
    """Whether a name is a single person's (`store.people`)."""
    return PERSON in name


def check_name(name: str) -> None:
    """AdapterError unless this can name an adapter."""
    if not is_name(name):
        raise AdapterError(
            f"{name[:120]!r} cannot name an adapter; use letters, digits, '.', '_' and '-', first a letter or digit"
        )


def is_alias(alias: str) -> bool:
    """Whether this can be an alias: a word that cannot be mistaken for a version."""
    return _ALIAS.fullmatch(alias) is not None


def check_alias(alias: str) -> None:
    """AdapterError unless this can be an alias."""
    if not is_alias(alias):
        raise AdapterError(
            f"{alias[:120]!r} cannot be an alias; use a word that begins with a letter and is not 'latest' or 'v3'"
        )


def version_of(text: str) -> int | None:
    """The version a folder's name stands for, or None."""
    return int(text) if _VERSION.fullmatch(text) else None


def choose(ref: str, versions: Collection[int], aliases: Mapping[str, int]) -> int:
    """The version of an existing name that a ref stands for.

    A bare name is its champion if there is one, else its newest version; an alias whose version is gone is an error,
    never another version.
    """
    name, alias, version = parse_ref(ref)
    if version is None and (alias or CHAMPION in aliases):
        alias = alias or CHAMPION
        if alias not in aliases:
            known = ", ".join(sorted(aliases)) or "none"
            raise AdapterNotFoundError(
                f"{name!r} has no alias {alias!r}{did_you_mean(alias, aliases)} (its aliases: {known}; its versions: "
                f"{_numbers(versions)})"
            )
        version = aliases[alias]
        if version not in versions:
            raise AdapterNotFoundError(
                f"{name}@{alias} points to version {version}, which is gone; its versions: {_numbers(versions)}"
            )
    version = max(versions) if version is None else version
    if version not in versions:
        raise AdapterNotFoundError(f"{name!r} has no version {version}; its versions: {_numbers(versions)}")
    return version


def unknown(ref: str, names: Iterable[str], uri: str) -> AdapterNotFoundError:
    """The error for a name that the store does not have."""
    names = list(names)
    name = parse_ref(ref)[0]
    others = (held for held in names if held != name and not is_person(held))  # who is whose is nobody else's matter
    near = did_you_mean(name, others)
    held = f"it holds {len(names)} other names" if names else "it holds no adapters"
    return UnknownNameError(f"{name!r} is not in the store {uri!r}{near} ({held})", name, near)


def only_version(ref: str, versions: Collection[int]) -> None:
    """AdapterError when a bare name is to be removed and has several versions."""
    name, alias, version = parse_ref(ref)
    if alias is None and version is None and len(versions) > 1:
        raise AdapterError(
            f"{name!r} has versions {_numbers(versions)}; name the one to remove, for example {name}@{min(versions)}"
        )


def _numbers(versions: Collection[int]) -> str:
    shown = sorted(versions)
    return ", ".join(map(str, shown)) if len(shown) <= 8 else f"{shown[0]} to {shown[-1]}"
