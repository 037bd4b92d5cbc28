"""Shops that file the same kinds of reviews by bars of their own: generated people for one adapter each.

    python -m pipelines.shops [--out data] [--shops 256] [--rows 64] [--test 32]

writes, and a second run reuses, `data/shops-256-64/{train,test}.parquet`

    {"text": "the battery died after two weeks", "label": "negative", "shop": "shop 17", "city": "b", "date": 41}

The texts and how people rated them are real (`pipelines.rated_texts`: reviews of products and films, tweets). THE SHOPS
ARE NOT: each is drawn, with a fixed seed, from a city, has a bar of its own, and files a text as positive that is rated
above it. Cities differ by their mean bar, shops by a deviation of `SPREAD` from it, so that a city's adapter is right
on most texts and a shop's own can be right on more. Test rows are texts of the test split, which no shop trains on.
What this shows of real people is nothing but that what differs between them in this one way can be learnt.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines import rated_texts
from pipelines.kept_rows import keep

BARS = {"a": -1.5, "b": -0.5, "c": 0.5, "d": 1.5}  # by city, of ratings from -4 to 4
SPREAD = 1.0
DOMAINS = ("products", "movies", "tweets")
SEED = 0


def write_rows(out: str | Path = "data", shops: int = 256, rows: int = 64, test: int = 32) -> Path:
    """The folder of so many shops' rows, made where it is missing.

    Raises:
        DataError: the texts cannot be had.
    """
    rated_texts.prepare(out)
    name = f"shops-{shops}-{rows}"
    making = {
        "shops": shops, "rows": rows, "test": test, "bars": BARS, "spread": SPREAD, "seed": SEED, "form": 1,
        "texts": rated_texts.SOURCE.sha256,
    }  # fmt: skip
    keep(out, name, making, lambda: make(Path(out), name, shops, {"train": rows, "test": test}))
    return Path(out) / name


def make(out: Path, name: str, shops: int, rows: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Rows of both splits, shop by shop."""
    draw, cities = random.Random(SEED), list(BARS)
    bars = [draw.gauss(BARS[cities[shop % len(cities)]], SPREAD) for shop in range(shops)]
    found: dict[str, list[dict[str, Any]]] = {}
    for split, count in rows.items():
        texts = [row for domain in DOMAINS for row in pq.read_table(out / domain / f"{split}.parquet").to_pylist()]
        found[f"{name}/{split}.parquet"] = [
            {
                "text": row["text"],
                "label": "positive" if row["rating"] > bars[shop] else "negative",
                "shop": f"shop {shop}",
                "city": cities[shop % len(cities)],
                "date": date,
            }
            for shop in range(shops)
            for date, row in enumerate(draw.sample(texts, count))
        ]
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--out", default="data", help="folder to write to")
    for flag, most in (("shops", 256), ("rows", 64), ("test", 32)):
        options.add_argument(f"--{flag}", type=int, default=most)
    given = options.parse_args()
    print(write_rows(given.out, given.shops, given.rows, given.test))
