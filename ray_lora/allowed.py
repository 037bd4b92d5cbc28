"""Code of the user's own packages by name, `package.module:Class`: only what he has allowed is ever imported.

    allow("shop.tasks")                  # or the environment: RAY_LORA_ALLOW=shop.tasks,shop.bases
    load("shop.tasks:Shelf")             # the class

A name may come from a card or a request, the list never does. It knows nothing of what is loaded.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any

from ray_lora.bounds import named, short
from ray_lora.errors import RecipeError

ENV = "RAY_LORA_ALLOW"

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def is_name(text: str) -> bool:
    """Whether a text has the form `package.module:Name`."""
    return _NAME.fullmatch(text) is not None


def allow(*modules: str) -> None:
    """Let this process, and the workers that it starts, import modules by name; a package allows all that is inside.

    Raises:
        RecipeError: it is not a module's name.
    """
    for module in modules:
        if not _MODULE.fullmatch(module):
            raise RecipeError(f"{module!r} is not a module's name; give it as in `import`: shop.tasks")
    os.environ[ENV] = ",".join(dict.fromkeys([*listed(), *modules]))


def listed() -> tuple[str, ...]:
    """The modules allowed, from the environment."""
    return tuple(name.strip() for name in os.environ.get(ENV, "").split(",") if name.strip())


def environment() -> Mapping[str, str]:
    """The environment variables that tell a worker what is allowed here."""
    return {ENV: ",".join(listed())} if listed() else {}


def load(name: str) -> Any:
    """What an allowed `package.module:Name` names; nothing is imported before it is allowed.

    Raises:
        RecipeError: the name has another form, its module is not allowed, is not installed or lacks it.
    """
    if not is_name(name):
        raise RecipeError(f"{named(name)} does not name code; write package.module:Name")
    module, _, attribute = name.partition(":")
    if not any(module == allowed or module.startswith(f"{allowed}.") for allowed in listed()):
        raise RecipeError(
            f"{named(name)} is not allowed; allowed are {', '.join(listed()) or 'no modules'}. If you trust this code, "
            f"set {ENV}={short(','.join([*listed(), module]), 200)} or call ray_lora.allow({named(module)}) before"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise RecipeError(f"{name!r} cannot be imported: {error}; install its package here") from None
    except AttributeError:
        raise RecipeError(f"{name!r} names nothing: module {module!r} has no {attribute!r}") from None
