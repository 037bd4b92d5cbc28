"""Where a person begins: `init` writes a recipe for somebody's rows, `doctor` says what this machine has."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ray_lora.cli.output import JsonFlag, answering, table


def init(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Files, a folder or a glob.", show_default=False)
    ],
    name: Annotated[str | None, typer.Option("--name", help="Of the recipe and its adapter; else the data's.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="What the rows are for; else it is guessed.")] = None,
    base: Annotated[str | None, typer.Option("--base", help="A hub id or a folder; else one that is at hand.")] = None,
    output: Annotated[Path, typer.Option("--output", help="The folder of the recipe.")] = Path(),
    share: Annotated[
        float, typer.Option("--hold-back", min=0.01, max=0.5, help="Rows that choose, of one file.")
    ] = 0.2,
    as_json: JsonFlag = False,
) -> None:
    """Look at rows, guess their task and columns, and write a commented recipe."""
    with answering(as_json) as say:
        from ray_lora.data.first_recipe import begin

        begun = begin(data, output, name=name, task=task, base=base, share=share)
        called = begun["recipe"]
        lines = [f"{called}: {begun['why']}", *begun["notes"], "", "read it, and then"]
        words = [word for word in _NEXT if begun["validation"] or word != "search"]
        steps = [(f"ray-lora {word} {called}", _NEXT[word]) for word in words]
        steps.append((f"ray-lora serve --store {begun['store']}", "an endpoint that answers"))
        say(begun, "\n".join(lines), *(f"  {command:44} {about}" for command, about in steps))


_NEXT = {
    "plan": "what it will cost, before anything starts",
    "search": "ranks and rates, all on one base",
    "train": "one adapter",
}


def doctor(
    store: Annotated[str | None, typer.Option("--store", help="Whether this store answers.")] = None,
    tracking_uri: Annotated[str | None, typer.Option("--tracking-uri", help="Whether this MLflow answers.")] = None,
    port: Annotated[int, typer.Option("--port", help="Whether this port is free.")] = 8000,
    as_json: JsonFlag = False,
) -> None:
    """Say what this machine has, how fast it multiplies, and what is missing; exit code 1 where something is wrong."""
    with answering(as_json) as say:
        from ray_lora.running.doctor import examine

        found = examine(store, tracking_uri, port)
        rows = [[line.mark, line.what, line.found, line.advice] for line in found]
        say({"checks": [asdict(line) for line in found]}, table(["", "", "found", "what to do"], rows))
    if any(line.ok is False for line in found):
        raise typer.Exit(1)
