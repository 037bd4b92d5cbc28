"""`ray-lora search RECIPE`, and beside it what steers a search that runs: status, stop, clone, resume, page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ray_lora.cli.output import JsonFlag, Overrides, RecipeArgument, answering, new_group, start_importing, table
from ray_lora.recipe import Json, Recipe
from ray_lora.recipe_text import overridden

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The search's name.", show_default=False)]
FolderOption = Annotated[Path, typer.Option("--output-dir", help="The recipe's output_dir.")]
TrialArgument = Annotated[str, typer.Argument(metavar="TRIAL", help="As `status` calls it.", show_default=False)]
_RUNS = Path("runs")  # the recipe's own default


class RecipeOrCommand(TyperGroup):
    """A group whose first word may be a recipe instead of a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What is no steering command is the recipe; `./status` is a recipe of that name."""
        steering = [name for name in self.commands if name != "RECIPE"]
        if args and args[0] not in (*steering, "--help"):
            args = ["RECIPE", *args]
        return super().parse_args(ctx, args)


app = new_group(
    "Search with a recipe, or steer a search that runs.", RecipeOrCommand, "RECIPE [KEY=VALUE]... | COMMAND"
)


@app.command("RECIPE")
def search(recipe: RecipeArgument, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Run the recipe's search and put the best adapter into its store as champion."""
    with answering(as_json) as say:
        read = Recipe.load(recipe, overrides or [])
        start_importing("ray_lora.search.tuner", read.name)
        from ray_lora.search.tuner import search_recipe

        _say_end(say, search_recipe(read))


@app.command()
def status(name: NameArgument, output_dir: FolderOption = _RUNS, as_json: JsonFlag = False) -> None:
    """Show a search's trials: what each tries, how far it is, its last score, and the time left."""
    with answering(as_json) as say:
        from ray_lora.running.progress import describe
        from ray_lora.search.asking import find_search, read_state

        state = read_state(find_search(name, output_dir))
        rows = [
            [trial["name"], describe(trial["config"]) + _origin(trial), trial["status"], _done(trial), _score(trial)]
            for trial in state["trials"]
        ]
        shown = table(["trial", "configuration", "state", "step", state["metric"]], rows)
        say(state, shown, _standing(name, state))


@app.command()
def stop(
    name: NameArgument,
    trials: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TRIAL]...", help="Without any, the whole search.", show_default=False),
    ] = None,
    output_dir: FolderOption = _RUNS,
    as_json: JsonFlag = False,
) -> None:
    """Stop trials, or a whole search; each keeps the adapter of its last evaluation."""
    with answering(as_json) as say:
        from ray_lora.search.asking import Request, ask, find_search

        told = ask(find_search(name, output_dir), Request(do="stop", trials=tuple(trials or ())))
        named = ", ".join(told["stopped"])
        say(told, f"search {name} ends; its best so far becomes champion" if told["search"] else f"stopped: {named}")


@app.command()
def clone(
    name: NameArgument,
    trial: TrialArgument,
    changes: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="training.learning_rate=0.001", show_default=False)
    ],
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin from nothing, not from the trial's checkpoint.")
    ] = False,
    output_dir: FolderOption = _RUNS,
    as_json: JsonFlag = False,
) -> None:
    """Begin a new trial: a trial's configuration with other values for some keys, from its last checkpoint on."""
    with answering(as_json) as say:
        from ray_lora.search.asking import Request, ask, find_search

        request = Request(do="clone", trials=(trial,), changes=overridden(changes), fresh=fresh)
        told = ask(find_search(name, output_dir), request)
        say(told, f"{told['trial']} begins {told['begins']} ({told['why']}); it has {told['total']} steps in all")


@app.command()
def resume(
    name: NameArgument,
    trial: Annotated[
        str | None, typer.Argument(metavar="[TRIAL]", help="Without it, the whole search.", show_default=False)
    ] = None,
    output_dir: FolderOption = _RUNS,
    as_json: JsonFlag = False,
) -> None:
    """Go on with a trial that was stopped, or with a search that was stopped or killed."""
    with answering(as_json) as say:
        from ray_lora.search.asking import Request, ask, find_search

        folder = find_search(name, output_dir)
        if trial is None:
            from ray_lora.search.tuner import resume_search

            _say_end(say, resume_search(folder))
            return
        told = ask(folder, Request(do="resume", trials=(trial,)))
        say(told, f"{told['trial']} goes on from its last checkpoint")


@app.command()
def page(
    name: NameArgument,
    port: Annotated[int, typer.Option("--port", help="On 127.0.0.1; 0 for any that is free.")] = 8400,
    output_dir: FolderOption = _RUNS,
) -> None:
    """Show a search on a page of this machine's own, with curves and buttons that steer it, until Ctrl+C."""
    from ray_lora.search.asking import find_search
    from ray_lora.search.board import serve_board

    server, listening = serve_board(find_search(name, output_dir), port)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    server.run(sockets=[listening])


def _say_end(say: Any, result: dict[str, Json]) -> None:
    """What a search has found."""
    from ray_lora.search.report import closing
    from ray_lora.search.summary import Summary

    say(
        result,
        *closing(Summary.recall(result)),
        f"champion    {result['best']['ref']}",
        f"MLflow      {result['link']}",
    )


def _origin(trial: dict[str, Json]) -> str:
    if trial["parent"] is None:
        return ""
    return f" (from step {trial['since']} of {trial['parent']})" if trial["since"] else f" (as {trial['parent']})"


def _done(trial: dict[str, Json]) -> str:
    if not trial["total"]:
        return "-"
    return f"{trial['step']}/{trial['total']} {trial['step'] / trial['total']:.0%}"


def _score(trial: dict[str, Json]) -> str:
    part = f" on {trial['rows']} rows" if trial["rows"] else ""
    return f"{trial['said']}{part}" if trial["said"] else trial["error"] or "-"


def _standing(name: str, state: dict[str, Json]) -> str:
    if state["running"]:
        return state["left"] or "running"
    if state["ended"] == "finished":
        return "it has come to its end"
    how = "was stopped" if state["ended"] == "stopped" else "is not running"
    return f"it {how}; `ray-lora search resume {name}` goes on with it"
