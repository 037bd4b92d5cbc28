"""Answers inside a Ray Data pipeline of one's own: rows in, rows with predictions out.

    answered = dataset.map_batches(
        LoraPredictor,
        fn_constructor_kwargs={"store": "./store", "adapter_column": "customer"},
        batch_format="pyarrow",
        batch_size=4096,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=4),
        num_cpus=1,
    )

It knows batches, not where they come from; `answers.py` answers files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray_lora.uncollected import uncollected

with uncollected():  # an actor is a process that begins with these
    import pyarrow as pa
    import ray

    from ray_lora.errors import AdapterNotFoundError, DataError, RecipeError
    from ray_lora.inference.answer_columns import AnswerColumns
    from ray_lora.inference.pinned import SLOTS, Pinned, pin, pipelines
    from ray_lora.inference.table_rows import refs_of, view
    from ray_lora.inference.tables import TableAnswers
    from ray_lora.recipe import Json
    from ray_lora.store import open_store
    from ray_lora.tasks import task_of


class LoraPredictor:
    """A callable class for `Dataset.map_batches`, an actor of which holds each base once and some adapters in slots.

    Its batches are the rows given, with five columns more: `prediction` (see `AnswerColumns`), the `adapter`, its
    `version` and `sha256`, and `error`: what is wrong with the row or its adapter, in a sentence, else null. Rows of
    one batch are sorted by adapter inside and come back in their order, so batches of thousands of rows cost the least
    where there are many adapters.

    Args:
        store: a folder, a bucket, or "mlflow" (then `tracking_uri`). All nodes must reach it.
        adapter: the ref that answers all rows; or `adapter_column`: the column in which each row names its own.
        pinned: what refs mean (`ray_lora.inference.pinned.pin`), the same in all actors. Without it each actor asks the
            store when it meets a ref first, and keeps to that.
        base: where the adapters' base is, when not where each says.
        columns: a task's column -> the batch's column.
        parameters: of the Hugging Face pipeline.
        prefix: of the new columns' names.
        slots: adapters of one base that are mounted at once.
        device: None: the GPU that Ray gave this actor, else the CPU. dtype: as `base.dtype` in a recipe.

    Raises:
        AdapterNotFoundError, AdapterError: `adapter` names nothing that can be used.
        RecipeError: both or none of `adapter` and `adapter_column` are given, or a parameter is wrong.
        DataError: a batch lacks a column that `adapter` needs, or has one that is to be written.
    """

    def __init__(
        self,
        store: str = "./store",
        adapter: str | None = None,
        adapter_column: str | None = None,
        *,
        pinned: Pinned | None = None,
        base: str | None = None,
        columns: Mapping[str, str] | None = None,
        parameters: Mapping[str, Json] | None = None,
        prefix: str = "",
        slots: int = SLOTS,
        device: str | None = None,
        dtype: str = "auto",
        tracking_uri: str | None = None,
    ) -> None:
        if (adapter is None) == (adapter_column is None):
            raise RecipeError("give the adapter that answers all rows, or adapter_column, which names each row's own")
        self._adapter, self._column, self._columns = adapter, adapter_column, dict(columns or {})
        opened = open_store(store, tracking_uri)
        self._asks = opened if pinned is None else None
        if pinned is None:
            known = Pinned({}, {}, pipelines(opened, opened.list()))
            pinned = known if adapter is None else pin(opened, [adapter])
        if adapter is not None and adapter in pinned.missing:
            raise AdapterNotFoundError(pinned.missing[adapter])
        self._new = AnswerColumns(pinned.pipelines, parameters or {}, prefix)
        self._answers = TableAnswers(
            opened,
            pinned,
            base=base,
            columns=self._columns,
            parameters=parameters,
            slots=slots if adapter is None else 1,
            device=device or device_here(),
            dtype=dtype,
        )

    def __call__(self, batch: Any) -> pa.Table:
        """The batch (pyarrow, pandas or numpy) as an Arrow table with the new columns."""
        table = arrow(batch)
        self._new.check(table.column_names, "the batch")
        if self._adapter is not None:
            self._check(table)
            refs: list[str | None] = [self._adapter] * table.num_rows
        else:
            assert self._column is not None
            refs = refs_of(table, self._column)
            self._meet(refs)
        for name, column in self._new.of(refs, self._answers.answer(table, refs)).items():
            table = table.append_column(name, column)
        return table

    def _meet(self, refs: Sequence[str | None]) -> None:
        """Ask the store for refs that were not met before."""
        known = self._answers.pinned
        fresh = {ref for ref in refs if ref is not None and ref not in known.entries and ref not in known.missing}
        if self._asks is not None and fresh:
            self._answers.pinned = known.more(pin(self._asks, sorted(fresh)))

    def _check(self, table: pa.Table) -> None:
        """A column that is missing is so for all rows of one adapter: the call is wrong, not the rows."""
        assert self._adapter is not None
        spec = self._answers.pinned.entries[self._adapter].task
        if spec is not None:
            view(table.slice(0, 0), task_of(spec), self._columns)


def arrow(batch: Any) -> pa.Table:
    """A batch as Ray Data hands it out, as an Arrow table."""
    if isinstance(batch, pa.Table):
        return batch
    if isinstance(batch, Mapping):
        return pa.table({name: pa.array(list(values)) for name, values in batch.items()})
    try:
        return pa.Table.from_pandas(batch, preserve_index=False)
    except (AttributeError, TypeError):
        raise DataError(f"a batch is a {type(batch).__name__}; ask for batch_format='pyarrow'") from None


def device_here() -> str:
    """The GPU that Ray gave this worker, else the CPU."""
    return "cuda" if ray.is_initialized() and ray.get_gpu_ids() else "cpu"
