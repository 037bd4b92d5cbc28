"""What a list leaves out, said once: lists are asked for with every request."""

from __future__ import annotations

import logging

from ray_lora.bounds import short

_logger = logging.getLogger(__name__)
_KEPT = 4096  # messages remembered
_LONGEST = 400  # letters of one


class LeftOut:
    """Warns of each reason once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, error: Exception) -> None:
        """Warn, unless the same was said before."""
        said = short(str(error), _LONGEST)
        if said in self._said:
            return
        if len(self._said) >= _KEPT:
            self._said.clear()
        self._said.add(said)
        _logger.warning("left out: %s", said)
