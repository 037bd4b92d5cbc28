"""How long what people and files tell may be, and of which letters: names, values in messages, whole trees of JSON.

    short("x" * 10**6)                       # "xxx…", of at most 80 letters, without line ends
    check_tree({"labels": ["\\x07"]})         # ValueError: labels.0 holds the control character '\\x07'

Bounds are far above what anybody means; what lies beyond them is a mistake, or somebody who tries what happens. It
knows no keys and no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationError

LONGEST_NAME = 512  # letters of a name: a class, a metric, a user
LONGEST_PLACE = 4096  # of a base's name, which may be a path
LONGEST_LABEL = 400  # of a label; a metric may be called by one
LONGEST_TEXT = 1 << 16  # of any other text
MOST_ITEMS = 1 << 18  # values in one tree
DEEPEST = 50  # levels of a tree
_SHOWN = 80  # letters of a value in a message
_MOST_SAID = 3  # problems in one message
_NO_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")  # a text may have tabs and line ends
_LARGEST = 2**63  # of whole numbers: what files, tables and JSON's readers hold


def short(value: object, most: int = _SHOWN) -> str:
    """The beginning of a text or of any other value, on one line and of at most `most` letters."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[: most + 1])
    return text if len(text) <= most else f"{text[: most - 1]}…"


def named(text: str) -> str:
    """A name for a message, in quotes: of a tensor's or a layer's, which are long, what tells them apart."""
    return repr(short(text, 200))


def public(uri: str) -> str:
    """An address without what must not be shown: passwords, keys, options."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", uri).partition("?")[0]


def reason(error: ValidationError) -> str:
    """What pydantic found, on one line: the first problems, and how many more there are."""
    problems = error.errors()
    found = [_problem(problem["loc"], problem["msg"], problem["input"]) for problem in problems[:_MOST_SAID]]
    more = [f"and {len(problems) - _MOST_SAID} more"] if len(problems) > _MOST_SAID else []
    return "; ".join([*found, *more])


def _problem(place: Sequence[object], why: str, given: object) -> str:
    where = short(".".join(map(str, place)))
    told = short(why.removeprefix("Value error, "), 300)
    shown = repr(short(given)) if isinstance(given, str) else short(given)
    return f"{where}{': ' if where else ''}{told}{'' if isinstance(given, Mapping) else f' (given: {shown})'}"


def check_name(text: str, most: int = LONGEST_NAME) -> str:
    """The text itself; ValueError where it is too long for a name or holds what would begin another line."""
    if len(text) > most or _NO_NAME.search(text):
        raise ValueError(f"a name has at most {most} letters, and no line ends or other control characters")
    return text


def check_place(text: str) -> str:
    """As `check_name`, of what may be a path."""
    return check_name(text, LONGEST_PLACE)


Name = Annotated[str, AfterValidator(check_name)]
Place = Annotated[str, AfterValidator(check_place)]


def unprintable(text: str) -> str | None:
    """What is wrong with a text whose letters a terminal would obey; tabs and line ends are none of them."""
    found = _NO_TEXT.search(text)
    if found is None:
        return None
    what = "half of a surrogate pair" if found[0] >= "\ud800" else "the control character"
    return f"holds {what} {found[0]!a}; take it out"


def check_tree(tree: Any) -> Any:
    """The value itself, of which JSON or YAML was read.

    Raises:
        ValueError: a text or a number in it is too large, holds a control character or half of a surrogate pair, or
            there are too many values or levels. The message says where.
    """
    waiting: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    known: set[int] = set()  # aliases of YAML are one value at many places
    seen = 0
    while waiting:
        path, value = waiting.pop()
        if id(value) in known:
            continue
        seen += 1
        why = _wrong(value)
        if len(path) > DEEPEST:
            why = f"lies deeper than {DEEPEST} levels"
        elif seen > MOST_ITEMS:
            raise ValueError(f"more than {MOST_ITEMS} values are not read")
        if why is not None:
            where = short(".".join(path)) or "it"
            raise ValueError(f"{where} {why}")
        if isinstance(value, (Mapping, list, tuple)):
            known.add(id(value))
        if isinstance(value, Mapping):
            for key, held in value.items():
                name = short(key, 40)
                if isinstance(key, str) and (len(key) > LONGEST_NAME or _NO_TEXT.search(key)):
                    raise ValueError(f"{short('.'.join(path)) or 'it'} has the key {name!r}, which is no name")
                waiting.append(((*path, name), held))
        elif isinstance(value, (list, tuple)):
            waiting.extend(((*path, str(index)), held) for index, held in enumerate(value))
    return tree


def _wrong(value: Any) -> str | None:
    """What is wrong with one value."""
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"has {len(value):,} letters; at most {LONGEST_TEXT:,} are read"
    if isinstance(value, str):
        return unprintable(value)
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        return f"is a whole number of {value.bit_length()} bits; at most 63 are read"
    return None


def size_words(count: float) -> str:
    """Bytes as people say them: `1.2 GB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
