"""A bundle compared with PyTorch: the same rows through the engine and through the bundle's own runner.

    wanted = answers_of(engine, {slot: task}, rows)          # of every adapter, every row
    found = compare(Bundle(folder), {"moods": slot}, wanted)
    found.largest, found.same                                 # difference of outputs; share of like answers

It knows engines, tasks and the runner: no ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError
from ray_lora.export.alike import alike
from ray_lora.export.graph import OUTPUTS, outputs_of
from ray_lora.inference.predict import forward, passes, predict
from ray_lora.inference.windows import Windowed
from ray_lora.recipe import Json
from ray_lora.tasks import Features, Row, Task
from ray_lora.tasks.letter_recognition import LetterRecognition

if TYPE_CHECKING:
    from ray_lora.export.edge.program import Bundle as Program
    from ray_lora.export.edge.runner import Bundle

MOST = 1e-4  # a difference of outputs that rounding explains
LEAST = 0.995  # the share of rows that must be answered alike
_ROWS = 16  # of one run of the graph
_NUMBERS = 2**22  # of one run's largest input, so that large pictures come few at a time


@dataclass(frozen=True)
class Wanted:
    """What one adapter says in PyTorch.

    Attributes:
        features: of each row, as the task encodes it, and of sounds what the base is given of them.
        outputs: of each row by name, without padding.
        answers: of each row.
    """

    features: Sequence[Features]
    outputs: Sequence[Mapping[str, NDArray[np.float32]]]
    answers: Sequence[Json]


@dataclass(frozen=True)
class Parity:
    """Attributes: rows that were compared; largest: difference of outputs, of those beyond 1 as a
    share; same: share of rows answered alike, of masks the share of pixels."""

    rows: int
    largest: float
    same: float


def wanted_of(engine: AdapterEngine, slot: int, task: Task, rows: Sequence[Row]) -> Wanted:
    """What the adapter in a slot says to rows.

    Raises:
        AdapterError: it has outputs that are none of `OUTPUTS`.
    """
    features = task.encode(rows)
    whole = [task.windows(one)[0] if isinstance(task, Windowed) else one for one in features]
    slots = [slot] * len(rows)
    outputs: list[dict[str, NDArray[np.float32]]] = [{} for _ in rows]
    for chunk in passes(engine, {slot: task}, whole, slots):
        with torch.inference_mode():
            for _, chosen, given in forward(engine, {slot: task}, whole, slots, chunk):
                for name, values in outputs_of(given).items():
                    for at, row in enumerate(chosen):
                        outputs[row][name] = _own(values[at].float().cpu().numpy(), whole[row], task)
    if not all(outputs):
        raise AdapterError(f"an adapter of {task.spec.type} has none of the outputs {', '.join(OUTPUTS)}")
    read = [one | _read(task, one) for one in features]
    return Wanted(read, outputs, predict(engine, {slot: task}, features, slots))


def _read(task: Task, features: Features) -> Features:
    """What the base is given of a row that the task encodes on the way to it."""
    given = task.collate([features]) if "samples" in features else {}
    return {name: tensor[0].numpy() for name, tensor in given.items() if name == "input_values"}


def compare(bundle: Bundle | Program, inputs: Sequence[Any], wanted: Mapping[str, Wanted]) -> Parity:
    """The bundle's adapters on rows: each row by each adapter, in runs where rows of all adapters are mixed, and some
    rows alone.

    Args:
        inputs: what the runner is given of each row.
        wanted: of each adapter.
    """
    asked = [(row, name) for row in range(len(inputs)) for name in wanted]
    first = bundle.rows.encode(inputs[0], bundle.adapter(asked[0][1])[0])[0]
    together = (
        1 if bundle.card.get("alone") else min(_ROWS, max(2, _NUMBERS // max(one.size for one in first.values())))
    )
    runs = [asked[at : at + together] for at in range(0, len(asked), together)]
    runs += [[one] for one in asked[: 2 * len(wanted)]]
    largest, same = 0.0, 0.0
    for run in runs:
        names = [name for _, name in run]
        encoded = [bundle.rows.encode(inputs[row], bundle.adapter(name)[0]) for row, name in run]
        found = bundle.run([feed for feed, _ in encoded], names)
        for at, (row, name) in enumerate(run):
            _check_encoded(encoded[at][0], wanted[name].features[row])
            mine = {key: values[at] for key, values in found.items()}
            for key, want in wanted[name].outputs[row].items():
                got = mine[key][tuple(map(slice, want.shape))]
                largest = max(largest, difference(got, want))
            if not np.isfinite(largest):
                continue  # there is nothing to decode
            said = bundle.rows.decode(mine, encoded[at][1], bundle.adapter(name)[0])
            same += alike(said, wanted[name].answers[row])
    return Parity(len(inputs), largest, same / sum(map(len, runs)))


def check_like(found: Parity, what: str) -> None:
    """AdapterError unless what was written answers as PyTorch does."""
    if not found.largest <= MOST or found.same < LEAST:
        raise AdapterError(
            f"{what}'s outputs differ from PyTorch's by {found.largest:.1e} and {found.same:.1%} of the rows are "
            f"answered alike; {MOST:.0e} and {LEAST:.1%} are allowed, so nothing was written"
        )


def difference(got: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    """The largest of a row; of outputs beyond 1 as a share of the largest, since float32 rounds by shares."""
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - want).max() / max(1.0, float(np.abs(want).max())))


def _own(values: NDArray[np.float32], features: Features, task: Any) -> NDArray[np.float32]:
    """Outputs of a row's own tokens, or frames, where they are of such."""
    if task.spec.type == "sequential-recommendation":
        return values[: len(features["ids"])]
    if task.spec.type in ("token-classification", "question-answering"):
        return values[: len(features["input_ids"])]
    return values[: task.frames(features)] if isinstance(task, LetterRecognition) else values


def _check_encoded(feed: Mapping[str, Any], features: Features) -> None:
    """AdapterError unless the runner reads a row as the task does."""
    told = features["windows"][0] if "windows" in features else features
    told = {"input_ids": told["ids"]} if "ids" in told else told  # items'
    for name in ("input_ids", "token_type_ids", "pixel_values", "input_values"):
        if name in feed and name in told:
            given = np.asarray(told[name])
            if given.shape != feed[name].shape or not np.allclose(given, feed[name], atol=1e-5):
                raise AdapterError(
                    f"the runner reads a row's {name} otherwise than the base's own processor, so its answers would be "
                    "others; a base with such a processor cannot be exported yet"
                )
