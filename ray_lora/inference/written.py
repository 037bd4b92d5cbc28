"""Texts that a decoder writes behind an encoder, of rows of any adapters: the likeliest token, and the next.

    for task, rows, texts in written(engine, tasks, features, slots, chunk, options): task.decode(texts, ...)

Rows of a pass begin together; one that has ended is left out of later steps. It knows tokens, no sounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from ray_lora.engine import AdapterEngine
from ray_lora.engine.written import Written
from ray_lora.errors import AdapterError
from ray_lora.recipe import Json
from ray_lora.tasks.begun import Begun, Looked
from ray_lora.tasks.task import Features, Task

Text = list[int] | Looked | None  # a row's tokens without the end; None where what followed was no number
Texts = list[Text]
_MOST = 24_000  # of the rows that are written together, what `task.size` gives: each keeps all of its encoder's states


@runtime_checkable
class Writing(Protocol):
    """What a `Task` has beside, whose answers are written token by token behind an encoder. `decode` is then given
    `Texts`, and `collate`'s inputs of the decoder are those of training.

    Attributes:
        end: the token that ends a text.
    """

    end: int

    def begin(self, features: Features, parameters: Mapping[str, Json]) -> Begun:
        """How a row's text begins."""
        ...

    def allow(self, begun: Begun, tokens: Tensor, scores: Tensor) -> Tensor:
        """Scores of the next token, [rows, vocabulary], -inf where it may not come; the same for all tasks of a class
        on one base, of rows whose texts begin alike."""
        ...


def written(
    engine: AdapterEngine,
    tasks: Mapping[int, Task],
    features: Sequence[Features],
    slots: Sequence[int],
    chunk: Sequence[int],
    options: Sequence[Mapping[str, Json]],
) -> Iterator[tuple[Task, list[int], Texts]]:
    """The texts of the rows of `chunk`: (task, its row numbers, their texts) for each task among them.

    Args:
        options: of each of the `features`.
    """
    begun = {row: cast(Writing, tasks[slots[row]]).begin(features[row], options[row]) for row in chunk}
    alike: dict[tuple[object, ...], list[int]] = {}
    for row in chunk:
        alike.setdefault((len(begun[row].tokens), begun[row].timestamps, begun[row].looks), []).append(row)
    found: dict[int, Text] = {}
    for rows in alike.values():
        for part in _cut(rows, [tasks[slots[row]].size(features[row]) for row in rows]):
            texts = _write(engine, tasks, features, slots, part, [begun[row] for row in part])
            found |= dict(zip(part, texts, strict=True))
    by_task: dict[int, list[int]] = {}
    for row in chunk:
        by_task.setdefault(id(tasks[slots[row]]), []).append(row)
    for rows in by_task.values():
        yield tasks[slots[rows[0]]], rows, [found[row] for row in rows]


def _cut(rows: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    parts: list[list[int]] = []
    held = 0
    for row, size in zip(rows, sizes, strict=True):
        if not parts or held + size > _MOST:
            parts.append([])
            held = 0
        parts[-1].append(row)
        held += size
    return parts


def _write(
    engine: AdapterEngine,
    tasks: Mapping[int, Task],
    features: Sequence[Features],
    slots: Sequence[int],
    rows: Sequence[int],
    begun: Sequence[Begun],
) -> Texts:
    """The texts of rows whose beginnings are of one length."""
    task, owners = tasks[slots[rows[0]]], [slots[row] for row in rows]
    head = engine.heads[task.head.architecture]
    if not head.writes:
        raise AdapterError(f"{task.head.architecture} writes nothing token by token on base {engine.base.id!r}")
    inputs = {
        name: tensor
        for name, tensor in task.collate([features[row] for row in rows]).items()
        if not name.startswith("decoder_")
    }
    making = Written(engine, head, inputs, owners, begun[0].looks)
    rules, device = cast(Writing, task), engine.base.device
    tokens = torch.tensor([list(one.tokens) for one in begun], device=device)
    texts: list[list[int] | None] = [[] for _ in rows]
    seen: list[list[Tensor]] = [[] for _ in rows]
    alive = list(range(len(rows)))  # the row that each of the rows in the making is
    going = set(alive)
    fresh = tokens
    while going:
        logits = making.advance(fresh).float()
        for at, row in enumerate(alive if begun[0].looks else ()):
            if row in going:
                seen[row].append(making.looked[at])
        sound = logits.isfinite().all(1).tolist()
        chosen = rules.allow(begun[0], tokens, logits).argmax(1)
        for at, token in enumerate(chosen.tolist()):
            row = alive[at]
            text = texts[row]
            if row not in going or text is None:
                continue
            if not sound[at]:
                texts[row] = None
            elif token != rules.end:
                text.append(token)
            if not sound[at] or token == rules.end or len(text) >= begun[row].most:
                going.discard(row)
        fresh = chosen[:, None]
        tokens = torch.cat([tokens, fresh], 1)
        if going and len(going) <= len(alive) * 3 // 4:  # what is kept of the others is copied
            kept = [at for at, row in enumerate(alive) if row in going]
            making.keep(kept)
            alive = [alive[at] for at in kept]
            fresh, tokens = fresh[kept], tokens[kept]
    if not begun[0].looks:
        return list(texts)
    return [
        None if text is None else Looked(text, torch.cat(weights, 1)) for text, weights in zip(texts, seen, strict=True)
    ]
