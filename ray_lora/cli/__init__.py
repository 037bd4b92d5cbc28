"""The command line: `ray-lora train recipe.yaml lora.r=4 --json`.

Exit codes: 0 done; 2 the input was wrong, said in one message without a traceback; 1 anything else. Each command
imports what it needs when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from ray_lora.cli import (
    adapters,
    cache,
    explaining,
    export,
    merging,
    pruning,
    runs,
    searching,
    start,
    use,
    versions,
    vllm,
)
from ray_lora.cli.output import new_group
from ray_lora.errors import RayLoraError

app = new_group("Train, search and serve many LoRA adapters on one shared frozen base.")
BEGINNING = (start.init, start.doctor)
RUNS = (runs.train, runs.personal, runs.plan, runs.curve)
USES = (use.evaluate, use.predict, use.serve, explaining.explain, merging.merge, export.export, pruning.prune)
for command in (*BEGINNING, *RUNS, *USES, runs.schema):
    app.command()(command)
for steering in (versions.split, versions.shadow, versions.promote, versions.rollback, versions.ab, versions.route):
    adapters.app.command()(steering)
adapters.app.command()(vllm.vllm)
app.add_typer(searching.app, name="search")
app.add_typer(adapters.app, name="adapters")
app.add_typer(cache.app, name="cache")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. An error that no input can cause comes out as the exception it is."""
    try:
        app(arguments, prog_name="ray-lora")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except Exception as error:
        wrong = wrong_input(error)
        if wrong is None:
            raise
        print(f"ray-lora: {wrong}", file=sys.stderr)
        nobodys = type(wrong) is RayLoraError or isinstance(wrong, ConnectionError)  # a job failed; a server is away
        return 1 if nobodys else 2
    return 0


def run() -> NoReturn:
    """`main` as a program: once threads and what is registered for the exit have ended, so does it. Taking apart what
    torch and transformers have loaded would take a second or two, and the system frees it all the same."""
    code = main()
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter itself does first
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wrong_input(error: BaseException | None) -> RayLoraError | None:
    """The user's error in a chain of causes: what fails in a Ray worker arrives wrapped."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, RayLoraError):
            inner = getattr(error, "cause", None)  # a RayTaskError is both; its own message is a traceback
            return inner if isinstance(inner, RayLoraError) else error
        error = getattr(error, "cause", None) or error.__cause__
    return None
