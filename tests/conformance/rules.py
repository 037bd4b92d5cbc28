"""What every task must keep by itself, checked on a tiny engine.

It knows columns and their roles; it knows nothing of what a task predicts.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from ray_lora.augmentation.apply import altered
from ray_lora.augmentation.table import TRANSFORMS, transform_class
from ray_lora.data.check import learn, wrong_rows
from ray_lora.data.encoded import EncodedFile, write_rows
from ray_lora.engine import AdapterEngine
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.predict import forward, passes, predict
from ray_lora.inference.windows import spread_windows
from ray_lora.recipe import Json, LoraSpec, TaskSpec, TransformSpec
from ray_lora.tasks import Column, Features, Row, Task, row_of, scoring_of, task_class
from ray_lora.tasks.augmented import Augmented
from ray_lora.tasks.rows import count_cut

EXACT = 1e-9


def check_task(
    task: Task,
    rows: Sequence[Row],
    engine: AdapterEngine,
    perfect: Callable[[Row], Json],
    folder: Path,
    close: float = EXACT,
) -> None:
    """Check a task on training rows of unlike sizes.

    Args:
        folder: where it may write.
        task: built for the engine's base.
        rows: at least four, not all of one size and not all of one target; as a file would hold them.
        engine: float64, with `train=True` and a free slot.
        perfect: the best prediction that a row can have.
        close: how near a row's losses must be in any company.
    """
    assert len(rows) >= 4
    check_words(task)
    check_blocks(task, rows)
    features = check_encoding(task, rows)
    check_kept(task, features, folder)
    check_views(task, features)
    check_batches(task, features)
    slot = _some_adapter(task, engine)
    check_loss(task, features, engine, slot, close)
    check_answers(task, rows, features, engine, slot)
    whole = predict(engine, {slot: task}, features, [slot] * len(rows), [scoring_of(task)] * len(rows))
    check_scores(task, rows, features, whole, perfect)


def check_kept(task: Task, features: Sequence[Features], folder: Path) -> None:
    """Encoded rows come back from a file as they are, so that large data need be encoded once only."""
    path = folder / "rows.arrow"
    assert write_rows(path, [(row, task.size(row)) for row in features]) == len(features)
    kept = EncodedFile(path)
    assert len(kept) == len(features)
    for number, row in enumerate(features):
        assert same(kept[number], row), (kept[number], row)
    assert kept.sizes.tolist() == [task.size(row) for row in features]
    assert kept.cut == count_cut(features)


def check_views(task: Task, features: Sequence[Features]) -> None:
    """A row that is shown and taken back is what it was; altered, it has the same values of the same types, and follows
    from what is drawn alone."""
    if not isinstance(task, Augmented):
        return
    for row, window in enumerate(windows_of(task, features)):
        kept = copy.deepcopy(window)
        back = task.with_view(window, task.view(window))
        assert list(back) == list(window)
        assert all(alike(back[name], value) for name, value in window.items()), (back, window)
        for transform in fitting(task):
            sure = transform.model_copy(update={"p": 1.0})
            found, again = (altered(task, [sure], window, (0, 1, row, 0)) for _ in range(2))
            assert same(again, found)
            assert {name: type(found[name]) for name in window} == {
                name: type(value) for name, value in window.items()
            }  # what is altered may be noted beside them
            task.size(found)
            task.collate([found, window])
        assert same(window, kept)


def fitting(task: Task) -> tuple[TransformSpec, ...]:
    """Every transform that the task's rows can have."""
    has = task.augments if isinstance(task, Augmented) else frozenset()
    return tuple(transform_class(name)() for name in TRANSFORMS if transform_class(name).needs <= has)


