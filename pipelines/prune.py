"""From a base to one of 40 % of its layers' parameters: what an adapter scores on it, and what a random cut would cost.

    python -m pipelines.prune [--smoke] [--seeds N] [--json] [--keep] [key=value ...]

Adapters of tweets' sentiment train on the whole base. The first one's gradients say which layers and feed-forward rows
matter least; the base is cut to a folder without them, and a second time to the same shape by chance. Adapters of the
same recipe then train on each folder. `cuts` has the scores of all three on rows that nobody trained on, parameters,
and milliseconds for one row; the line's `before` is the whole base's score, `after` that of the scored cut.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pipelines.baselines import Data
from pipelines.kept_rows import digest
from pipelines.rated_texts import prepare
from pipelines.scores import score_adapters
from pipelines.story import SMOKE_ROWS, Asked, Line, asked, console, few, finish, serve, step, table, train
from ray_lora.adapters.adapter import Adapter
from ray_lora.pruning import prune_ref
from ray_lora.recipe import Json, Recipe
from ray_lora.running.local_ray import start_ray
from ray_lora.store import Entry, open_store, put_once

RECIPE = Path(__file__).parents[1] / "examples/tweets.yaml"
TEST = "data/tweets/test.parquet"
TEXT = "so happy with my new phone, best day ever :)"
METRIC = "f1_macro"
SHARE = 0.4
TRAINING = ("training.num_train_epochs=4", "training.learning_rate=1e-3", "training.eval_steps=null")


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    prepare("data")
    start_ray()
    recipe = given.recipe(RECIPE, TRAINING)
    seeds = max(1, given.seeds)
    whole = Line("prune-whole", recipe, TEST, TEXT, "", metric=METRIC)
    results = [adapted(whole, "whole", seeds, given)]
    entry = results[0]["entry"]
    rows = few(Path(str(recipe.data.train))) if given.smoke else Path(str(recipe.data.train))
    for how in ("lora", "random"):
        step(f"prune: the base cut to {SHARE:.0%}, units chosen by {how}")
        folder, card = cut(recipe, entry, rows, how)
        line = Line(
            f"prune-{how}", recipe.override({"base.model": str(folder)}), TEST, TEXT, "the whole base", metric=METRIC
        )
        results.append(adapted(line, how, seeds, given) | {"card": card})
    report(results, given)


def cut(recipe: Recipe, entry: Entry, rows: Path, how: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a smaller base and its card; one that is there is taken as it is."""
    mark = digest(f"{entry.sha256}|{rows.read_bytes().hex()}|{SHARE}|{how}")[:8]
    folder = Path(recipe.output_dir) / "pruned" / f"{how}-{mark}"
    if not (folder / "pruning.json").exists():
        prune_ref(
            entry.ref, folder, keep=SHARE, data=str(rows), random=0 if how == "random" else None, store=recipe.store,
            columns=recipe.data.columns, base=recipe.base.model, tracking_uri=recipe.tracking.uri,
        )  # fmt: skip
    return folder, json.loads((folder / "pruning.json").read_text())


def adapted(line: Line, how: str, seeds: int, given: Asked) -> dict[str, Any]:
    """Adapters of every seed on a line's base, their held-out scores; the first one goes into the store."""
    folders, seconds = train("prune", [line], seeds)
    data = Data(line.recipe, TEST, SMOKE_ROWS if given.smoke else None)
    adapters = [Adapter.load(folders[f"{line.name}-{seed}"]) for seed in range(seeds)]
    _, scores, _ = score_adapters(data, adapters, None, METRIC, line.mode)
    store = open_store(line.recipe.store, line.recipe.tracking.uri)
    entry = put_once(store, adapters[0], line.name, aliases=("champion",))
    return {
        "how": how, "line": line, "scores": scores, "entry": entry, "seconds": seconds, "rows": len(data.rows("test")),
        "trainable": adapters[0].num_parameters,
        "parameters": sum(parameter.numel() for parameter in data.base.backbone.parameters()),
    }  # fmt: skip


def report(results: Sequence[dict[str, Any]], given: Asked) -> None:
    """The tables, and the object with `--json`."""
    whole, scored, _ = results
    cuts = [line_of(one, scored if one is whole else one, np.mean(whole["scores"])) for one in results]
    found = {
        "before": float(np.mean(whole["scores"])), "after": scored["scores"], "head_only": [], "full": [],
        "test_rows": scored["rows"], "trainable": scored["trainable"],
        "total": scored["parameters"] + scored["trainable"], "adapter_bytes": scored["entry"].bytes,
        "refs": [scored["entry"].ref], "seconds": sum(one["seconds"] for one in results), "cuts": cuts,
    }  # fmt: skip
    served = serve([scored["line"]], {scored["line"].name: found}, given)
    result: dict[str, Json] = finish(scored["line"], found, served)
    console.print(table([result]))
    shown = Table("base", "layers", "rows", "layer parameters", "parameters", "ms a row", METRIC, "of the whole's")
    for one in cuts:
        shown.add_row(
            one["how"], str(one["layers"]), str(one["feed_forward_rows"]), f"{one['layer_parameters']:,}",
            f"{one['parameters']:,}", f"{one['ms_a_row']:.1f}", f"{np.mean(one['scores']):.4f}", f"{one['kept']:.1%}",
        )  # fmt: skip
    console.print(shown)
    if given.json:
        print(json.dumps(result), flush=True)


def line_of(one: dict[str, Any], cut: dict[str, Any], whole: float) -> dict[str, Any]:
    """One base of the second table. `cut`: the result whose card has its figures."""
    side = cut["card"]["after" if cut is one else "before"]
    return {
        "how": one["how"], **{key: value for key, value in side.items() if key != "score"},
        "scores": one["scores"], "kept": float(np.mean(one["scores"]) / whole), "base": one["line"].recipe.base.model,
        "layers_kept": cut["card"]["layers"] if cut is one else list(range(side["layers"])),
        "score_before_adapting": side["score"] if cut is one else None,
    }  # fmt: skip


if __name__ == "__main__":
    main()
