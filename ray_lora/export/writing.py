"""The folder of an adapter that writes token by token: graphs of one step, what reads rows, runner, and a card.

    write_steps(folder, held, inputs, base, kind)     # the card

Each token's logits are compared with PyTorch's along the library's own answer, and the tokens that the runner writes
with those of that answer. It knows one adapter that was answered in PyTorch: no stores.
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
from ray_lora.export.bundle import CARD, Held, card_of, copy_runner
from ray_lora.export.figures import milliseconds
from ray_lora.export.graph import merged
from ray_lora.export.kinds import Kind
from ray_lora.export.onnx_file import write_module
from ray_lora.export.parity import LEAST, MOST, Parity, difference
from ray_lora.export.steps import Steps, names_of, steps_of
from ray_lora.recipe import Json

if TYPE_CHECKING:
    from ray_lora.export.edge.writer import Bundle

_HEARD = 1e-3  # a difference of spectrograms that rounding explains: logarithms of what is all but silent
_TIMES = 3
_KEPT = 5  # tokens before those with which a step is traced


def write_steps(folder: Path, held: Held, inputs: Sequence[Any], base: Base, kind: Kind) -> dict[str, Json]:
    """The bundle's files; returns its card.

    Raises:
        AdapterError: the graphs do not answer as PyTorch does.
        RecipeError: they are larger than one file holds.
    """
    steps = steps_of(merged(base, held.spec, held.adapter).model)
    card = card_of([held], base, kind, merge=True, int8=False)
    card |= {"heads": steps.heads, "width": steps.width, "kept": names_of(steps.empty(1), "kept")}
    copy_runner("writer", kind, folder)
    kind.save(base, folder)
    card["graphs"] = _write_graphs(folder, steps, held)
    (folder / CARD).write_text(json.dumps(card))  # the runner reads it
    card["figures"] = {"float": _figures(folder, inputs, held, steps), "adapter_bytes": {}}
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    return card


def _write_graphs(folder: Path, steps: Steps, held: Held) -> dict[str, Json]:
    """Each graph's outputs by its name. Rows and tokens are two or more, so that neither is taken for a constant."""
    free = torch.export.Dim.DYNAMIC
    told: dict[str, Json] = {}
    given: dict[str, Any] = {"tokens": torch.zeros(2, 3, dtype=torch.long), "kept": steps.empty(2, _KEPT)}
    axes: dict[str, Any] = {"tokens": {0: free, 1: free}, "kept": [({0: free, 2: free},) * 2] * steps.layers}
    names = ["tokens", *names_of(given["kept"], "kept")]
    if steps.hear is not None:
        features = torch.as_tensor(held.wanted.features[0]["input_features"])[None].repeat(2, 1, 1)
        with torch.no_grad():
            given["heard"] = steps.hear(features)
        axes["heard"] = [({0: free},) * 2] * steps.layers
        heard = names_of(given["heard"], "heard")
        write_module(
            steps.hear,
            {"input_features": features},
            {"input_features": {0: free}},
            (["input_features"], heard),
            folder / "encoder.onnx",
        )
        told["encoder"] = heard
        names += heard
    outputs = ["logits", *names_of(given["kept"], "next")]
    write_module(steps.step, given, axes, (names, outputs), folder / "graph.onnx")
    return told | {"graph": outputs}


def _figures(folder: Path, inputs: Sequence[Any], held: Held, steps: Steps) -> dict[str, Json]:
    """Parity, bytes, and what the answer of middle length costs."""
    from ray_lora.export.edge.writer import Bundle

    bundle = Bundle(folder)
    parity = compare_written(bundle, inputs, held)
    if not parity.largest <= MOST or parity.same < LEAST:
        raise AdapterError(
            f"the graph's outputs differ from PyTorch's by {parity.largest:.1e} and {parity.same:.1%} of the rows are "
            f"answered by the same tokens; {MOST:.0e} and {LEAST:.1%} are allowed, so nothing was written"
        )
    size = sum((folder / f"{name}.onnx").stat().st_size for name in bundle.card["graphs"])
    return {"parity": asdict(parity), "bytes": size} | _costs(bundle, inputs, held, steps)


def compare_written(bundle: Bundle, inputs: Sequence[Any], held: Held) -> Parity:
    """Each row's logits along the library's tokens, of what PyTorch was given; and the tokens that the runner writes.

    Raises:
        AdapterError: the runner reads a row otherwise than the base's own processor.
    """
    largest, same, wanted = 0.0, 0, held.wanted
    facts = bundle.adapter(held.name)
    for value, features, outputs, answer in zip(inputs, wanted.features, wanted.outputs, wanted.answers, strict=True):
        feed, row = bundle.rows.encode(value, facts)
        given = {name: _same(feed[name], features[name], name) for name in feed}
        if list(row["tokens"]) != features["begin"]:
            raise AdapterError(
                "the runner begins a row by other tokens than the base's own tokenizer, so its answers would be "
                "others; a base with such a tokenizer cannot be exported yet"
            )
        fresh, state = list(row["tokens"]), bundle.begin(given)
        for want, token in zip(outputs["logits"], [*answer["tokens"], -1], strict=False):
            logits, state = bundle.step(fresh, state)
            largest, fresh = max(largest, difference(logits, want)), [token]
        tokens = bundle.write(feed, row, facts) if np.isfinite(largest) else []
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
    facts, counts = bundle.adapter(held.name), [len(answer["tokens"]) for answer in held.wanted.answers]
    middle = sorted(range(len(inputs)), key=counts.__getitem__)[len(inputs) // 2]
    feed, row = bundle.rows.encode(inputs[middle], facts)
    tokens = bundle.write(feed, row, facts)

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
        "first_ms": milliseconds(lambda: bundle.step(row["tokens"], bundle.begin(feed)), _TIMES),
        "onnx_ms": milliseconds(lambda: bundle.write(feed, row, facts), _TIMES),
        "pytorch_ms": spent,
    }
