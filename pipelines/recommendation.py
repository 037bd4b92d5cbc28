"""From a recommender that knows one group's habits to adapters for other groups, served on it. No text anywhere.

    python -m pipelines.recommendation [--smoke] [--seeds N] [--json] [--keep] [--movielens] [key=value ...]

The base is a SASRec pretrained by `pipelines.recommender_base` on the source group's histories alone; each adapter
learns another group's. The interactions are generated, and said to be (`pipelines.interactions`); `--movielens` takes
MovieLens-100K in their place, whose terms are said first (`pipelines.movielens`). Before stands the bare base, and
beside it, in words, a list of what is most popular in the group's training rows. Each adapter has an output layer of
its own, which begins as the base's; what stands as head only is that layer trained alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines import interactions, movielens
from pipelines.recommender_base import TRAINING, prepare, pretrain
from pipelines.story import Asked, Line, asked, tell
from ray_lora.tasks.recommendation.measures import measures, popular

RECIPE = Path(__file__).parents[1] / "examples/recommendation.yaml"
FLAGS = {"movielens": "MovieLens-100K in place of generated interactions; read its terms first"}
SMOKE_EPOCHS = 1  # of the base
RATES = (1e-3, 3e-3)  # of training every weight


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv, FLAGS)
    few = SMOKE_EPOCHS if given.smoke else None
    if "movielens" in given.flags:
        rows = movielens.write_rows("data")
        about = "The rows are MovieLens-100K's, whose terms allow research and no passing on."
        training = TRAINING if few is None else TRAINING | {"epochs": few}
        base = pretrain(Path("data/movielens-base"), rows / "source", about, movielens.POSITIONS, training)
        groups: list[str] = list(movielens.GROUPS)
    else:
        base, rows = prepare("data", few), Path("data/interactions")
        groups = [group for group in interactions.GROUPS if group != "source"]
    tell("recommendation", [line(given, base, rows / group) for group in groups], given)


def line(given: Asked, base: Path, rows: Path) -> Line:
    """What is trained for a group and compared."""
    files = [f"data.{split}={rows}/{split}.parquet" for split in ("train", "validation")]
    recipe = given.recipe(RECIPE, [f"base.model={base}", *files])
    test = pq.read_table(rows / "test.parquet").to_pylist()[: given.most]
    common = popularity(pq.read_table(rows / "train.parquet").to_pylist(), test)
    source = f"other users; most popular: {common['ndcg_10']:.3f}"
    return Line(rows.name, recipe, str(rows / "test.parquet"), test[0]["items"], source, full_rates=RATES)


def popularity(train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The measures of lists of what is most popular in the training rows, without what a user had before."""
    histories = [[*row["items"], row["next"]] for row in train]
    lists = popular(histories, [set(row["items"]) for row in test])
    return measures(lists, [row["next"] for row in test])


if __name__ == "__main__":
    main()
