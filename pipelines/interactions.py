"""Generated interactions: people who take one thing after another, of a source group and of two others.

    python -m pipelines.interactions [--out data]

writes, and a second run reuses, `data/interactions/<source|evening|young>/{train,validation,test}.parquet`

    {"user": 17, "items": [1042, 1007, 1311], "next": 1150}

NOBODY TOOK THESE THINGS: they are drawn from a model of latent factors, with a fixed seed, so that the pipeline has
data without a licence. Each thing has eight factors and a popularity. What somebody takes next follows from a taste of
his own, from what he took last and before, turned by matrices that all of his group share, and from the popularity;
nothing is taken twice. The other groups turn by matrices that are partly others, and like other things. So most of
what a source's model knows holds for them, and some of it does not. What this shows of real people is nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.kept_rows import keep
from ray_lora.data.interactions import leave_last_out

Floats = NDArray[np.float64]

GROUPS = {"source": 2000, "evening": 500, "young": 500}  # users
WORLD: dict[str, float] = {
    "seed": 0,
    "items": 300,
    "factors": 8,
    "shortest": 8,  # items of a user
    "longest": 24,
    "taste": 0.8,  # how much a user's own taste weighs
    "last": 2.2,  # how much what was taken last weighs
    "before": 1.2,  # how much what was taken before that weighs
    "popularity": 0.7,
    "turned": 0.6,  # how far the other groups' matrices are from the source's, from 0 to 1
    "liked": 0.5,  # how far what they like is from what the source likes
}
FIRST = 1001  # the first item's id


def write_rows(out: str | Path = "data") -> Path:
    """The folder of all groups' rows, made where it is missing."""
    keep(out, "interactions", {"groups": GROUPS, "world": WORLD, "form": 1}, make)
    return Path(out) / "interactions"


def make() -> dict[str, list[dict[str, Any]]]:
    """Rows of every group and split."""
    return {
        f"interactions/{group}/{split}.parquet": rows.to_pylist()
        for group, table in draw(GROUPS, WORLD).items()
        for split, rows in leave_last_out(table).items()
    }


def draw(groups: Mapping[str, int], world: Mapping[str, float]) -> dict[str, pa.Table]:
    """A table of interactions a group: user, item, timestamp. The first group is the source."""
    dice = np.random.default_rng(int(world["seed"]))
    things, factors = int(world["items"]), int(world["factors"])
    item = dice.normal(size=(things, factors)) / factors**0.5
    popular = np.sort(dice.gumbel(size=things))[::-1] * world["popularity"]
    common = [turn(dice, factors) for _ in range(2)]
    found, first = {}, 1
    for number, (group, users) in enumerate(groups.items()):
        own = [turn(dice, factors) for _ in range(2)]
        likes = dice.normal(size=factors)
        far = world["turned"] if number else 0.0
        turns = [nearest_turn((1 - far) * a + far * b) for a, b in zip(common, own, strict=True)]
        liked = popular + (world["liked"] * factors**0.5 * (item @ likes) if number else 0.0)
        found[group] = _take(dice, item, liked, turns, users, first, world)
        first += users
    return found


def turn(dice: np.random.Generator, size: int) -> Floats:
    """A random orthogonal matrix."""
    return nearest_turn(dice.normal(size=(size, size)))


def nearest_turn(matrix: Floats) -> Floats:
    """The orthogonal matrix nearest to another (its polar factor)."""
    left, _, right = np.linalg.svd(matrix)
    return np.asarray(left @ right)


def _take(
    dice: np.random.Generator,
    item: Floats,
    liked: Floats,
    turns: list[Floats],
    users: int,
    first: int,
    world: Mapping[str, float],
) -> pa.Table:
    """What so many users take, one step of all of them at a time."""
    scale = item.shape[1] ** 0.5
    taste = dice.normal(size=(users, item.shape[1]))
    lengths = dice.integers(int(world["shortest"]), int(world["longest"]) + 1, users)
    taken = np.zeros((users, int(world["longest"])), int)
    open_ = np.ones((users, len(item)), bool)
    everybody = np.arange(users)
    for step in range(taken.shape[1]):
        wants = world["taste"] * taste
        for back, (name, matrix) in enumerate(zip(("last", "before"), turns, strict=True), start=1):
            if step >= back:
                wants = wants + world[name] * scale * item[taken[:, step - back]] @ matrix
        odds = np.where(open_, wants @ item.T * scale / 2 + liked + dice.gumbel(size=open_.shape), -np.inf)
        taken[:, step] = odds.argmax(1)
        open_[everybody, taken[:, step]] = False
    kept = np.arange(taken.shape[1])[None] < lengths[:, None]
    who, when = np.nonzero(kept)
    return pa.table({"user": first + who, "item": FIRST + taken[kept], "timestamp": when})


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--out", default="data", help="folder to write to")
    write_rows(options.parse_args().out)
