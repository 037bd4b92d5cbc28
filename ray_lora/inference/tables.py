"""Answers of a table's rows, each by the adapter that its row names, of any bases and tasks.

    tables = TableAnswers(store, pin(store, ["tweets", "movies"]), slots=32)
    answers = tables.answer(table, ["tweets", "movies", "tweets"])
    answers[0].prediction, answers[0].entry.ref, answers[0].error

Rows of one adapter lie together in passes; adapters take turns in the slots, and are read from the store ahead of their
rows. What is wrong with a row, or with an adapter, is the error of those rows and of no others. It knows no files of
rows and no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.identity import place
from ray_lora.errors import AdapterError, BaseModelError, RecipeError
from ray_lora.inference.fetched import Fetched
from ray_lora.inference.finite import NOT_FINITE, is_finite
from ray_lora.inference.mounts import Mounts
from ray_lora.inference.pinned import SLOTS, Pinned
from ray_lora.inference.predict import answers_of
from ray_lora.inference.stored import named_base
from ray_lora.inference.table_rows import TableRows
from ray_lora.recipe import Json
from ray_lora.store import Entry, Store
from ray_lora.tasks import Features, Task, scoring_of

_RAM_BYTES = 1 << 30
_BLOCK = 512  # rows that are encoded and answered at a time: some passes of texts, 300 MB of pictures of 224 x 224

_Place = tuple[str, str]  # a base, and its dtype


@dataclass(frozen=True)
class Answer:
    """What became of a row.

    Attributes:
        entry: who answered, or was to; None where the ref means no adapter.
        prediction: as the Hugging Face pipeline of its task gives it; None where there is an error.
        error: what is wrong, in a sentence.
        pipeline: that one.
        cut: not all of the row was read, and why.
    """

    entry: Entry | None
    prediction: Json = None
    pipeline: str | None = None
    error: str | None = None
    cut: str | None = None


class TableAnswers:
    """See the module. Use from one thread.

    Args:
        pinned: what refs mean; a row whose ref is not among them gets an error.
        base: where the adapters' base is, when not where each says.
        columns: a task's column -> the table's column.
        parameters: of the Hugging Face pipeline, for all rows; all adapters' tasks must take them.
        slots: adapters of one base that are mounted at once.
        scoring: answer as `task.score` takes answers; rows then have the columns of rows that score.
        device, dtype: where and in what a base computes.
        ram_bytes: for adapters that were read.
    """

    def __init__(
        self,
        store: Store,
        pinned: Pinned,
        *,
        base: str | None = None,
        columns: Mapping[str, str] | None = None,
        parameters: Mapping[str, Json] | None = None,
        slots: int = SLOTS,
        scoring: bool = False,
        device: str = "cpu",
        dtype: str = "auto",
        ram_bytes: int = _RAM_BYTES,
    ) -> None:
        self.pinned, self.columns, self.parameters = pinned, dict(columns or {}), dict(parameters or {})
        self._base, self._scoring, self._device, self._dtype = base, scoring, device, dtype
        self._slots = slots
        self._fetched = Fetched(store, ram_bytes)
        self._mounts: dict[_Place, Mounts | str] = {}  # by place and dtype; a sentence where the base cannot be loaded
        self._unusable: dict[str, str] = {}  # adapters, by content hash

    def answer(
        self,
        table: pa.Table,
        refs: Sequence[str | None],
        told: Callable[[Sequence[int], Sequence[Answer]], None] = lambda rows, answers: None,
    ) -> list[Answer]:
        """Each row's answer, in the table's order.

        Args:
            refs: each row's adapter.
            told: called with rows, by number, and their answers, some hundred at a time.

        Raises:
            StoreAwayError: the store does not answer.
            RecipeError: a task does not take the parameters.
        """
        of_ref: dict[str | None, list[int]] = {}
        for row, ref in enumerate(refs):
            of_ref.setdefault(ref, []).append(row)
        answers: list[Answer | None] = [None] * table.num_rows
        for _, rows, found in self.each(TableRows(table, self.columns, training=self._scoring), of_ref):
            for row, answer in zip(rows, found, strict=True):
                answers[row] = answer
            told(rows, found)
        assert all(answer is not None for answer in answers)
        return answers  # type: ignore[return-value]  # every ref's rows were answered

    def each(
        self, rows: TableRows, of_ref: Mapping[str | None, Sequence[int]]
    ) -> Iterator[tuple[str | None, Sequence[int], list[Answer]]]:
        """(ref, rows, their answers), some rows at a time, each ref's in their order; a row may be asked of several."""
        by_base: dict[_Place, list[_Asked]] = {}
        for ref, chosen in of_ref.items():
            entry = self.pinned.entries.get(ref) if ref is not None else None
            if entry is None:
                yield ref, chosen, [Answer(None, error=self._missing(ref))] * len(chosen)
                continue
            try:
                by_base.setdefault((self._named(entry), self._dtype_of(entry)), []).append(_Asked(ref, entry, chosen))
            except BaseModelError as error:
                yield ref, chosen, [Answer(entry, error=str(error))] * len(chosen)
        for base, asked in by_base.items():
            yield from self._on_base(base, rows, asked)

    def task(self, ref: str) -> Task:
        """What a ref's adapter does; it is mounted for that.

        Raises:
            AdapterError, BaseModelError: it cannot be used.
        """
        entry = self.pinned.entries[ref]
        mounts = self._mounts_of((self.base_of(ref), self._dtype_of(entry)))
        if isinstance(mounts, str):
            raise BaseModelError(mounts)
        refused = mounts.mount([entry], self._fetched.take)
        if refused:
            raise AdapterError(f"{ref}: {refused[entry.sha256]}")
        return mounts.tasks[entry.sha256]

    def add(self, ref: str, entry: Entry, adapter: Adapter) -> None:
        """One more adapter, which is in no store; its entry's `sha256` may be any text that no other has."""
        self.pinned = self.pinned.more(Pinned({ref: entry}, {}, ()))
        self._fetched.give(entry, adapter)

    def base_of(self, ref: str) -> str:
        """The base that answers a ref's rows. BaseModelError where none is named."""
        return self._named(self.pinned.entries[ref])

    def labels(self, ref: str) -> tuple[str, ...] | None:
        """What the files of a ref's base call their own head's outputs."""
        mounts = self._mounts_of((self.base_of(ref), self._dtype_of(self.pinned.entries[ref])))
        return mounts.labels if isinstance(mounts, Mounts) else None

    def close(self) -> None:
        """Stop reading adapters, and give the bases back."""
        self._fetched.close()
        for mounts in self._mounts.values():
            if isinstance(mounts, Mounts):
                mounts.close()

    def _missing(self, ref: str | None) -> str:
        if ref is None:
            return "the row names no adapter"
        return self.pinned.missing.get(ref, f"adapter {ref!r} was not known when this run began")

    def _named(self, entry: Entry) -> str:
        return self._base or named_base(entry.base, entry.ref)

    def _dtype_of(self, entry: Entry) -> str:
        """As was asked, else the few bits of the base that the adapter was trained on."""
        return self._dtype if self._dtype != "auto" else entry.base_dtype or self._dtype

    def _mounts_of(self, base: _Place) -> Mounts | str:
        model, dtype = base
        at = place(model), dtype
        if at not in self._mounts:
            try:
                self._mounts[at] = Mounts(model, slots=self._slots, dtype=dtype, device=self._device)
            except (BaseModelError, RecipeError) as error:
                self._mounts[at] = str(error)
        return self._mounts[at]

    def _on_base(
        self, base: _Place, rows: TableRows, asked: Sequence[_Asked]
    ) -> Iterator[tuple[str | None, Sequence[int], list[Answer]]]:
        mounts = self._mounts_of(base)
        if isinstance(mounts, str):
            for one in asked:
                yield one.ref, one.rows, [Answer(one.entry, error=mounts)] * len(one.rows)
            return
        held = mounts.slots
        order = sorted(asked, key=lambda one: (one.entry.sha256 not in held, one.entry not in self._fetched))
        self._fetched.expect([one.entry for one in order if one.entry.sha256 not in held])
        for block in _blocks(order, self._slots):
            yield from self._block(mounts, rows, block)

    def _block(
        self, mounts: Mounts, rows: TableRows, block: Sequence[_Asked]
    ) -> Iterator[tuple[str | None, Sequence[int], list[Answer]]]:
        wanted = {one.entry.sha256: one.entry for one in block if one.entry.sha256 not in self._unusable}
        if wanted:
            self._unusable |= mounts.mount(list(wanted.values()), self._fetched.take)
        encoded = _encode(mounts, rows, block)
        found: list[list[Answer | None]] = []
        features: list[Features] = []
        slots: list[int] = []
        places: list[tuple[int, int]] = []  # of each feature, in `found`
        for at, one in enumerate(block):
            key = one.entry.sha256
            if key in self._unusable:
                found.append([Answer(one.entry, error=self._unusable[key])] * len(one.rows))
                continue
            found.append([None] * len(one.rows))
            for number, row in enumerate(one.rows):
                feature = encoded[id(mounts.tasks[key])][row]
                if isinstance(feature, str):
                    found[at][number] = Answer(one.entry, error=feature)
                else:
                    features.append(feature)
                    slots.append(mounts.slots[key])
                    places.append((at, number))
        if features:
            tasks = {mounts.slots[key]: mounts.tasks[key] for key in wanted if key in mounts.slots}
            asking = [scoring_of(tasks[slot]) if self._scoring else self.parameters for slot in slots]
            answers = answers_of(mounts.engine, tasks, features, slots, asking)
            for (at, number), feature, answer in zip(places, features, answers, strict=True):
                entry = block[at].entry
                pipeline = mounts.tasks[entry.sha256].pipeline
                right = Answer(entry, answer, pipeline, cut=feature.get("cut"))
                found[at][number] = right if is_finite(answer) else Answer(entry, error=NOT_FINITE)
        for one, answered in zip(block, found, strict=True):
            yield one.ref, one.rows, answered  # type: ignore[misc]  # every row was answered


