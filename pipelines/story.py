"""One way to run a pipeline and to compare: adapters of several seeds, and what each task had before and without them.

    python -m pipelines.NAME [--smoke] [--seeds N] [--json] [--keep] [--port P] [key=value ...]

A pipeline is some `Line`s: each an adapter for rows of a target, and an adapter for its source that says where one
stands before. All adapters of all lines that share a base train in one call, in packs. A killed run goes on with the
same command. With `--json` the last line on standard output is the first line's object, the others under "more".
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.request import Request, urlopen

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from pipelines.baselines import Data
from pipelines.kept_rows import digest, write
from pipelines.scores import Kept, Rivals, first_seconds, score_adapters, score_kept
from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import RayLoraError
from ray_lora.recipe import Json, Recipe
from ray_lora.running.local_ray import start_ray
from ray_lora.running.trainer import LoraTrainer
from ray_lora.serving.args import AppArgs, BaseArgs
from ray_lora.serving.cluster.app import run
from ray_lora.store import open_store, put_once
from ray_lora.tasks import task_of

SMOKE = {
    "training.max_steps": 2,
    "training.eval_steps": 2,
    "training.head_start": "random",
    "scaling.packs": 1,
    "tracking.uri": None,
}
SMOKE_ROWS = 24  # of each split that baselines and scores see
console = Console(width=None if sys.stdout.isatty() else 150)


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        name: of the adapter.
        recipe: base, task, data and training for the target.
        test: the file of held-out rows.
        ask: a request's input, answered over HTTP in the end; parameters: its parameters.
        source: where the score before comes from, in words.
        before: the recipe of the adapter that the source trains; None: nothing is trained, the bare base is scored.
        metric: what is shown; None for the task's own.
        full_rates: of training every weight; the better one by validation rows with seed 0 is taken.
        full_seeds: so many seeds at most train every weight of a base for which that takes long; None for all.
        head_alone: whether a head trains alone; not one that is the base's own and shares weights with it.
        kept: rows of what the base knew, on which it is scored with and without the adapters.
    """

    name: str
    recipe: Recipe
    test: str
    ask: Json
    source: str
    before: Recipe | None = None
    metric: str | None = None
    full_rates: tuple[float, ...] = (1e-4, 3e-4)
    full_seeds: int | None = None
    head_alone: bool = True
    kept: Kept | None = None
    parameters: dict[str, Json] = field(default_factory=dict)

    @property
    def metric_name(self) -> str:
        return self.metric or task_of(self.recipe.task).metric

    @property
    def mode(self) -> str:
        return task_of(self.recipe.task).metrics[self.metric_name]


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    smoke: bool
    seeds: int
    json: bool
    keep: bool
    port: int
    overrides: tuple[str, ...]
    flags: frozenset[str] = frozenset()  # of a pipeline's own, those that are given

    @property
    def most(self) -> int | None:
        """Rows of each split that are looked at; None for all."""
        return SMOKE_ROWS if self.smoke else None

    def recipe(self, path: Path, overrides: Sequence[str] = ()) -> Recipe:
        """A recipe with a line's overrides, the smoke run's and the person's, in this order."""
        small = [f"{key}={json.dumps(value)}" for key, value in SMOKE.items()] if self.smoke else []
        recipe = Recipe.load(path, [*overrides, *small, *self.overrides])
        if self.smoke and isinstance(recipe.data.validation, str):
            recipe = recipe.override({"data.validation": str(few(Path(recipe.data.validation)))})
        return recipe


def asked(
    about: str | None, argv: Sequence[str] | None = None, flags: Mapping[str, str] = MappingProxyType({})
) -> Asked:
    """The command line of a pipeline. `argv`: in place of the process's own; `flags`: of its own, name to help."""
    options = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    options.add_argument("--smoke", action="store_true", help="few rows and steps, to see that everything runs")
    options.add_argument("--seeds", type=int, default=0, help="adapters of so many seeds for each line")
    options.add_argument("--json", action="store_true", help="the last line is the result as an object")
    options.add_argument("--keep", action="store_true", help="leave the endpoint running until Ctrl-C")
    options.add_argument("--port", type=int, default=0, help="0 takes a free one")
    options.add_argument("overrides", nargs="*", help="recipe overrides such as output_dir=/tmp/runs")
    for flag, about_it in flags.items():
        options.add_argument(f"--{flag}", action="store_true", help=about_it)
    given = options.parse_args(argv)
    if given.seeds < 0:
        options.error(f"--seeds {given.seeds} must be at least 1")
    chosen = frozenset(flag for flag in flags if getattr(given, flag))
    return Asked(given.smoke, given.seeds, given.json, given.keep, given.port, tuple(given.overrides), chosen)


