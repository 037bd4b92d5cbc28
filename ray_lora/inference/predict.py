"""Answers of rows of any adapters: the one function that scores validation rows and answers requests.

answers = predict(engine, {slot: task}, features, slots)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from ray_lora.engine import AdapterEngine, take_rows
from ray_lora.engine.sharing import Lengths
from ray_lora.inference.continued import with_continued
from ray_lora.inference.finite import NOT_FINITE, NotFiniteError, is_finite
from ray_lora.inference.windows import Spread, spread_windows
from ray_lora.inference.written import Writing, written
from ray_lora.recipe import Json
from ray_lora.tasks.task import Features, Task

_OVERHEAD = 100  # what a padded pass costs beside its rows times its longest row, in tokens
_TOKENS = {"cpu": 2048, "cuda": 16384}  # of a pass of joined rows: more leave a processor's caches


Watch = Callable[[Task, Sequence[int], Sequence[Features], Any], None]  # task, and of each row slot, features, outputs


def predict(
    engine: AdapterEngine,
    tasks: Mapping[int, Task],
    features: Sequence[Features],
    slots: Sequence[int],
    parameters: Sequence[Mapping[str, Json]] | None = None,
    max_rows: int = 64,
    pieces: Collection[int] = (),
    watch: Watch | None = None,
) -> list[Any]:
    """Each row's answer from its own slot's adapter, in the order given.

    Args:
        tasks: the task of each slot that occurs.
        features: rows that `task.encode` made; all for the same base.
        slots: the slot of each row.
        parameters: decoding parameters of each row.
        max_rows: rows in one pass; rows of like size share a pass.
        pieces: rows that are one window of a longer row, which have a part of an answer in its place.
        watch: shown each window's outputs before they are decoded.

    Raises:
        NotFiniteError: an adapter's answer holds what is no finite number.
    """
    answers = answers_of(engine, tasks, features, slots, parameters, max_rows, pieces, watch)
    wrong = frozenset(slot for slot, answer in zip(slots, answers, strict=True) if not is_finite(answer))
    if wrong:
        error = NotFiniteError(NOT_FINITE)
        error.slots = wrong
        raise error
    return answers


def answers_of(
    engine: AdapterEngine,
    tasks: Mapping[int, Task],
    features: Sequence[Features],
    slots: Sequence[int],
    parameters: Sequence[Mapping[str, Json]] | None = None,
    max_rows: int = 64,
    pieces: Collection[int] = (),
    watch: Watch | None = None,
) -> list[Any]:
    """As `predict`, for a caller that asks of each answer whether it `is_finite`."""
    options = parameters or [{}] * len(features)
    spread = spread_windows(tasks, features, slots, pieces)
    parts = _parts(engine, tasks, spread, [options[row] for row in spread.rows], max_rows, watch)
    return spread.whole(tasks, parts, options)


def _parts(
    engine: AdapterEngine,
    tasks: Mapping[int, Task],
    spread: Spread,
    options: Sequence[Mapping[str, Json]],
    max_rows: int,
    watch: Watch | None,
) -> list[Any]:
    """What each window's own task decodes of it."""
    features, slots = spread.features, spread.slots
    parts: list[Any] = [None] * len(features)
    for chunk in passes(engine, tasks, features, slots, max_rows):
        with torch.inference_mode():
            writes = isinstance(tasks[slots[chunk[0]]], Writing)
            found: Iterator[tuple[Task, list[int], Any]] = (
                written(engine, tasks, features, slots, chunk, options)
                if writes
                else forward(engine, tasks, features, slots, chunk)
            )
            for task, rows, outputs in found:
                if watch is not None:
                    watch(task, [slots[row] for row in rows], [features[row] for row in rows], outputs)
                for same in _alike([options[row] for row in rows]):
                    chosen = [rows[position] for position in same]
                    if writes:
                        mine = [outputs[position] for position in same]
                    else:
                        mine = outputs if len(same) == len(rows) else take_rows(outputs, torch.tensor(same))
                    decoded = task.decode(mine, [features[row] for row in chosen], options[chosen[0]])
                    for row, part in zip(chosen, decoded, strict=True):
                        parts[row] = part
    return with_continued(engine, tasks, features, slots, options, parts)


