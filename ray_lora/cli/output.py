"""How every command answers: a text for people, or with `--json` one JSON object on the last line of its output."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from typer.core import TyperGroup

from ray_lora.recipe import Json

JsonFlag = Annotated[bool, typer.Option("--json", help="End with one JSON object on the last line.")]
StoreOption = Annotated[str, typer.Option("--store", help="A folder, s3://bucket/path, gs://bucket/path, or mlflow.")]
TrackingOption = Annotated[
    str | None, typer.Option("--tracking-uri", help="The MLflow server, for --store mlflow; else MLFLOW_TRACKING_URI.")
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Where the base is: a packaged base, a hub id or a folder.")
]
ColumnOption = Annotated[
    list[str] | None, typer.Option("--column", metavar="NAME=NAME", help="The task's column = the file's column.")
]
RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Replaces keys of the recipe: lora.r=4", show_default=False),
]


class Say(Protocol):
    """What a command calls once with its result, and with what a person reads instead: texts and rich tables."""

    def __call__(self, result: dict[str, Json], *texts: Any) -> None: ...


def new_group(help: str, cls: type[TyperGroup] | None = None, usage: str | None = None) -> typer.Typer:
    """A group of commands with plain error messages.

    Args:
        cls: how it reads its words, where that is not typer's way; usage: what stands for them in its help.
    """
    return typer.Typer(
        help=help,
        cls=cls,
        subcommand_metavar=usage,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


@contextlib.contextmanager
def answering(as_json: bool, keep_ray: bool = False) -> Iterator[Say]:
    """Gives `say(result, *texts)`; with `--json` everything else that is printed goes to standard error.

    A Ray that the command started ends before the answer is written, so that nothing of it follows the last line; with
    `keep_ray` it stays.
    """
    answers: list[tuple[dict[str, Json], tuple[Any, ...]]] = []

    def say(result: dict[str, Json], *texts: Any) -> None:
        answers.append((result, texts))

    had_ray = _ray_is_up()
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        try:
            yield say
        finally:
            if _ray_is_up() and not had_ray and not keep_ray:
                sys.modules["ray"].shutdown()
    for result, texts in answers:
        if as_json:
            print(json.dumps(result, default=_plain), flush=True)
        else:
            for text in texts:
                _show(text)


def start_importing(module: str, name: str) -> None:
    """Import what a command needs while Ray starts, and say that something goes on: it takes seconds."""
    print(f"{name}: getting ready", file=sys.stderr, flush=True)
    from ray_lora.running.local_ray import start_importing as start

    start(module)


def table(columns: Sequence[str], rows: Sequence[Sequence[Json]]) -> Any:
    """A table for people; numbers to the right."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        shown.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(_cell(value) for value in row))
    return shown


def scores(metrics: dict[str, float]) -> str:
    """Metrics on one line."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _show(text: Any) -> None:
    if isinstance(text, str):
        print(text, flush=True)
        return
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 200  # a log or a pipe has no edge to wrap at
    console.print(text)


def _cell(value: Json) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Json:
    """JSON of numpy's and torch's numbers, paths and tuples."""
    return value.item() if hasattr(value, "item") else str(value)


def _ray_is_up() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