def few(path: Path, rows: int = SMOKE_ROWS) -> Path:
    """A file of the first rows of a parquet file, beside it."""
    short = path.with_name(f"{path.stem}-{rows}.parquet")
    write(short, pq.read_table(path).slice(0, rows))
    return short


def tell(name: str, lines: Sequence[Line], asked: Asked) -> list[dict[str, Json]]:
    """Train, compare, serve and ask; each line's object. Prints the table, and the objects with `--json`."""
    started = time.time()
    seeds = range(max(1, asked.seeds))
    start_ray()
    found: dict[str, dict[str, Any]] = {}
    for base in dict.fromkeys(line.recipe.base.model for line in lines):
        mine = [line for line in lines if line.recipe.base.model == base]
        folders, seconds = train(name, mine, len(seeds))
        step(f"{name}: scores on held-out rows, on {base}")
        for line in mine:
            found[line.name] = compare(line, folders, seeds, asked) | {"seconds": seconds}
    served = serve(lines, found, asked)
    results = [finish(line, found[line.name], served) for line in lines]
    console.print(table(results))
    for result in results:
        if "kept" in result:
            console.print(forgotten(result["name"], result["kept"]), soft_wrap=True, highlight=False)
    console.print(f"done in {time.time() - started:.0f} s")
    if asked.json:
        print(json.dumps(results[0] | ({"more": results[1:]} if results[1:] else {})), flush=True)
    return results


def step(title: str) -> None:
    console.rule(f"[bold]{title}", align="left")


def train(name: str, lines: Sequence[Line], seeds: int) -> tuple[dict[str, Path], float]:
    """Every seed of every line on one base, and their sources, in one call: folders of adapters by "line-seed" and
    "line-source", and the seconds that all of them took together."""
    recipes = []
    for line in lines:
        for seed in range(seeds):
            recipes.append(line.recipe.override({"name": f"{line.name}-{seed}", "training.seed": seed}))
        if line.before is not None:
            recipes.append(line.before.override({"name": f"{line.name}-source"}))
    # one folder a set of recipes: another number of seeds or an override is another run
    mark = digest("".join(recipe.model_dump_json() for recipe in recipes))[:8]
    output = Path(recipes[0].output_dir) / f"{name}-{mark}"
    step(f"{name}: {len(recipes)} adapters on {recipes[0].base.model}, trained together ({output})")
    results = LoraTrainer([recipe.override({"output_dir": str(output)}) for recipe in recipes]).fit()
    assert isinstance(results, list)
    folders = {}
    for recipe, result in zip(recipes, results, strict=True):
        if result.error is not None or result.checkpoint is None:
            raise RayLoraError(f"{recipe.name}: {result.error}")
        folders[recipe.name] = Path(result.checkpoint.path)
    return folders, first_seconds(output, results)


def compare(line: Line, folders: dict[str, Path], seeds: Sequence[int], asked: Asked) -> dict[str, Any]:
    """Scores of a line's adapters, of its source, the head alone and every weight; its adapters go into the store."""
    data = Data(line.recipe, line.test, asked.most)
    adapters = [Adapter.load(folders[f"{line.name}-{seed}"]) for seed in seeds]
    source = Adapter.load(folders[f"{line.name}-source"]) if line.before is not None else None
    before, after, best = score_adapters(data, adapters, source, line.metric_name, line.mode)
    rates = line.full_rates[:1] if asked.smoke else line.full_rates
    rivals = Rivals(data, Path(line.recipe.output_dir) / "baselines" / f"{line.name}.json", here=asked.smoke)
    head, full = rivals.scores(line.metric_name, line.mode, rates, seeds[: line.full_seeds], line.head_alone)
    kept = None if line.kept is None else score_kept(data, adapters, line.kept)
    store = open_store(line.recipe.store, line.recipe.tracking.uri)
    entry = put_once(store, adapters[best], line.name, aliases=("champion",))
    parameters = sum(parameter.numel() for parameter in data.base.backbone.parameters())
    return {
        "before": before, "after": after, "head_only": head, "full": full, "test_rows": len(data.rows("test")),
        "trainable": adapters[0].num_parameters, "total": parameters + adapters[0].num_parameters,
        "adapter_bytes": entry.bytes, "refs": [entry.ref], **({} if kept is None else {"kept": kept}),
    }  # fmt: skip


