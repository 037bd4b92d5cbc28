"""A recipe's text as plain values: YAML as people write it, and nothing that they did not mean.

    read_yaml("training: {learning_rate: 1e-3}")      # {"training": {"learning_rate": 0.001}}

It knows no keys, only how overrides and dotted keys are written. A key that stands twice is refused, of which YAML's
readers keep the last and say nothing.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ray_lora.bounds import short
from ray_lora.errors import RecipeError
from ray_lora.task_spec import Json

_DEEPEST = 50  # levels; a reader calls itself for each
_LARGEST = 1 << 20  # bytes of a recipe's file
_SHOWN = 300  # letters of a value in a message
_MERGE = "tag:yaml.org,2002:merge"


def read_tree(path: Path) -> dict[str, Any]:
    """A recipe's file as keys and values.

    Raises:
        RecipeError: it is missing, cannot be read, is not YAML, or holds something else.
    """
    where = short(str(path), 200)
    try:
        tree = read_yaml(read_text(path))
    except FileNotFoundError:
        raise RecipeError(f"recipe {where!r} does not exist; give the path of a YAML recipe") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {where!r} is not valid YAML: {error}") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe {where!r} cannot be read: {short(str(error), 200)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {where!r} holds a {type(tree).__name__}; it must hold keys and values")
    return tree


def read_text(path: Path) -> str:
    """A recipe's file as text.

    Raises:
        OSError: there is none, or it cannot be read. ValueError: it is no text, or too large to be a recipe.
    """
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)  # no more: a device has no end
    if len(data) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST:,} bytes, which no recipe has")
    return data.decode()


def read_yaml(text: str) -> Any:
    """The one document of a text; None of an empty one.

    Raises:
        ValueError: a number has thousands of digits, or a date is none.
        yaml.YAMLError: it is no YAML, asks for objects of Python's, has a key twice or a number that is not finite, or
            lies deeper than 50 levels.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)


def shown(value: Any) -> str:
    """A value for a message: its beginning, whatever its size; aliases can make a short text a very large value."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = 200
    brief.maxlevel, brief.maxlist = 3, 6
    text = brief.repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def overridden(overrides: Sequence[str]) -> dict[str, Json]:
    """What `key.path=value` texts say; RecipeError for one that is none."""
    values: dict[str, Json] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        shown_as = short(override)
        if not equals:
            raise RecipeError(f"override {shown_as!r} has no '='; write key.path=value, for example lora.r=4")
        try:
            value = text if text.startswith("*") else read_yaml(text)  # a glob, and no alias of YAML's
        except (yaml.YAMLError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(
                f"override {shown_as!r}: {short(text)!r} is not a YAML value: {short(reason, 300)}"
            ) from None
        values.pop(key, None)  # of two overrides of one key the later one counts, where it stands
        values[key] = value
    return values


def put(tree: dict[str, Any], key: str, value: Json) -> None:
    """Set a dotted key in a recipe's tree. RecipeError where a plain value stands on its way."""
    *parents, last = key.split(".")
    for part in parents:
        child = tree.setdefault(part, {})
        if not isinstance(child, dict):
            raise RecipeError(f"{short(key)!r} cannot be set: {part!r} holds {short(child)}, not a section")
        tree = child
    tree[last] = value


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as text; a recipe's users mean a number."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._level = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._level += 1
        if self._level > _DEEPEST:
            why = f"what lies deeper than {_DEEPEST} levels is not read"
            raise yaml.composer.ComposerError(None, None, why, self.get_mark())
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: dict[str, Any] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            if key.value in seen:
                first = seen[key.value].line + 1
                why = f"the key {key.value[:80]!r} stands in line {first} too; write it once"
                raise yaml.constructor.ConstructorError(None, None, why, key.start_mark)
            seen[key.value] = key.start_mark
        return super().construct_mapping(node, deep)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    value = float(str(loader.construct_scalar(node)).replace("_", ""))
    if not math.isfinite(value):
        raise yaml.constructor.ConstructorError(None, None, f"{value} is not a finite number", node.start_mark)
    return value


_Loader.add_implicit_resolver(
    "tag:ray_lora,float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_constructor("tag:ray_lora,float", _number)