@dataclass(frozen=True)
class _Asked:
    """Rows of one ref."""

    ref: str | None
    entry: Entry
    rows: Sequence[int]


def _encode(mounts: Mounts, rows: TableRows, block: Sequence[_Asked]) -> dict[int, dict[int, Features | str]]:
    """Features of a block's rows, by task and row; each task encodes its rows together."""
    of_task: dict[int, tuple[Task, list[int]]] = {}
    for one in block:
        task = mounts.tasks.get(one.entry.sha256)
        if task is not None:
            of_task.setdefault(id(task), (task, []))[1].extend(one.rows)
    return {key: dict(zip(mine, rows.features(task, mine), strict=True)) for key, (task, mine) in of_task.items()}


def _blocks(asked: Sequence[_Asked], slots: int) -> Iterator[list[_Asked]]:
    """Rows in their order, at most `_BLOCK` at a time and of no more contents than there are slots."""
    block: list[_Asked] = []
    held = 0
    for one in asked:
        at = 0
        while at < len(one.rows):
            contents = {other.entry.sha256 for other in block} | {one.entry.sha256}
            if block and (held >= _BLOCK or len(contents) > slots):
                yield block
                block, held = [], 0
            taken = one.rows[at : at + _BLOCK - held]
            block.append(_Asked(one.ref, one.entry, taken))
            held, at = held + len(taken), at + len(taken)
    if block:
        yield block
