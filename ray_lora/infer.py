"""Answers of rows of any adapters: the one function that scores validation rows and answers requests.

    answers = predict(engine, {slot: task}, features, slots)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ray_lora.engine import AdapterEngine
from ray_lora.recipe import Json
from ray_lora.tasks.task import Features, Task


def predict(
    engine: AdapterEngine,
    tasks: Mapping[int, Task],
    features: Sequence[Features],
    slots: Sequence[int],
    parameters: Sequence[Mapping[str, Json]] | None = None,
    max_rows: int = 64,
) -> list[Json]:
    """Each row's answer from its own slot's adapter, in the order given.

    Args:
        tasks: the task of each slot that occurs.
        features: rows that `task.encode` made; all for the same base.
        slots: the slot of each row.
        parameters: decoding parameters of each row.
        max_rows: rows in one pass; rows of like size share a pass.
    """
    answers: list[Json] = [None] * len(features)
    for chunk in chunks(features, slots, tasks, max_rows):
        batch = tasks[slots[chunk[0]]].collate([features[row] for row in chunk])
        with torch.inference_mode():
            results = engine.forward(batch, torch.tensor([slots[row] for row in chunk]))
        for index, outputs in results:
            _decode(tasks, outputs, [chunk[i] for i in index.tolist()], features, slots, parameters, answers)
    return answers


def chunks(
    features: Sequence[Features], slots: Sequence[int], tasks: Mapping[int, Task], max_rows: int
) -> list[list[int]]:
    """Row numbers in passes of at most `max_rows`: like sizes together, and inside a pass ascending slots."""
    order = sorted(range(len(features)), key=lambda row: tasks[slots[row]].size(features[row]))
    passes = [order[at : at + max_rows] for at in range(0, len(order), max_rows)]
    return [sorted(rows, key=lambda row: slots[row]) for rows in passes]


def _decode(
    tasks: Mapping[int, Task],
    outputs: object,
    rows: Sequence[int],
    features: Sequence[Features],
    slots: Sequence[int],
    parameters: Sequence[Mapping[str, Json]] | None,
    answers: list[Json],
) -> None:
    """Decode rows that share a head, once for each task and set of parameters among them."""
    groups: dict[tuple[int, str], list[int]] = {}
    for position, row in enumerate(rows):
        options = parameters[row] if parameters is not None else {}
        groups.setdefault((id(tasks[slots[row]]), repr(sorted(options.items()))), []).append(position)
    for positions in groups.values():
        chosen = [rows[position] for position in positions]
        mine = outputs if len(groups) == 1 else take(outputs, positions)
        options = parameters[chosen[0]] if parameters is not None else {}
        decoded = tasks[slots[chosen[0]]].decode(mine, [features[row] for row in chosen], options)
        for row, answer in zip(chosen, decoded, strict=True):
            answers[row] = answer


def take(outputs: object, positions: Sequence[int]) -> object:
    """The rows `positions` of every tensor among a model's outputs."""
    index = torch.tensor(positions)
    kept = {name: value[index.to(value.device)] for name, value in outputs.items() if isinstance(value, Tensor)}  # type: ignore[attr-defined]
    return type(outputs)(**kept)


def embed(engine: AdapterEngine, batch: Mapping[str, Tensor], slots: Sequence[int] | None = None) -> Tensor:
    """Mean-pooled hidden states, [rows, hidden] float32, of the bare base (or of each row's slot)."""
    rows = next(iter(batch.values())).shape[0]
    with torch.inference_mode():
        hidden = engine.hidden(batch, torch.tensor(slots if slots is not None else [0] * rows))
    states = hidden.last_hidden_state.float()
    if states.dim() == 4:  # an image backbone: [rows, channels, height, width]
        return states.mean((2, 3))
    mask = batch["attention_mask"].to(states.device).unsqueeze(-1)
    return (states * mask).sum(1) / mask.sum(1)