def alike(one: Any, other: Any) -> bool:
    """Equal but for what numbers lose on their way."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.allclose(one.double(), other.double(), atol=1e-4)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    return math.isclose(one, other, abs_tol=1e-6) if isinstance(one, float) else bool(one == other)


def same(found: object, given: object) -> bool:
    """Whether two values are equal and of one type."""
    if isinstance(given, Mapping):
        alike = isinstance(found, Mapping) and list(found) == list(given)
        return alike and all(same(found[name], given[name]) for name in given)  # type: ignore[index]
    if isinstance(given, (list, tuple)):
        return type(found) is type(given) and len(found) == len(given) and all(map(same, found, given))
    if isinstance(given, Tensor):
        return isinstance(found, Tensor) and found.dtype == given.dtype and torch.equal(found, given)
    return type(found) is type(given) and found == given


def check_words(task: Task) -> None:
    """What a task says of itself."""
    assert isinstance(task.spec, task.spec_type)
    assert issubclass(task.spec_type, TaskSpec)
    assert task_class(task.spec.type).spec_type is task.spec_type
    assert TaskSpec.model_validate(task.spec.model_dump()) == task.spec
    assert TaskSpec.model_validate_json(task.spec.model_dump_json()) == task.spec
    assert TaskSpec.recall(json.loads(json.dumps(task.spec.recorded()))) == task.spec
    json.dumps(task.spec.describe(), allow_nan=False)
    assert task.spec.outputs in (None, task.head.num_labels)
    assert all(isinstance(column, Column) and column.kinds for column in task.columns.values())
    assert "always" in {column.required for column in task.columns.values()}
    assert task.columns[task.input].required == "always"
    assert task.pipeline
    task.check_parameters(task.full)
    assert task.longest >= 1
    assert task.metric in task.metrics
    assert set(task.metrics.values()) <= {"max", "min"}
    assert task.peft_type is None or isinstance(task.peft_type, str)
    assert task.head.architecture
    assert task.head.num_labels >= 1


def check_blocks(task: Task, rows: Sequence[Row]) -> None:
    """What rows teach does not depend on how they are cut into blocks; right rows pass, and wrong ones are counted."""
    table = pa.Table.from_pylist([dict(row) for row in rows])
    fresh = task.spec
    cuts = [table.slice(0, 1), table.slice(1, 2), table.slice(3)]
    for spec in (fresh, _untaught(task)):
        whole = learn(task, spec, [table])
        assert learn(task, spec, reversed(cuts)) == whole
        assert isinstance(whole, task.spec_type)
        assert learn(task, whole, [table]) == whole
        assert wrong_rows(task, whole, table) == []
    for column in table.column_names:
        spoiled = table.set_column(
            table.column_names.index(column),
            column,
            pa.array(
                [None if row == 1 else value for row, value in enumerate(table.column(column).to_pylist())],
                table.schema.field(column).type,
            ),
        )
        assert [row for row, _ in wrong_rows(task, fresh, spoiled, first=10)] == [11]


def check_encoding(task: Task, rows: Sequence[Row]) -> list[Features]:
    """Rows keep their order, do not know each other, and need no target to be answered; what cannot be read is a
    DataError."""
    needed = {name for name, column in task.columns.items() if column.required != "optional"}
    assert all(needed <= set(row) <= set(task.columns) for row in rows)
    features = task.encode(rows)
    assert len(features) == len(rows)
    for row, feature in zip(rows, features, strict=True):
        assert _equal(task.encode([row])[0], feature)
        asked = task.encode([row_of(task, row)])[0]
        taught = any(column.required == "training" for column in task.columns.values())
        assert asked.keys() < feature.keys() or not taught, "nothing in a training row's features is its target"
        assert _equal(asked, {name: feature[name] for name in asked})
    for junk in (None, True, 7, "", "?", [], [1, 2], [["a"]], {}, {"bytes": 7}):  # a request can hold any JSON
        with contextlib.suppress(DataError):
            task.encode([{**row_of(task, rows[0]), task.input: junk}])
    assert all(
        _equal(again, feature) for again, feature in zip(pickle.loads(pickle.dumps(features)), features, strict=True)
    )
    return features


def check_batches(task: Task, features: Sequence[Features]) -> None:
    """Inputs are tensors [rows, ...], and padding comes after a row's own values."""
    features = windows_of(task, features)
    whole = task.collate(features)
    assert whole
    for name, tensor in whole.items():
        assert tensor.shape[0] == len(features), name
    for row, feature in enumerate(features):
        size = task.size(feature)
        assert isinstance(size, int)
        assert 1 <= size <= task.longest
        for name, tensor in task.collate([feature]).items():
            assert tensor.shape[0] == 1
            own = tuple(slice(0, length) for length in tensor.shape[1:])
            assert torch.equal(whole[name][row][own], tensor[0]), f"{name} of row {row} changed in a batch"


def check_loss(task: Task, features: Sequence[Features], engine: AdapterEngine, slot: int, close: float) -> None:
    """Sums and counts of each row, the same whatever else is in the pass; gradients reach the adapter and its head."""
    whole = losses_of(task, features, engine, slot)
    for row, feature in enumerate(features):
        torch.testing.assert_close(losses_of(task, [feature], engine, slot)[:, 0], whole[:, row], atol=close, rtol=0)
    backwards = losses_of(task, list(reversed(features)), engine, slot)
    torch.testing.assert_close(backwards.flip(1), whole, atol=close, rtol=0)
    assert torch.isfinite(whole).all()
    assert (whole[0] >= 0).all()
    assert (whole[1] > 0).all()
    features = windows_of(task, features)
    with torch.enable_grad():
        ((_, outputs),) = engine.forward(task.collate(features), torch.tensor([slot] * len(features)))
        sums, _ = task.loss(outputs, features)
        sums.sum().backward()
    assert engine.grad[slot].any()
    trained = [grad for grad in engine.head_grad.values() if grad.numel()]  # none where heads are the base's own
    assert not trained or any(grad[slot].any() for grad in trained)
    engine.grad.zero_()
    for grad in engine.head_grad.values():
        grad.zero_()


