"""`ray-lora merge`: adapters of a store combined into a new version."""

from __future__ import annotations

from typing import Annotated

import typer

from ray_lora.cli.output import BaseOption, ColumnOption, JsonFlag, StoreOption, TrackingOption, answering
from ray_lora.cli.results import comparison
from ray_lora.cli.use import columns_of
from ray_lora.errors import RecipeError


def merge(
    refs: Annotated[list[str], typer.Argument(metavar="REF REF...", help="Adapters of one base that do the same.")],
    name: Annotated[str, typer.Option("--name", help="Of the new adapter.")],
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="W,W,...", help="One for each; else all alike.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="cat (the exact weighted sum), svd, linear, ties, dare_linear, dare_ties, magnitude_prune, or one of "
            "the last four with _svd: as PEFT's combination_type.",
        ),
    ] = "cat",
    rank: Annotated[int | None, typer.Option("--rank", help="Of the methods that end in svd.")] = None,
    density: Annotated[float | None, typer.Option("--density", help="The share of values that stay; else 0.5.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what DARE draws.")] = 0,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Rows on which parents and merged are scored; again for more.")
    ] = None,
    column: ColumnOption = None,
    store: StoreOption = "./store",
    base: BaseOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Combine adapters of one base into a new one, and score it beside them."""
    with answering(as_json) as say:
        told = None if weights is None else _numbers(weights)
        columns = columns_of(column)
        from ray_lora.inference.merging import merge as merge_refs

        result = merge_refs(
            refs, name, store, weights=told, method=method, rank=rank, density=density, seed=seed, data=data,
            columns=columns, base=base, tracking_uri=tracking_uri,
        )  # fmt: skip
        parts = zip(result["weights"], result["parents"], strict=True)
        of = " + ".join(f"{weight:.4g} * {parent['ref']}" for weight, parent in parts)
        line = f"{result['ref']} = {of} by {result['method']}, rank {result['rank']}, {result['parameters']:,} numbers"
        say(result, line, *(comparison(result["compared"]) if result["compared"] else ()))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(f"--weights {text!r} is not numbers between commas; write for example 0.5,0.5") from None
