"""Which saved state of a search algorithm goes with the trials that Tune knows after a kill.

    algorithm.save_to_dir(folder, session_str=numbered(session, 5))     # five trials were made by then
    for path in matching(folder, trials=5): ...                         # the newest that had made no more

Tune copies its own state and the algorithm's file by file. A kill between two copies would leave an algorithm that has
made a trial of which Tune knows nothing, and that trial would never be. So a state's name says of how many trials it
is, and the ones before it are kept until several newer ones are there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ray.tune.execution.experiment_state import _find_newest_experiment_checkpoint

_NUMBERED = re.compile(r"(?:basic-variant-state|search_gen_state|searcher-state)-(.+)-made(\d{6})\.(?:json|pkl)")
_KEPT = 3  # numbers of trials: a copy may still be at the one before the last


def numbered(session: str, made: int) -> str:
    """How Tune's session is called in the names of these states."""
    return f"{session}-made{made:06d}"


def matching(folder: Path, trials: int) -> list[Path]:
    """The files of the newest state of at most so many trials; none where states are not numbered, as earlier versions
    wrote them."""
    found = {key: paths for key, paths in _states(folder).items() if key[1] <= trials}
    return found[max(found)] if found else []


def made_by(state: Path) -> int:
    """How many trials had been made when a numbered state was saved."""
    told = _NUMBERED.fullmatch(state.name)
    assert told is not None
    return int(told[2])


def drop_older(folder: Path) -> None:
    """Remove all but the last few states."""
    states = _states(folder)
    for key in sorted(states)[:-_KEPT]:
        for path in states[key]:
            path.unlink(missing_ok=True)


def trials_in(folder: Path) -> list[str]:
    """The ids of the trials in Tune's newest state in a folder."""
    newest = _find_newest_experiment_checkpoint(str(folder))
    if newest is None:
        return []
    trials = json.loads(Path(newest).read_text())["trial_data"]
    return [json.loads(state)["trial_id"] for state, _ in trials]


def _states(folder: Path) -> dict[tuple[str, int], list[Path]]:
    found: dict[tuple[str, int], list[Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        told = _NUMBERED.fullmatch(path.name)
        if told is not None:
            found.setdefault((told[1], int(told[2])), []).append(path)
    return found
