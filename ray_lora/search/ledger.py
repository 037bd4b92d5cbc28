"""What people have asked of a search and what became of it, kept beside it: a killed search goes on with it.

Tune's own checkpoint has every trial, but some seconds late. It knows names and configurations, no trials.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray_lora.atomic import write_atomic
from ray_lora.search.asking import STEERING

_FILE = "ledger.json"


@dataclass
class Ledger:
    """A search's ledger.

    Attributes:
        clones: configurations of cloned trials, by their names.
        stopped: trials that are not to run.
        resumed: trials that had ended and run again, until they end again.
        over: the whole search was stopped; ended: trials that it ended with it.
    """

    folder: Path
    clones: dict[str, dict[str, Any]] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    over: bool = False
    ended: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Ledger:
        """The ledger of a run's folder; an empty one where nobody has asked anything."""
        path = folder / STEERING / _FILE
        return cls(folder, **json.loads(path.read_text())) if path.exists() else cls(folder)

    def write(self) -> None:
        """Keep it."""
        told = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_atomic(self.folder / STEERING / _FILE, json.dumps(told))

    @property
    def keys(self) -> list[str]:
        """Recipe keys that clones have values for."""
        return list(dict.fromkeys(key for config in self.clones.values() for key in config))

    def reopen(self) -> None:
        """A search that was stopped as a whole is to go on, with the trials that ended then."""
        self.resumed += [name for name in self.ended if name not in self.resumed]
        self.over, self.ended = False, []
        self.write()

    def steered(self, name: str) -> bool:
        """Whether a trial runs because somebody asked for it: the search algorithm knows nothing of it."""
        return name in self.clones or name in self.resumed
