"""Where a trial that a person cloned comes from: a file in its job's folder, written before it begins.

    write_origin(jobs / "1a2b3_00003-1", Origin("1a2b3_00003", step=12, training={"learning_rate": 0.001}))

It imports no torch: trials read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ray_lora.atomic import write_atomic
from ray_lora.recipe import Json

_FILE = "origin.json"


@dataclass(frozen=True)
class Origin:
    """A clone's beginning.

    Attributes:
        trial: whose configuration it had, with other values for some keys.
        step: the step of that trial's checkpoint from which it goes on; 0 for one that begins from nothing.
        training: how that trial was trained until then.
        before: that trial's own origin, where it goes on from another's checkpoint itself.
    """

    trial: str
    step: int
    training: Mapping[str, Json] = field(default_factory=dict)
    before: Mapping[str, Json] | None = None

    @property
    def card(self) -> dict[str, Json]:
        """What an adapter's card says of it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def write_origin(folder: Path, origin: Origin) -> None:
    """Keep it in a job's folder."""
    write_atomic(folder / _FILE, json.dumps(asdict(origin)))


def read_origin(folder: Path) -> Origin | None:
    """A job's origin; None for a trial that nobody cloned."""
    path = folder / _FILE
    return Origin(**json.loads(path.read_text())) if path.exists() else None
