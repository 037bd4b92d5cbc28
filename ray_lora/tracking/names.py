"""Names that MLflow takes, of parameters, metrics and tags that may be called anything.

    names = Names()
    names.of("f1 of a//b")        # "f1 of a/_/b": MLflow reads a name as a path, which must be its own
    names.of("f1 of 50%")         # "f1 of 50_"

Two names that would become one stay two. It knows texts.
"""

from __future__ import annotations

import hashlib
import re

LONGEST_KEY = 250  # letters of a name; of a run's too
LONGEST_PARAM = 6000  # letters of a parameter's value; the recipe beside it is whole
LONGEST_TAG = 8000  # of a tag's
_DIGEST = 8  # letters that tell two names apart
_PLAIN_JOB = re.compile(r"[\w./ :=,@+-]*")


class Names:
    """What names are in MLflow: the first that comes keeps the plain one."""

    def __init__(self) -> None:
        self._held: dict[str, str] = {}  # what MLflow has -> the name that it is for

    def of(self, name: str) -> str:
        """At most 250 letters of those that MLflow allows."""
        plain = _plain(name)
        if self._held.setdefault(plain, name) != name:
            plain = _marked(plain, name)
            self._held[plain] = name
        return plain


def key_of(parent: str, job: str) -> str:
    """By what a job's run is found again. It stands between quotes in a filter, which knows no way to write one."""
    key = f"{parent}/{job}" if job else parent
    if _PLAIN_JOB.fullmatch(job) and len(key) <= LONGEST_KEY:
        return key
    return f"{parent}/{hashlib.sha256(job.encode('utf-8', 'surrogatepass')).hexdigest()}"


def shorter(text: str, most: int) -> str:
    """A text's beginning, of at most `most` letters; one that was cut says so."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _plain(name: str) -> str:
    steps = re.sub(r"[^\w./ :-]", "_", name).split("/")
    plain = "/".join(re.sub(r"\.", "_", step) or "_" if step in ("", ".", "..") else step for step in steps)
    return plain if len(plain) <= LONGEST_KEY else _marked(plain, name)


def _marked(plain: str, name: str) -> str:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{plain[: LONGEST_KEY - _DIGEST - 1]}_{digest}"