def serve(lines: Sequence[Line], found: dict[str, dict[str, Any]], asked: Asked) -> dict[str, Json]:
    """Each line's answer from the live endpoint, by ref."""
    from ray import serve as ray_serve

    bases = {line.recipe.base.model: line.recipe.base for line in lines}
    told = tuple(BaseArgs(model=base.model, dtype=base.dtype) for base in bases.values())
    step("one endpoint over all of them")
    url = run(AppArgs(store=lines[0].recipe.store, bases=told, num_cpus=0.5, port=asked.port), block=False)
    served = {ref: answer_of(url, ref, line) for line in lines for ref in found[line.name]["refs"]}
    for ref, answer in served.items():
        console.print(f"{ref}: {json.dumps(answer, ensure_ascii=False)[:400]}", soft_wrap=True, highlight=False)
    if asked.keep:
        console.print(f"{url}/docs is up; press Ctrl-C to stop")
        while True:
            time.sleep(3600)
    ray_serve.shutdown()  # type: ignore[no-untyped-call,unused-ignore]
    return served


def answer_of(url: str, model: str, line: Line) -> Json:
    """The answer to a line's input over HTTP; what is generated comes by OpenAI's routes."""
    if line.recipe.task.type != "text-generation":
        return request(url, model, line.ask, line.parameters)["predictions"][0]
    asked = {"model": model, "temperature": 0, "max_tokens": 48}
    if isinstance(line.ask, str):
        return post(f"{url}/v1/completions", asked | {"prompt": line.ask})["choices"][0]
    return post(f"{url}/v1/chat/completions", asked | {"messages": line.ask})["choices"][0]


def request(url: str, model: str, value: Json, parameters: dict[str, Json] | None = None) -> dict[str, Any]:
    """The endpoint's reply to one input: `{"model", "version", "predictions": [answer]}` and more."""
    return post(f"{url}/v1/predict", {"model": model, "inputs": [value], "parameters": parameters or {}})


def post(url: str, body: dict[str, Json]) -> dict[str, Any]:
    """The endpoint's reply to a body."""
    with urlopen(Request(url, json.dumps(body).encode(), {"content-type": "application/json"})) as reply:
        return json.load(reply)  # type: ignore[no-any-return]


def finish(line: Line, found: dict[str, Any], served: dict[str, Json]) -> dict[str, Json]:
    """A line's object."""
    shown: dict[str, Json] = {
        "name": line.name,
        "task": line.recipe.task.type,
        "base": Path(line.recipe.base.model).name,
        "metric": line.metric_name,
        "mode": line.mode,
        "source": line.source,
    }
    return shown | found | {"served": {ref: served[ref] for ref in found["refs"]}}


def table(results: Sequence[dict[str, Any]]) -> Table:
    """The objects as people read them."""
    from pipelines.lines import HEADERS, cells

    shown = Table(*HEADERS)
    for result in results:
        shown.add_row(*cells(result))
    return shown


def forgotten(name: str, kept: dict[str, Any]) -> str:
    """What an adapter's base scored on what it knew before, and with it."""
    from pipelines.lines import spread

    told = f"{kept['before']:.3f} before, {spread(kept['after'])} with the adapter"
    return f"{name}: {kept['metric']} on {kept['rows']} rows of {kept['words']}: {told}"


def changed(recipe: Recipe, **values: Json) -> Recipe:
    """`recipe.override` with `__` for dots."""
    return recipe.override({key.replace("__", "."): value for key, value in values.items()})


def with_rates(line: Line, *rates: float) -> Line:
    """The line with other rates of full training."""
    return dataclasses.replace(line, full_rates=rates)
