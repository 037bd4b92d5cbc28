"""What files' names and patterns of them say: which hold no data, which a pattern means, how a name ends.

    wild_part("rows/customer=*/part-*.parquet")     # (Place("rows"), ["customer=*", "part-*.parquet"])

It knows names; it asks no file system.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from ray_lora.data.pictures import ENDS, SOUND_ENDS
from ray_lora.data.places import Place

_ABOUT = re.compile(  # what lies beside data and is none
    r"(readme|license|licence|notice|changelog|citation|contributing)(\..*)?|.*\.(md|crc)|.*_\$folder\$"
    r"|(dataset_infos?|dataset_dict|state|croissant)\.json|thumbs\.db|desktop\.ini",
    re.IGNORECASE,
)
_MAGIC = re.compile(r"[*?\[]")


def wild_part(path: str) -> tuple[Place, list[str]] | None:
    """The folder before a pattern's first wild name, and the names from there on; None for a path without one."""
    scheme, mark, rest = path.rpartition("://")
    rest, asks, options = rest.partition("?") if mark else (rest, "", "")  # an address has its options behind a "?"
    names = rest.rstrip("/").split("/")
    first = next((at for at, name in enumerate(names) if at >= bool(mark) and _MAGIC.search(name)), None)
    if first is None:
        return None
    before = "/".join(names[:first]) or ("/" if first else ".")
    return Place.of(scheme + mark + before + asks + options), names[first:]


def matches(names: Sequence[str], steps: Sequence[str]) -> bool:
    """Whether a path's names match a pattern's; `**` is any number of folders."""
    if not steps:
        return not names
    if steps[0] == "**":
        return any(matches(names[at:], steps[1:]) for at in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], steps[0]) and matches(names[1:], steps[1:])


def is_beside(name: str) -> bool:
    """Whether a path below what was given is hidden, or about data and none itself."""
    *folders, last = name.split("/")
    # "_" marks what Spark and Delta write beside tables; cameras and people begin names of pictures with it
    marks = (".",) if ending(last) in (*ENDS, *SOUND_ENDS) else (".", "_")
    hidden = any(step.startswith(marks) for step in [*folders, last])
    return hidden or bool(_ABOUT.fullmatch(last))


def ending(name: str) -> str:
    return name.rsplit(".", 1)[-1].lower()
