"""What people ask of a running search: files in its run's folder, so that any host that sees the folder may ask.

    folder = find_search("tweets", Path("runs"))
    ask(folder, Request(do="stop", trials=("1a2b3_00003",)))      # waits for the search's own answer

<run>/steering/requests/<id>.json    what is asked; the search takes it away and answers
<run>/steering/answers/<id>.json     its answer; who asked takes it away
<run>/steering/state.json            what the search says of itself, about once a second
<run>/steering/recipe.json           the recipe that it was begun with

Each file is written whole. It knows nothing of Ray: the search's side is `search.desk`.
"""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_lora.atomic import write_atomic
from ray_lora.errors import RecipeError, did_you_mean
from ray_lora.recipe import Json, Recipe
from ray_lora.running.claims import MARKER, is_claimed

STEERING = "steering"
_POLL_S = 0.1


class Request(BaseModel):
    """One request.

    Attributes:
        do: `stop` these trials, or the whole search where none is named; `clone` one; `resume` one.
        changes: of a clone, recipe keys and their other values.
        fresh: a clone begins from nothing, whatever its parent has learnt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    do: Literal["stop", "clone", "resume"]
    trials: tuple[str, ...] = ()
    changes: dict[str, Json] = {}
    fresh: bool = False


def find_search(name: str, output_dir: Path) -> Path:
    """The folder of a search by its name.

    Raises:
        RecipeError: no search of that name has begun there.
    """
    folder = output_dir.expanduser().resolve() / name
    if _is_search(folder):
        return folder
    if (folder / MARKER).exists():
        raise RecipeError(f"{str(folder)!r} is no search; name one that `ray-lora search` began")
    known = sorted(path.parent.name for path in output_dir.expanduser().glob(f"*/{MARKER}") if _is_search(path.parent))
    there = f"there are {', '.join(known)}{did_you_mean(name, known)}" if known else "there is none"
    raise RecipeError(
        f"no search {name!r} has begun in {str(output_dir)!r}; {there} (--output-dir is the recipe's output_dir)"
    )


def read_state(folder: Path) -> dict[str, Json]:
    """What a search last said of itself, and whether it is `running` now.

    Raises:
        RecipeError: it has said nothing yet.
    """
    running = is_claimed(folder)  # asked first: what is written last says how it ended
    path = folder / STEERING / "state.json"
    if not path.exists():
        why = "it is starting; try again in a moment" if running else "give its `ray-lora search RECIPE` command again"
        raise RecipeError(f"search {folder.name!r} has no trials yet; {why}")
    state: dict[str, Json] = json.loads(path.read_text())
    return state | {"running": running}


def ask(folder: Path, request: Request) -> dict[str, Json]:
    """Ask a running search, and wait for its answer.

    Raises:
        RecipeError: it refuses, and says why; or it is over, or not running.
    """
    identity = f"{time.time_ns()}-{uuid.uuid4().hex}.json"
    asked, answered = (folder / STEERING / part / identity for part in ("requests", "answers"))
    _check_running(folder)
    write_atomic(asked, request.model_dump_json())
    while not answered.exists():
        if not is_claimed(folder) and not answered.exists():
            asked.unlink(missing_ok=True)
            _check_running(folder)
        time.sleep(_POLL_S)
    told: dict[str, Any] = json.loads(answered.read_text())
    answered.unlink(missing_ok=True)
    if "error" in told:
        raise RecipeError(told["error"])
    return told


def take(folder: Path) -> list[tuple[str, Request | str]]:
    """For the search: what is asked, in its order, each with its identity; a text says what is wrong with one."""
    taken: list[tuple[str, Request | str]] = []
    for path in sorted((folder / STEERING / "requests").glob("[!.]*.json")):
        text = path.read_text()
        path.unlink()
        try:
            taken.append((path.name, Request.model_validate_json(text)))
        except ValidationError as error:
            taken.append((path.name, f"this is no request: {error.errors()[0]['msg']}"))
    return taken


def keep_recipe(folder: Path, recipe: Recipe, plain: bool) -> None:
    """For the search: keep what it was begun with.

    Args:
        plain: the recipe is all of it, so that anybody can go on with the search.
    """
    told = {"plain": plain, "recipe": recipe.model_dump(mode="json")}
    write_atomic(folder / STEERING / "recipe.json", json.dumps(told))


def kept_recipe(folder: Path) -> Recipe:
    """The recipe that a search was begun with.

    Raises:
        RecipeError: a recipe was not all that it was begun with, or nothing was kept.
    """
    path = folder / STEERING / "recipe.json"
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"plain": False}
    if not told["plain"]:
        raise RecipeError(f"search {folder.name!r} was begun by a program; run that again, and it goes on")
    return Recipe.parse(told["recipe"])


def is_asked(folder: Path) -> bool:
    """For the search: whether anything is asked that was not taken yet."""
    return next((folder / STEERING / "requests").glob("[!.]*.json"), None) is not None


def answer(folder: Path, identity: str, told: dict[str, Json]) -> None:
    """For the search: answer a request."""
    write_atomic(folder / STEERING / "answers" / identity, json.dumps(told))


def tell(folder: Path, state: dict[str, Json]) -> None:
    """For the search: what it says of itself."""
    write_atomic(folder / STEERING / "state.json", json.dumps(state, default=str))


def _check_running(folder: Path) -> None:
    if is_claimed(folder):
        return
    state = folder / STEERING / "state.json"
    ended = json.loads(state.read_text())["ended"] if state.exists() else ""
    again = f"`ray-lora search resume {folder.name}`"
    if ended == "stopped":
        raise RecipeError(f"search {folder.name!r} is over: it was stopped; {again} goes on with it")
    if ended:
        raise RecipeError(f"search {folder.name!r} is over; begin another one, with its own name=...")
    raise RecipeError(f"search {folder.name!r} is not running; {again} or its own command goes on with it")


def _is_search(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MARKER).read_text())["kind"] == "search")
    except (OSError, ValueError, KeyError, TypeError):
        return False