def passes(
    engine: AdapterEngine,
    tasks: Mapping[int, Task],
    features: Sequence[Features],
    slots: Sequence[int],
    max_rows: int = 64,
) -> list[list[int]]:
    """Row numbers of each pass, of rows that may share one (`engine.sharing`): cut by tokens where rows are laid end to
    end, else where the least is lost to padding."""
    sizes = [tasks[slot].size(feature) for slot, feature in zip(slots, features, strict=True)]
    kinds: dict[tuple[Lengths, int, bool, object], list[int]] = {}
    kind_of = {slot: _kind(engine, slot, tasks[slot]) for slot in set(slots)}
    for row, slot in enumerate(slots):
        kinds.setdefault(kind_of[slot], []).append(row)
    found = []
    for (lengths, *_), rows in kinds.items():
        mine, owners = [sizes[row] for row in rows], [slots[row] for row in rows]
        cut = cut_passes(engine, lengths, mine, owners, max_rows)
        found += [[rows[at] for at in part] for part in cut]
    return found


def cut_passes(
    engine: AdapterEngine, lengths: Lengths, sizes: Sequence[int], slots: Sequence[int], max_rows: int
) -> list[list[int]]:
    """Row numbers of each pass, of rows of which only those of `lengths` share one."""
    if not sizes:
        return []
    if lengths == "joined":
        return by_tokens(sizes, slots, _TOKENS.get(engine.base.device.type, _TOKENS["cuda"]))
    return (of_one_size if lengths == "equal" else chunks)(sizes, slots, max_rows)


def _kind(engine: AdapterEngine, slot: int, task: Task) -> tuple[Lengths, int, bool, object]:
    """Rows of equal kinds may share a pass: one task's `collate` makes the tensors of all of them."""
    collate = getattr(type(task), "collate", None)
    alone = slot if engine.passes_alone(slot) else 0
    return engine.sharing_of(slot).lengths, alone, engine.reads_both_ways(slot), collate


def of_one_size(sizes: Sequence[int], slots: Sequence[int], max_rows: int) -> list[list[int]]:
    """Row numbers in passes of at most `max_rows` rows of one size, in ascending slots."""
    same: dict[int, list[int]] = {}
    for row in sorted(range(len(sizes)), key=slots.__getitem__):
        same.setdefault(sizes[row], []).append(row)
    return [part for rows in same.values() for part in _even([[row] for row in rows], max_rows)]


