"""Bases that a script pretrains: made once, whole or not at all, and again where they follow from something else.

made_once(Path("data/detection-base"), making, make)      # `make` writes it into a new folder
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def made_once(folder: Path, making: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> Path:
    """The folder, which `make` writes if there is none of this making.

    Args:
        making: whatever the base follows from, as JSON.
        make: given a folder that is not there yet, makes it; what it returns stands in `pretraining.json`.
    """
    record = folder / "pretraining.json"
    if record.exists() and json.loads(record.read_text())["making"] == making:
        return folder
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "base"
        told = make(fresh)
        (fresh / record.name).write_text(json.dumps({"making": making, **told}, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            fresh.rename(folder)
        except OSError:  # another process was first, and made the same
            if not record.exists():
                raise
    return folder
