"""One base, its engine, and which adapters are in its slots: those used last stay.

    mounts = Mounts("minilm", slots=32)
    refused = mounts.mount(entries, fetched.take)
    mounts.slots[entries[0].sha256], mounts.tasks[entries[0].sha256]

It knows adapters and slots, no stores and no rows. The engine is made when the first adapter comes, and again where one
needs a larger rank than any before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Sequence

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, CapacityError, RayLoraError
from ray_lora.inference.adopt import check_answers
from ray_lora.recipe import BaseSpec, TaskSpec
from ray_lora.store import Entry, StoreAwayError
from ray_lora.tasks import Task, build_task, plain_spec

_LEAST_RANK = 8


class Mounts:
    """Slots of one base.

    Args:
        model: the base, as a recipe names it. dtype: as `base.dtype` has it. device: where it computes.
        slots: adapters that are mounted at once.

    Attributes:
        slots: by content hash, the least recently used first.
        tasks: what each mounted adapter does; adapters of one spec share theirs.

    Raises:
        BaseModelError: the base cannot be loaded.
    """

    def __init__(self, model: str, *, slots: int, dtype: str = "auto", device: str = "cpu") -> None:
        self._base = load_base(BaseSpec.model_validate({"model": model, "dtype": dtype}), device)
        self._most = slots
        self._engine: AdapterEngine | None = None
        self._embeddings = False
        self._tasks: dict[TaskSpec, Task] = {}
        self.slots: OrderedDict[str, int] = OrderedDict()
        self.tasks: dict[str, Task] = {}

    @property
    def labels(self) -> tuple[str, ...] | None:
        """What the base's files call their own head's outputs."""
        return self._base.labels

    @property
    def engine(self) -> AdapterEngine:
        """What computes; it is there once something was mounted."""
        assert self._engine is not None
        return self._engine

    def mount(self, entries: Sequence[Entry], take: Callable[[Entry], Adapter]) -> dict[str, str]:
        """Put adapters into slots, so that all of them are there at once; by content hash why some are not.

        Adapters that are here already are used now; others leave where there is no place.

        Args:
            entries: of different contents, no more than there are slots.
            take: reads an adapter that is not here.
        """
        wanted = {entry.sha256: entry for entry in entries}
        if len(wanted) > self._most:
            raise CapacityError(f"{len(wanted)} adapters need more than {self._most} slots; mount fewer at once")
        refused: dict[str, str] = {}
        fresh = self._taken([entry for key, entry in wanted.items() if key not in self.slots], take, refused)
        if self._engine is None or not self._fits(fresh.values()):
            self._make_engine(fresh.values())
            rest = [entry for key, entry in wanted.items() if key not in fresh and key not in refused]
            fresh |= self._taken(rest, take, refused)
        for key in wanted:
            if key in self.slots:
                self.slots.move_to_end(key)
            elif key in fresh:
                try:
                    self._load(key, fresh[key], wanted)
                except RayLoraError as error:
                    refused[key] = str(error)
        return refused

    def close(self) -> None:
        """Give the base back as it was."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        self.slots.clear()
        self.tasks.clear()

    def _taken(
        self, entries: Sequence[Entry], take: Callable[[Entry], Adapter], refused: dict[str, str]
    ) -> dict[str, Adapter]:
        taken: dict[str, Adapter] = {}
        for entry in entries:
            try:
                taken[entry.sha256] = take(entry)
            except StoreAwayError:  # nothing is wrong with the adapter
                raise
            except RayLoraError as error:
                refused[entry.sha256] = str(error)
        return taken

    def _fits(self, adapters: Iterable[Adapter]) -> bool:
        rank, embeddings = _needs(adapters)
        return rank <= self.engine.max_rank and (self._embeddings or not embeddings)

    def _make_engine(self, adapters: Iterable[Adapter]) -> None:
        """One whose slots take these adapters, and all that were there before."""
        rank, embeddings = _needs(adapters)
        if self._engine is not None:
            rank = max(rank, self._engine.max_rank)
            self.close()
        self._embeddings = self._embeddings or embeddings
        rank = max(_LEAST_RANK, 1 << (rank - 1).bit_length())
        self._engine = AdapterEngine(self._base, slots=self._most, max_rank=rank, embeddings=self._embeddings)

    def _load(self, key: str, adapter: Adapter, kept: Container[str]) -> None:
        engine = self.engine
        if not engine.free_slots:
            victim = next(other for other in self.slots if other not in kept)
            engine.evict(self.slots.pop(victim))
            del self.tasks[victim]
        before = set(engine.residents)
        try:
            slot = engine.load(adapter)
            self.tasks[key] = self._task(engine, slot, adapter)
        except RayLoraError:
            for half in set(engine.residents) - before:
                engine.evict(half)
            raise
        self.slots[key] = slot

    def _task(self, engine: AdapterEngine, slot: int, adapter: Adapter) -> Task:
        head = engine.residents[slot].head
        spec = adapter.card.task or plain_spec(head, self._base.labels)
        if spec is None:
            raise AdapterError(
                "it has no task in its card and no head that tells one; say it once: ray-lora adapters import FOLDER "
                "NAME --task TYPE"
            )
        check_answers(spec, head)
        if spec not in self._tasks:
            self._tasks[spec] = build_task(spec, self._base.processor)
        return self._tasks[spec]


def _needs(adapters: Iterable[Adapter]) -> tuple[int, bool]:
    """The largest rank, and whether an Embedding layer is among the layers."""
    pairs = [pair for adapter in adapters for pair in adapter.layers.values()]
    return max((pair.rank for pair in pairs), default=1), any(pair.embedding for pair in pairs)