def by_tokens(sizes: Sequence[int], slots: Sequence[int], most: int) -> list[list[int]]:
    """Row numbers in passes of about equal numbers of tokens, at most `most` unless a row alone has more.

    Rows of one slot stay together, so that a pass has few slots.
    """
    order = sorted(range(len(sizes)), key=slots.__getitem__)
    total = sum(sizes)
    share = total / max(1, -(-total // most))
    found: list[list[int]] = []
    held, taken = 0, 0
    for row in order:
        if not found or held + sizes[row] > most or taken + sizes[row] / 2 > share * len(found):
            found.append([])
            held = 0
        found[-1].append(row)
        held += sizes[row]
        taken += sizes[row]
    return found


def chunks(sizes: Sequence[int], slots: Sequence[int], max_rows: int, overhead: float = _OVERHEAD) -> list[list[int]]:
    """Row numbers in passes of at most `max_rows`, cut where the least is lost to padding and to passes.

    Rows of one slot and of like size stay together in blocks, which the low-rank term computes at once. A pass costs
    its rows times its longest row, and `overhead` beside; the cuts between blocks sorted by size that cost least are
    found by dynamic programming. Inside a pass rows come in ascending slots.

    Args:
        sizes: of each row, what `task.size` gives.
        overhead: what a pass costs by itself, in the same units.
    """
    blocks = sorted(_blocks(sizes, slots, max_rows), key=lambda rows: sizes[rows[-1]])
    before = [0, *accumulate(map(len, blocks))]  # rows in the first n blocks
    longest = [sizes[rows[-1]] for rows in blocks]
    best: dict[int, tuple[float, int]] = {0: (0.0, 0)}  # blocks taken -> cost, where the last pass began
    for end in range(1, len(blocks) + 1):
        if end == len(blocks) or longest[end] > longest[end - 1]:
            best[end] = min(
                (cost + (before[end] - before[begin]) * longest[end - 1]
                 - (before[begin] - before[end]) // max_rows * overhead, begin)
                for begin, (cost, _) in best.items()
            )  # fmt: skip
    cuts = [len(blocks)]
    while cuts[-1] > 0:
        cuts.append(best[cuts[-1]][1])
    passes = [part for end, begin in pairwise(cuts) for part in _even(blocks[begin:end], max_rows)]
    return [sorted(rows, key=slots.__getitem__) for rows in passes]


def _blocks(sizes: Sequence[int], slots: Sequence[int], max_rows: int) -> list[list[int]]:
    """Rows of one slot that are neighbours by size, few enough of the slot's rows to differ little."""
    of_slot: dict[int, list[int]] = {}
    for row in sorted(range(len(slots)), key=sizes.__getitem__):
        of_slot.setdefault(slots[row], []).append(row)
    blocks = []
    for rows in of_slot.values():
        length = min(1 << max(0, math.isqrt(len(rows)).bit_length() - 2), max_rows)  # 16 rows: 2, 64: 4, 256: 8
        whole = len(rows) // length * length
        blocks += [rows[at : at + length] for at in range(0, whole, length)] + [[row] for row in rows[whole:]]
    return blocks


def _even(blocks: Sequence[list[int]], max_rows: int) -> list[list[int]]:
    """Passes of about equal numbers of rows, none above `max_rows`."""
    rows = sum(map(len, blocks))
    share = -(-rows // -(-rows // max_rows))
    passes: list[list[int]] = [[]]
    for block in blocks:
        if passes[-1] and (len(passes[-1]) >= share or len(passes[-1]) + len(block) > max_rows):
            passes.append([])
        passes[-1] += block
    return passes


def forward(
    engine: AdapterEngine,
    tasks: Mapping[int, Task],
    features: Sequence[Features],
    slots: Sequence[int],
    chunk: Sequence[int],
    draws: Sequence[int] | None = None,
) -> Iterator[tuple[Task, list[int], Any]]:
    """One pass over the rows of `chunk`: (task, its row numbers, its outputs) for each task among them.

    Args:
        draws: what each row's dropout follows from; None drops nothing.
    """
    batch = tasks[slots[chunk[0]]].collate([features[row] for row in chunk])
    drawn = None if draws is None else torch.tensor([draws[row] for row in chunk])
    for index, outputs in engine.forward(batch, torch.tensor([slots[row] for row in chunk]), drawn):
        rows = [chunk[position] for position in index.tolist()]
        by_task: dict[int, list[int]] = {}
        for position, row in enumerate(rows):
            by_task.setdefault(id(tasks[slots[row]]), []).append(position)
        for positions in by_task.values():
            mine = outputs if len(by_task) == 1 else take_rows(outputs, torch.tensor(positions))
            yield tasks[slots[rows[positions[0]]]], [rows[position] for position in positions], mine


def _alike(options: Sequence[Mapping[str, Json]]) -> list[list[int]]:
    """Positions grouped by equal options."""
    groups: dict[str, list[int]] = {}
    for position, option in enumerate(options):
        groups.setdefault(repr(sorted(option.items())), []).append(position)
    return list(groups.values())


def embed(engine: AdapterEngine, batch: Mapping[str, Tensor], slots: Sequence[int] | None = None) -> Tensor:
    """Mean-pooled hidden states, [rows, hidden] float32, of the bare base (or of each row's slot)."""
    rows = next(iter(batch.values())).shape[0]
    owners = torch.tensor(slots if slots is not None else [0] * rows)
    mask = batch.get("attention_mask")
    alike = torch.zeros(rows) if mask is None or engine.sharing.lengths != "equal" else mask.sum(1)
    pooled: dict[int, Tensor] = {}
    for size in alike.unique():
        index = (alike == size).nonzero().squeeze(1)
        part = {name: tensor[index] for name, tensor in batch.items()}
        if mask is not None:
            held = part["attention_mask"].any(0)
            part = {
                name: tensor[:, held] if tensor.shape[:2] == mask[index].shape else tensor
                for name, tensor in part.items()
            }
        pooled |= dict(zip(index.tolist(), _pool(engine, part, owners[index]), strict=True))
    return torch.stack([pooled[row] for row in range(rows)])


def _pool(engine: AdapterEngine, batch: Mapping[str, Tensor], slots: Tensor) -> Tensor:
    with torch.inference_mode():
        states: Tensor = engine.hidden(batch, slots).last_hidden_state.float()
        if states.dim() == 4:  # an image backbone: [rows, channels, height, width]
            return states.mean((2, 3))
        if "attention_mask" not in batch:
            return states.mean(1)
        mask = batch["attention_mask"].to(states.device).unsqueeze(-1)
        return (states * mask).sum(1) / mask.sum(1)
