"""Workers that train people: as many as the cluster has processors, each with the base and as many slots as fit.

    pool = PeoplePool(prepared, people=1024)
    for number, lines in pool.train(shares, names, training): ...        # as blocks of them end

It knows nothing of groups, tables or how people are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pyarrow as pa
import ray
from ray.util import ActorPool

from ray_lora.allowed import environment
from ray_lora.recipe import TrainingSpec
from ray_lora.running.allocator import WORKER_ENV
from ray_lora.running.devices import afforded
from ray_lora.running.packs import Prepared
from ray_lora.running.people_worker import PeopleTold, PeopleWorker
from ray_lora.running.teachers import anywhere
from ray_lora.training.people import Share

SLOTS = 32  # people at a time on a worker: enough for full passes when some have ended
_FREE = 0.8  # of the free memory that workers may use


class PeoplePool:
    """See the module.

    Args:
        prepared: one recipe's.
        people: how many there are, about.

    Raises:
        RecipeError: there are fewer devices than `scaling` asks for.
    """

    def __init__(self, prepared: Prepared, people: int) -> None:
        plan, recipe = prepared.plan, prepared.recipe
        asked, needed = recipe.scaling.packs, max(1, -(-people // SLOTS))
        most = afforded(1, recipe.scaling.use_gpu, None if asked is None else min(asked, needed))
        count = min(asked or most, needed)
        room = plan.free_bytes * _FREE / count - plan.base_bytes - plan.pass_bytes
        slots = recipe.scaling.slots or max(1, min(SLOTS, int(room // plan.slot_bytes) - 1))
        told = PeopleTold(
            anywhere(recipe.base, prepared.base), prepared.sources[recipe.name], recipe.lora, recipe.augmentation,
            replace(plan, slots=slots), recipe.store, recipe.tracking.uri,
        )  # fmt: skip
        self._told = ray.put(told)
        remote = ray.remote(PeopleWorker).options(
            num_cpus=1, num_gpus=1 if recipe.scaling.use_gpu else 0, max_restarts=4, max_task_retries=4,
            runtime_env={"env_vars": {**WORKER_ENV, **environment()}},
        )  # fmt: skip
        self._pool = ActorPool([remote.remote() for _ in range(count)])
        self._workers = count

    def train(
        self,
        shares: Sequence[Share],
        names: Mapping[str, str],
        training: TrainingSpec,
        most: int = SLOTS,
        table: pa.Table | None = None,
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Train people in blocks: each one's number and a line for each of its people, as they end.

        Args:
            names: of the store, by share.
            most: people of one block.
            table: the rows that shares number; None: the source's.
        """
        given = ray.put(table)

        def begin(worker: Any, numbered: tuple[int, Sequence[Share]]) -> Any:
            number, block = numbered
            mine = {share.name: names[share.name] for share in block}
            return worker.train.remote(self._told, number, list(block), mine, training, given)

        yield from self._pool.map_unordered(begin, list(enumerate(parted(shares, self._workers, most))))


def parted(shares: Sequence[Share], workers: int, most: int) -> list[Sequence[Share]]:
    """Blocks of at most so many shares, of one size or nearly; where there are as many shares as workers, each worker
    has a block."""
    count = min(len(shares), max(workers, -(-len(shares) // most)))
    bounds = [number * len(shares) // count for number in range(count + 1)] if count else [0]
    return [shares[first:last] for first, last in pairwise(bounds)]
