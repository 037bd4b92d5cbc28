"""Imports without Python's garbage collector. Knows nothing of what is imported.

    with uncollected():
        import transformers

torch, transformers and what they bring are half a million objects that stay for good. The collector looks at them again
and again while they come, which takes a fourth of the processor's time of these imports, in each process.
"""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is collected inside, and what was imported is old then; the collector is as it was before."""
    was_on, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            # into the oldest generation, so that the next collections do not walk through all of it; not where all was
            # known before, else whoever comes here often makes garbage old; and what somebody has frozen stays so
            if len(sys.modules) > known and not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()
