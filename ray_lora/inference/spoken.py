"""Text of tokens as they come: what can be said already, up to a text that ends it.

    spoken = Spoken(tokenizer, stop=("\\n\\n",))
    for token in tokens: print(spoken.add(token), end="")      # "" while a character or a stop text may be unfinished
    print(spoken.rest())

What is said is what decoding all tokens at each would give, but only the last ones are decoded, so that a long answer
costs as much a token as a short one. It knows texts, no models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_UNFINISHED = "�"  # what a tokenizer makes of part of a character
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a token of SentencePiece's byte fallback
_KEPT = 16  # tokens that are decoded again, since a tokenizer looks at neighbours: spaces, parts of characters
_BYTES = 256  # tokens after which a run of bytes is cut; before, one that is wrong may make the whole run so


class Spoken:
    """One answer's text.

    Attributes:
        stopped: whether a stop text came; nothing is said after it, nor it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._said: list[str] = []
        self._ids: list[int] = []  # the last ones, whose text is decoded
        self._before = ""  # text of those before them that is not said yet
        self._skip = 0  # characters of the decoded text that were said
        self.stopped = False

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(self._said)

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
        decoded = self._decode(self._ids)
        ahead = self._before + decoded[self._skip :]
        found = [at for stop in self._stop if (at := ahead.find(stop)) >= 0]
        if found:
            self.stopped = True
            fresh = ahead[: min(found)]
        elif final:
            fresh = ahead
        else:
            fresh = ahead.rstrip(_UNFINISHED)
            fresh = fresh[: len(fresh) - max((_begun(fresh, stop) for stop in self._stop), default=0)]
        self._said.append(fresh)
        self._skip += max(0, len(fresh) - len(self._before))
        self._before = self._before[len(fresh) :]
        if len(self._ids) >= 2 * _KEPT:
            self._settle(decoded)
        return fresh

    def _settle(self, decoded: str) -> None:
        """Decode the first tokens no longer, where the others give the same text without them."""
        kept = self._ids[-_KEPT:]
        if len(self._ids) < _BYTES and all(map(_BYTE.fullmatch, self._tokenizer.convert_ids_to_tokens(kept))):
            return
        text = self._decode(kept)
        if text and decoded.endswith(text):
            gone = len(decoded) - len(text)
            self._before += decoded[self._skip : gone]
            self._skip = max(0, self._skip - gone)
            self._ids = kept

    def _decode(self, ids: Sequence[int]) -> str:
        found: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return found


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop text."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
