"""Text of tokens as they come: what can be said already, up to a text that ends it.

    spoken = Spoken(tokenizer, stop=("\\n\\n",))
    for token in tokens: print(spoken.add(token), end="")      # "" while a character or a stop text may be unfinished
    print(spoken.rest())

It knows texts, no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "�"  # what a tokenizer makes of part of a character


class Spoken:
    """One answer's text.

    Attributes:
        text: all that was said. stopped: whether a stop text came; nothing is said after it, nor it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self.text, self.stopped = "", False

    def add(self, token: int) -> str:
        """What can be said once this token is there."""
        self._ids.append(token)
        return self._say(final=False)

    def rest(self) -> str:
        """What was held back, when no token is to come."""
        return self._say(final=True)

    def _say(self, final: bool) -> str:
        if self.stopped:
            return ""
        whole: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        found = [at for stop in self._stop if (at := whole.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._upto(whole[: min(found)])
        if not final:
            whole = whole.rstrip(_UNFINISHED)
            whole = whole[: len(whole) - max((_begun(whole, stop) for stop in self._stop), default=0)]
        return self._upto(whole)

    def _upto(self, whole: str) -> str:
        fresh = whole[len(self.text) :]
        self.text += fresh
        return fresh


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop text."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
