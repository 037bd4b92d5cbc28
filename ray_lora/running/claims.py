"""Who may write to a run's folder: one process at a time, and only the run that began there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ray_lora.atomic import expanded
from ray_lora.errors import RecipeError
from ray_lora.recipe import Recipe

LOCK, MARKER = "lock", "recipe.json"
_ASKED_S = 0.5


@contextmanager
def claimed(recipe: Recipe, kind: str, text: str) -> Iterator[Path]:
    """The run's folder, `<output_dir>/<name>`, for this process alone; the same command goes on where it was killed.

    Raises:
        RecipeError: the folder holds another run, whose results would be overwritten, or that run goes on right now.
    """
    folder = expanded(recipe.output_dir).resolve() / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    marker, told = folder / MARKER, json.dumps({"kind": kind, "recipe": text}, sort_keys=True)
    try:
        # the system frees it when this process dies; who only asks whether it is held has it for a moment
        held = FileLock(folder / LOCK).acquire(timeout=_ASKED_S)
    except Timeout:
        raise RecipeError(
            f"another process is writing to {str(folder)!r} right now; wait for it, or give this run its own name=..."
        ) from None
    with held:
        if marker.exists() and marker.read_text() != told:
            raise RecipeError(
                f"{str(folder)!r} holds another run of that name; give this one its own name=..., or remove the folder"
            )
        marker.write_text(told)
        yield folder


def is_claimed(folder: Path) -> bool:
    """Whether a process is writing to the run's folder right now."""
    try:
        with FileLock(folder / LOCK).acquire(blocking=False):
            return False
    except Timeout:
        return True
