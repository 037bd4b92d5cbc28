"""Who may write to a run's folder: one process at a time, and only the run that began there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ray_lora.errors import RecipeError
from ray_lora.recipe import Recipe


@contextmanager
def claimed(recipe: Recipe, kind: str, text: str) -> Iterator[Path]:
    """The run's folder, `<output_dir>/<name>`, for this process alone; the same command goes on where it was killed.

    Raises:
        RecipeError: the folder holds another run, whose results would be overwritten, or that run goes on right now.
    """
    folder = Path(recipe.output_dir).expanduser().resolve() / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    marker, told = folder / "recipe.json", json.dumps({"kind": kind, "recipe": text}, sort_keys=True)
    try:
        held = FileLock(folder / "lock").acquire(blocking=False)  # the system frees it when this process dies
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
