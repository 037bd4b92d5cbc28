"""From rated texts to five adapters behind one endpoint. `make demo` runs this.

    python -m pipelines.sentiment            about five minutes on two cores
    python -m pipelines.sentiment --keep     the endpoint stays up
    python -m pipelines.sentiment --smoke    a minute: few rows, few configurations
    python -m pipelines.sentiment --seeds 3  tweets beside full training and the head alone, by seeds

Tweets are searched for the best rank and learning rate; at that rank movies, products, newspapers and "which domain is
this text from" are trained together in packs. All five live on one base and answer in one batch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.table import Table

from pipelines.rated_texts import prepare
from pipelines.story import Asked, Line, asked, console, few, request, step, tell
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.inference.baseline import head_only
from ray_lora.inference.predict import predict
from ray_lora.recipe import Recipe
from ray_lora.running.trainer import LoraTrainer
from ray_lora.search.report import leaderboard
from ray_lora.search.tuner import LoraTuner
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.app import run
from ray_lora.store import Entry, open_store, put_once
from ray_lora.tasks import build_task
from ray_lora.tasks.classification import Classification

DOMAINS = ("tweets", "movies", "products", "newspapers", "domains")
TEXTS = {
    "tweets": "so happy with my new phone, best day ever :)",
    "movies": "a tedious, lifeless film that never finds its story",
    "products": "the battery died after two weeks and support never answered",
    "newspapers": "Residents praised the volunteers for their generous help after the flood.",
    "domains": "this camera takes sharp pictures, well worth the price",
}
RECIPE = Path(__file__).parents[1] / "examples/tweets.yaml"
TWEETS = "data/tweets/test.parquet"
SMOKE = [
    "training.max_steps=6",
    "training.eval_steps=3",
    "search.space={lora.r: {grid_search: [2, 4]}}",
    "scaling.packs=1",  # of so few rows a second one would only start
]


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    if given.seeds or given.json:
        prepare("data")
        tell("sentiment", lines(given), given)
    else:
        demo(given)


def lines(given: Asked) -> list[Line]:
    """What is trained by seeds and compared."""

    def recipe(domain: str, *overrides: str) -> Recipe:
        told = [f"{key}={path}" for key, path in files(domain).items()]
        once = ("training.num_train_epochs=2", "training.eval_steps=null")
        return given.recipe(RECIPE, [*told, *once, *overrides])

    def tweets(name: str, *overrides: str) -> Line:
        source = recipe("movies", *overrides)
        return Line(name, recipe("tweets", *overrides), TWEETS, TEXTS["tweets"], "movies", source, "f1_macro")

    other = [] if given.smoke else [tweets("tweets-roberta", "base.model=minilm-roberta")]
    return [tweets("tweets"), *other]


def demo(asked: Asked) -> None:
    """The whole way of five adapters, from a search to one endpoint."""
    started = time.time()
    step("1/5  rows: the four rated text domains of vaderSentiment")
    prepare(Path("data"))
    few_rows = [f"{key}={path}" for key, path in files("tweets", smoke=True).items()] if asked.smoke else []
    recipe = Recipe.load(RECIPE, [*(SMOKE if asked.smoke else []), *few_rows, *asked.overrides])

    step("2/5  search on tweets: every configuration is a Ray Tune trial, all share one base")
    tuner = LoraTuner(recipe)
    tuner.fit()
    console.print(leaderboard(tuner.summary), f"advice: {tuner.summary.advice}")
    best = tuner.summary.best
    if best is None or best.adapter is None:
        sys.exit("no configuration of the search finished")

    step("3/5  the other four adapters, trained together at the rank that was found")
    # the rank carries over; the rate does not: tweets bear three times what newspapers and products do
    found = recipe.override({"lora.r": best.config["lora.r"], "training.num_train_epochs": 2})
    others = [
        found.override({"name": d, "task.labels": None, **files(d, asked.smoke)}) for d in DOMAINS if d != "tweets"
    ]
    results = LoraTrainer(others).fit()
    assert isinstance(results, list)
    store = open_store(recipe.store, recipe.tracking.uri)
    folders = {"tweets": Path(best.adapter)}
    for other, result in zip(others, results, strict=True):
        if result.error is not None or result.checkpoint is None:
            sys.exit(f"{other.name}: {result.error}")
        folders[other.name] = Path(result.checkpoint.path)
    entries = {
        name: put_once(store, Adapter.load(folder), name, aliases=("champion",)) for name, folder in folders.items()
    }

    step("4/5  scores on held-out rows, beside the best head alone on the frozen base")
    console.print(compare(entries, folders, asked.smoke))

    step("5/5  one endpoint, one batch over all five adapters")
    url = run(AppArgs(store=recipe.store, base=recipe.base.model, port=asked.port), block=False)
    with ThreadPoolExecutor(len(TEXTS)) as pool:  # all at once: the endpoint answers them in shared passes
        replies = list(pool.map(lambda item: request(url, *item), TEXTS.items()))
    answers = Table("adapter", "text", "answer", "score")
    for reply, text in zip(replies, TEXTS.values(), strict=True):
        answer = reply["predictions"][0]
        answers.add_row(f"{reply['model']}@{reply['version']}", text, answer["label"], f"{answer['score']:.3f}")
    console.print(answers)
    console.print(f"plots      {', '.join(tuner.summary.plots)}", soft_wrap=True)
    console.print(f"MLflow     {tuner.link}", soft_wrap=True)
    serve = f".venv/bin/ray-lora serve --store {recipe.store} --base {recipe.base.model}"
    console.print(f"endpoint   make demo KEEP=1, or: {serve}", soft_wrap=True)
    console.print(f"done in {time.time() - started:.0f} s")
    if asked.keep:
        console.print(f"{url}/docs is up; press Ctrl-C to stop")
        while True:
            time.sleep(3600)


def files(domain: str, smoke: bool = False) -> dict[str, str]:
    """The recipe's data section for a domain; of a smoke run an eighth of the rows."""
    rows = {"train": 1024, "validation": 512}
    paths = {f"data.{split}": Path(f"data/{domain}/{split}-{count}.parquet") for split, count in rows.items()}
    return {key: str(few(path, rows[key[5:]] // 8) if smoke else path) for key, path in paths.items()}


def compare(entries: dict[str, Entry], folders: dict[str, Path], smoke: bool) -> Table:
    """Adapters and head-only baselines on rows that neither saw. All adapters are scored in the same passes."""
    rows = 60 if smoke else 400
    adapters = {name: Adapter.load(folder) for name, folder in folders.items()}
    first = next(iter(entries.values()))
    engine = AdapterEngine(load_base(Recipe().base), slots=len(adapters), max_rank=64)
    table = Table("adapter", "version", "task", "labels", "head only", "adapter score", "parameters", "file")
    for name, adapter in adapters.items():
        assert adapter.card.task is not None
        task = build_task(adapter.card.task, engine.base.processor)
        assert isinstance(task, Classification)
        slot = engine.load(adapter)
        splits = [task.encode(read(path).to_pylist()[:1024]) for path in files(name, smoke).values()]
        test = task.encode(read(f"data/{name}/test.parquet").to_pylist()[:rows])
        baseline = task.score(head_only(engine, task, *splits)(test), test)[task.metric]
        score = task.score(predict(engine, {slot: task}, test, [slot] * len(test)), test)[task.metric]
        entry = entries[name]
        labels = ", ".join(task.labels)
        table.add_row(
            name, str(entry.version), task.spec.type, labels, f"{baseline:.3f}", f"{score:.3f}",
            f"{adapter.num_parameters:,}", f"{entry.bytes / 1e6:.2f} MB",
        )  # fmt: skip
    table.caption = f"{task.metric} on {rows} test rows each; base {first.base}"
    return table


if __name__ == "__main__":
    main()
