"""Regular expressions for module names that somebody else wrote: tried in a process of their own before they are used.

    check_quick(["(a+)+x"], ["a" * 40])     # ValueError: '(a+)+x' takes longer than 10 s for the names of these layers

Python's matcher cannot be interrupted, and some short expressions take longer than the world has stood. Plain ones,
which nearly all are, cost nothing here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache

from ray_lora.bounds import short

_PATIENCE_S = 10.0
# a repeated group, many repeats, or forms in which these could hide
_RISKY = re.compile(r"\)\s*[*+{]|(?:[*+{].*){3}|\(\?[a-zA-Z-]*x|#", re.DOTALL)
# each as PEFT matches it: a whole name, the end of one, a part before the number of a layer
_TRY = r"""
import json, re, sys
expressions, names = json.load(sys.stdin)
for expression in expressions:
    for name in names:
        for form in (expression, rf"(.*\.)?({expression})$", rf".*\.{expression}\.(\d+)\."):
            try:
                re.fullmatch(form, name) if form == expression else re.match(form, name)
            except re.error:
                pass
"""


def check_quick(expressions: Iterable[str], names: Iterable[str]) -> None:
    """ValueError where an expression does not match these names, or not match them, within some seconds."""
    risky = tuple(expression for expression in expressions if _RISKY.search(expression))
    if risky and not _ends(risky, tuple(names)):
        raise ValueError(
            f"{short(risky[0])!r} takes longer than {_PATIENCE_S:g} s for the names of these layers; "
            "list the names instead"
        )


@lru_cache(maxsize=128)
def _ends(expressions: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Whether all are matched in time."""
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY],
            input=json.dumps([expressions, names]),
            text=True,
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return True
