"""`ray-lora prune`: a base made smaller by what an adapter's gradients say of its units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ray_lora.cli.output import BaseOption, ColumnOption, JsonFlag, StoreOption, TrackingOption, answering, table
from ray_lora.cli.use import columns_of
from ray_lora.errors import RecipeError
from ray_lora.recipe import Json, Recipe


def prune(
    target: Annotated[
        str, typer.Argument(metavar="REF|RECIPE", help="An adapter of the base; or a recipe, which trains one first.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Of the recipe.", show_default=False)
    ] = None,
    keep: Annotated[float, typer.Option("--keep", help="Share of the layers' parameters that stays.")] = 0.5,
    output: Annotated[
        Path | None, typer.Option("--output", help="A new folder; else NAME-pruned.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Rows with targets: a file, a folder or a glob; a recipe has its own.")
    ] = None,
    layers: Annotated[
        int | None, typer.Option("--layers", help="So many layers stay; else what keeps the most importance.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", help="At most so many of the rows are read.")] = 1024,
    column: ColumnOption = None,
    store: StoreOption = "./store",
    base: BaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Cut a base to a share of its parameters, and write it as a base of its own."""
    with answering(as_json) as say:
        from ray_lora.pruning import check_asked, check_base, prune_ref

        columns, ref = columns_of(column), target
        rows_of: str | Sequence[str] | None = data
        if Path(target).suffix in (".yaml", ".yml"):
            if store != "./store" or tracking_uri is not None or base is not None:
                raise RecipeError("a recipe says store, tracking and base itself; give store=PATH, base.model=BASE")
            recipe = Recipe.load(Path(target), overrides or [])
            output = output or Path(f"{recipe.name}-pruned")
            check_asked(output, keep, rows)
            check_base(recipe.base, keep, layers)
            from ray_lora.running.trainer import train_recipe

            ref, store, tracking_uri = train_recipe(recipe)["ref"], recipe.store, recipe.tracking.uri
            columns, rows_of = {**recipe.data.columns, **columns}, data or recipe.data.train
        elif overrides:
            raise RecipeError(f"{overrides[0]!r} replaces a recipe's key, and {target!r} is no recipe; leave it out")
        if rows_of is None:
            raise RecipeError(f"{target!r} has no rows by itself; give --data with rows of its task and their targets")
        folder = output or Path(f"{ref.partition('@')[0]}-pruned")
        card = prune_ref(
            ref, folder, keep=keep, data=rows_of, layers=layers, rows=rows, columns=columns, store=store, base=base,
            tracking_uri=tracking_uri,
        )  # fmt: skip
        shown: list[list[Json]] = [
            [key.replace("_", " "), value, card["after"][key]]
            for key, value in card["before"].items()
            if value is not None
        ]
        stay = "all" if len(card["layers"]) == card["before"]["layers"] else ", ".join(map(str, card["layers"]))
        said = (
            f"{folder}: {card['share']:.1%} of the layers' parameters of {card['origin']}, layers: {stay}; score: "
            f"{card['metric']} of {card['ref']} on {card['rows']} of its rows, cut alike and not trained again"
        )
        say({"folder": str(folder), **card}, table(["", "before", "after"], shown), said, f"base: {{model: {folder}}}")
