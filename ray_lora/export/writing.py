"""The folder of adapters that write token by token: graphs of one step, what reads rows, runner, and a card.

    write_steps(folder, held, inputs, base, kind, merge=False, int8=True)     # the card

Each token's logits are compared with PyTorch's along the library's own answer, and the tokens that the runner writes
with those of that answer. It knows adapters that were answered in PyTorch: no stores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ray_lora.bases.base import Base
from ray_lora.errors import AdapterError
from ray_lora.export.bundle import CARD, Held, adapter_bytes, card_of, copy_runner, with_stacks, write_adapters
from ray_lora.export.figures import milliseconds, swap
from ray_lora.export.graph import merged
from ray_lora.export.int8 import quantise_writing
from ray_lora.export.kinds import Kind
from ray_lora.export.parity import Parity, check_like, difference
from ray_lora.export.step_files import write_graphs
from ray_lora.export.steps import Steps, names_of, steps_of
from ray_lora.recipe import Json

if TYPE_CHECKING:
    from ray_lora.export.edge.writer import Bundle

_HEARD = 1e-3  # a difference of spectrograms that rounding explains: logarithms of what is all but silent
_TIMES = 3


def write_steps(
    folder: Path, held: Sequence[Held], inputs: Sequence[Any], base: Base, kind: Kind, merge: bool, int8: bool
) -> dict[str, Json]:
    """The bundle's files; returns its card.

    Raises:
        AdapterError: the graphs do not answer as PyTorch does.
        RecipeError: they are larger than one file holds.
    """
    plain = merged(base, held[0].spec, held[0].adapter)
    graph, stacks = (plain, None) if merge else with_stacks(base, held)
    steps, alone = steps_of(graph), steps_of(plain)
    card = card_of(held, base, kind, merge, int8)
    card |= {"heads": steps.heads, "width": steps.width, "kept": names_of(steps.empty(1), "kept")}
    write_adapters(folder, held, card, merge)
    copy_runner("writer", kind, folder)
    kind.save(base, folder)
    card["graphs"] = write_graphs(folder, steps, held[0].wanted.features[0], stacks)
    (folder / CARD).write_text(json.dumps(card))  # the runner reads it
    card["figures"] = {"float": _figures(folder, inputs, held, alone, whole=True)}
    if int8:
        for name in card["graphs"]:
            quantise_writing(folder / f"{name}.onnx")
        card["figures"]["int8"] = _figures(folder, inputs, held, alone, whole=False)
    card["figures"]["adapter_bytes"] = adapter_bytes(folder)
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    return card


def _figures(folder: Path, inputs: Sequence[Any], held: Sequence[Held], plain: Steps, whole: bool) -> dict[str, Json]:
    """Parity, bytes, and what the answer of middle length costs.

    Args:
        whole: the graphs are float, which must answer as PyTorch does.
    """
    from ray_lora.export.edge.writer import Bundle

    bundle = Bundle(folder)
    several = [compare_written(bundle, inputs, one) for one in held]
    parity = Parity(len(inputs), max(one.largest for one in several), min(one.same for one in several))
    if whole:
        check_like(parity, "the graph")
    size = sum((folder / f"{name}.onnx").stat().st_size for name in bundle.card["graphs"])
    told: dict[str, Json] = {"parity": asdict(parity), "bytes": size, **_costs(bundle, inputs, held[0], plain)}
    return told if bundle.card["merged"] else told | {"swap_ms": swap(bundle, held[0].name)}


def compare_written(bundle: Bundle, inputs: Sequence[Any], held: Held) -> Parity:
    """Each row's logits along the library's tokens, of what PyTorch was given; and the tokens that the runner writes.

    Raises:
        AdapterError: the runner reads a row otherwise than the base's own processor.
    """
    largest, same, wanted = 0.0, 0, held.wanted
    facts = bundle.adapter(held.name)[0]
    for value, features, outputs, answer in zip(inputs, wanted.features, wanted.outputs, wanted.answers, strict=True):
        feed, row = bundle.rows.encode(value, facts)
        given = {name: _same(feed[name], features[name], name) for name in feed}
        if list(row["tokens"]) != features["begin"]:
            raise AdapterError(
                "the runner begins a row by other tokens than the base's own tokenizer, so its answers would be "
                "others; a base with such a tokenizer cannot be exported yet"
            )
        fresh, state = list(row["tokens"]), bundle.begin(given, held.name)
        for want, token in zip(outputs["logits"], [*answer["tokens"], -1], strict=False):
            logits, state = bundle.step(fresh, state)
            largest, fresh = max(largest, difference(logits, want)), [token]
        tokens = bundle.write(feed, row, held.name) if np.isfinite(largest) else []
        same += answer == {"tokens": tokens, **bundle.rows.decode(tokens, row, facts)}
    return Parity(len(inputs), largest, same / len(inputs))


def _same(mine: Any, theirs: Any, name: str) -> Any:
    """What PyTorch was given of a row, [1, ...], where the runner reads the same."""
    if mine.shape[1:] != theirs.shape or not np.allclose(mine[0], theirs, atol=_HEARD):
        raise AdapterError(
            f"the runner reads a row's {name} otherwise than the base's own processor, so its answers would be "
            "others; a base with such a processor cannot be exported yet"
        )
    return theirs[None]


def _costs(bundle: Bundle, inputs: Sequence[Any], held: Held, steps: Steps) -> dict[str, Json]:
    """Milliseconds of one row's whole answer, of its first token, and its tokens, in ONNX Runtime; and of the whole
    answer by the same steps in PyTorch. One thread each."""
    facts, counts = bundle.adapter(held.name)[0], [len(answer["tokens"]) for answer in held.wanted.answers]
    middle = sorted(range(len(inputs)), key=counts.__getitem__)[len(inputs) // 2]
    feed, row = bundle.rows.encode(inputs[middle], facts)
    tokens = bundle.write(feed, row, held.name)

    def plain() -> None:
        given = {name: torch.as_tensor(value) for name, value in feed.items()}
        heard = [] if steps.hear is None else [steps.hear(**given)]
        kept = steps.empty(1)
        for fresh in [row["tokens"], *([token] for token in tokens)]:
            _, kept = steps.step(torch.tensor([list(fresh)]), kept, *heard)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            spent = milliseconds(plain, _TIMES)
    finally:
        torch.set_num_threads(threads)
    return {
        "tokens": len(tokens),
        "first_ms": milliseconds(lambda: bundle.step(row["tokens"], bundle.begin(feed, held.name)), _TIMES),
        "onnx_ms": milliseconds(lambda: bundle.write(feed, row, held.name), _TIMES),
        "pytorch_ms": spent,
    }
