"""Commands that take a recipe: train, search, plan; and schema."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated

import typer

from ray_lora.cli.output import JsonFlag, Overrides, RecipeArgument, answering, scores, table
from ray_lora.errors import RecipeError
from ray_lora.recipe import Recipe


def train(recipe: RecipeArgument, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Train one adapter and put it into the recipe's store."""
    with answering(as_json) as say:
        read = Recipe.load(recipe, overrides or [])
        from ray_lora.running.trainer import train_recipe

        result = train_recipe(read)
        say(result, f"{result['ref']}: {scores(result['metrics'])}; {result['seconds']:.0f} s; {result['adapter']}")


def search(recipe: RecipeArgument, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Run the recipe's search and put the best adapter into its store as champion."""
    with answering(as_json) as say:
        read = Recipe.load(recipe, overrides or [])
        from ray_lora.search.report import closing
        from ray_lora.search.summary import Summary
        from ray_lora.search.tuner import search_recipe

        result = search_recipe(read)
        say(
            result,
            *closing(Summary.recall(result)),
            f"champion    {result['best']['ref']}",
            f"MLflow      {result['link']}",
        )


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


def plan(recipe: RecipeArgument, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Say what the recipe will cost in memory, steps and parameters, before anything starts."""
    with answering(as_json) as say:
        read = Recipe.load(recipe, overrides or [])
        from ray_lora.running.plan import plan_recipe, show
        from ray_lora.search.space import check_search

        check_search(read)
        result = plan_recipe(read)
        say(result, show(result))


def schema(as_json: JsonFlag = False) -> None:
    """Print the JSON schema of the recipe."""
    with answering(as_json) as say:
        result = Recipe.model_json_schema()
        say(result, json.dumps(result, indent=2))
