"""Commands that take a recipe: train, personal, curve, plan; and schema."""

from __future__ import annotations

import contextlib
import json
import sys
from functools import partial
from typing import Annotated

import typer

from ray_lora.cli.output import JsonFlag, Overrides, RecipeArgument, answering, scores, start_importing, table
from ray_lora.errors import RecipeError
from ray_lora.recipe import Json, Recipe
from ray_lora.uncollected import uncollected


def train(recipe: RecipeArgument, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Train one adapter and put it into the recipe's store."""
    with answering(as_json) as say:
        read = Recipe.load(recipe, overrides or [])
        start_importing("ray_lora.running.trainer", read.name)
        from ray_lora.running.trainer import train_recipe

        result = train_recipe(read)
        say(result, f"{result['ref']}: {scores(result['metrics'])}; {result['seconds']:.0f} s; {result['adapter']}")


def personal(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    update: Annotated[
        str | None, typer.Option("--update", help="New rows: only people who have some train, from what answers now.")
    ] = None,
    follow: Annotated[
        str | None, typer.Option("--follow", help="The folder of `serve rows=...`: rows train as they come.")
    ] = None,
    forget: Annotated[
        str | None, typer.Option("--forget", metavar="KEY", help="Delete this person: all versions and all traces.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", metavar="URL", help="With --forget: that is to let go at once of what it holds."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train an adapter for each person of the recipe's table and put them into its store."""
    with answering(as_json) as say:
        read = Recipe.load(recipe, overrides or [])
        if sum(option is not None for option in (update, follow, forget)) > 1:
            raise RecipeError("--update takes rows once, --follow as they come, --forget deletes; give one of them")
        if endpoint is not None and forget is None:
            raise RecipeError("--endpoint goes with --forget KEY; give that too")
        if forget is not None:
            from ray_lora.running.people_forget import forget_person

            found = forget_person(read, forget, endpoint)
            columns = ["where", "removed", "stays"]
            rows = [[place[column] for column in columns] for place in found["places"]]
            say(found, f"{found['name']} is deleted", table(columns, rows))
            return
        if update is not None:
            from ray_lora.running.people_updates import update_personal

            result = update_personal(read, update)
        elif follow is not None:
            from ray_lora.running.people_updates import follow_personal

            result = follow_personal(read, follow, partial(print, flush=True))
        else:
            from ray_lora.running.people import personal_recipe

            result = personal_recipe(read)
        say(result, table(["", ""], [[key, value] for key, value in result.items() if key != "lines"]))


def curve(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sizes: Annotated[
        str | None, typer.Option("--sizes", metavar="N,N,...", help="Numbers of rows; else all, a half, a quarter...")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", help="How often rows are drawn for each.")] = 3,
    as_json: JsonFlag = False,
) -> None:
    """Train on growing numbers of rows: what more rows would bring."""
    with answering(as_json) as say:
        read = Recipe.load(recipe, overrides or [])
        try:
            asked = None if sizes is None else [int(size) for size in sizes.split(",")]
        except ValueError:
            raise RecipeError(f"--sizes {sizes!r} is no list of numbers; give one such as 64,128,256") from None
        from ray_lora.running.learning_curve import learning_curve

        result = learning_curve(read, asked, draws)
        points = result["points"]
        rows = [[point["rows"], point["mean"], _span(point["low"], point["high"]), *_gain(point)] for point in points]
        head = ["rows", result["metric"], "95 %", "gain", "95 %"]
        say(result, table(head, rows), result["verdict"], *result["files"])


def _gain(point: dict[str, Json]) -> list[Json]:
    if point["gain"] is None:
        return [None, None]
    gain, low, high = point["gain"]
    return [gain, _span(low, high)]


def _span(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.4f} to {high:.4f}"


def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Try the recipe for some seconds, to foresee time and memory.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Say what the recipe will cost in time, memory, steps and parameters, before anything starts."""
    with answering(as_json) as say, contextlib.ExitStack() as probes:
        read = Recipe.load(recipe, overrides or [])
        probing = None
        if probe and not read.scaling.use_gpu:
            from ray_lora.running.probes import Probes, processes_of

            count = processes_of(read)
            processes = "a process" if count == 1 else f"{count} processes"
            print(f"plan: rows are read, while {processes} will train for some seconds", file=sys.stderr)
            probing = probes.enter_context(Probes(count))
        with uncollected():
            from ray_lora.search.foresight import plan_and_foresee, show

        result = plan_and_foresee(read, probing)
        say(result, show(result))


def schema(as_json: JsonFlag = False) -> None:
    """Print the JSON schema of the recipe."""
    with answering(as_json) as say:
        result = Recipe.model_json_schema()
        say(result, json.dumps(result, indent=2))