def check_answers(
    task: Task, rows: Sequence[Row], features: Sequence[Features], engine: AdapterEngine, slot: int
) -> None:
    """One JSON value a row, the same whatever else is in the pass, with or without a target."""
    answers = predict(engine, {slot: task}, features, [slot] * len(rows))
    assert len(answers) == len(rows)
    assert near(json.loads(json.dumps(answers, allow_nan=False)), answers)
    for row, answer in zip(rows, answers, strict=True):
        bare = task.encode([row_of(task, row)])
        assert near(predict(engine, {slot: task}, bare, [slot])[0], answer)
    mixed = predict(engine, {slot: task}, features, [slot] * len(rows), max_rows=2)
    assert near(mixed, answers)
    json.dumps(predict(engine, {slot: task}, features[:1], [slot], [task.full]), allow_nan=False)
    task.check_parameters({})
    with pytest.raises(RecipeError, match="no_such_parameter"):
        task.check_parameters({"no_such_parameter": 1})
    with pytest.raises(RecipeError, match="no_such_parameter"):
        predict(engine, {slot: task}, features[:1], [slot], [{"no_such_parameter": 1}])


def check_scores(
    task: Task,
    rows: Sequence[Row],
    features: Sequence[Features],
    predictions: Sequence[Json],
    perfect: Callable[[Row], Json],
) -> None:
    """Every metric, perfect predictions best, order without meaning."""
    best = task.score([perfect(row) for row in rows], features)
    assert set(best) == set(task.metrics)
    for figure in task.figures(predictions, features).values():  # a page or a picture
        assert figure.startswith("<") if isinstance(figure, str) else hasattr(figure, "savefig")
    order = list(reversed(range(len(rows))))
    turned = task.score([perfect(rows[row]) for row in order], [features[row] for row in order])
    others = [
        task.score(predictions, features),
        task.score([perfect(row) for row in [*rows[1:], rows[0]]], features),  # each row has its neighbour's
    ]
    for metric, direction in task.metrics.items():
        assert math.isfinite(best[metric])
        assert turned[metric] == pytest.approx(best[metric])
        better = max if direction == "max" else min
        for other in others:
            assert isinstance(other[metric], float)
            assert better(other[metric], best[metric]) == best[metric]
    assert any(other[task.metric] != best[task.metric] for other in others)


# -------------------------------------------------------------------- how


def _untaught(task: Task) -> TaskSpec:
    """The task's options without what rows can teach, which is null where nobody says it."""
    fields = task.spec_type.model_fields
    taught = {name for name, field in fields.items() if not field.is_required() and field.default is None}
    return TaskSpec.model_validate(task.spec.model_dump(exclude=taught))


def _some_adapter(task: Task, engine: AdapterEngine) -> int:
    """An adapter that changes what the base says."""
    slot = engine.init(LoraSpec(r=2, target_modules=targets_of(engine)), task.head, seed=0, peft_type=task.peft_type)
    draw = torch.Generator().manual_seed(0)
    tensors = engine.read(slot)
    fresh = {key: torch.randn(value.shape, generator=draw).to(value) * 0.3 for key, value in tensors.items()}
    engine.write(slot, {key: value.abs() if "running_var" in key else value for key, value in fresh.items()})
    engine.refresh([slot])
    return slot


def targets_of(engine: AdapterEngine) -> tuple[str, ...]:
    return tuple(name for name in engine.layers if not engine.layers[name].embedding)[:4]


def losses_of(task: Task, features: Sequence[Features], engine: AdapterEngine, slots: int | Sequence[int]) -> Tensor:
    """Sums and counts, [2, rows], of rows of one slot or of a slot each."""
    found = torch.zeros(2, len(features), dtype=torch.float64)
    owners = [slots] * len(features) if isinstance(slots, int) else list(slots)
    tasks = dict.fromkeys(owners, task)
    spread = spread_windows(tasks, features, owners)
    with torch.no_grad():
        for chunk in passes(engine, tasks, spread.features, spread.slots):
            for _, rows, outputs in forward(engine, tasks, spread.features, spread.slots, chunk):
                sums, counts = task.loss(outputs, [spread.features[row] for row in rows])
                assert sums.shape == counts.shape == (len(rows),)
                of = torch.tensor([spread.rows[row] for row in rows])
                found.index_add_(1, of, torch.stack([sums.double(), counts.double()]))
    return found


def windows_of(task: Task, features: Sequence[Features]) -> Sequence[Features]:
    """The rows of a pass: of a task that reads rows in windows, all windows."""
    return spread_windows({0: task}, features, [0] * len(features)).features


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name]
        for name, value in one.items()
    )


def near(one: Json, other: Json) -> bool:
    """Equal but for the last digits of numbers."""
    if isinstance(one, float):
        return isinstance(other, float) and math.isclose(one, other, abs_tol=1e-5)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(near, one, other))
    return bool(one == other)
