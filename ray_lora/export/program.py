"""One adapter and its base as an ExecuTorch program, for phones and boards: one row at a time, by XNNPACK.

    write_program(folder, held, inputs, base, kind)     # graph.pte beside what reads rows and a runner; the card

The adapter is in the weights. Products, convolutions and what goes along are XNNPACK's, all else ExecuTorch's portable
operators. It knows adapters that were answered in PyTorch: no stores.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import runpy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ray_lora.bases.base import Base
from ray_lora.errors import RecipeError
from ray_lora.export.bundle import CARD, ROWS, Held, card_of, copy_runner, write_adapters
from ray_lora.export.figures import middle, milliseconds, pytorch_ms
from ray_lora.export.graph import Graph, merged
from ray_lora.export.kinds import KINDS, Kind
from ray_lora.export.onnx_file import FREE
from ray_lora.export.parity import check_like, compare
from ray_lora.recipe import Json

if TYPE_CHECKING:
    from ray_lora.export.edge.program import Bundle  # whose executorch may not be installed

PROGRAM = "graph.pte"
_SHORTEST = 2  # tokens: torch.export takes one for a constant


def check_executorch() -> None:
    """RecipeError unless ExecuTorch is installed."""
    if importlib.util.find_spec("executorch") is None:
        raise RecipeError(
            "programs are written and compared by executorch, which is not installed: "
            "pip install 'ray_lora[executorch]'"
        )


def check_program(task: str, kind: Kind) -> None:
    """RecipeError where a kind's program was not compared with its plain class."""
    if not kind.program:
        told = [name for name, kinds in KINDS.items() if any(one.program for one in kinds)]
        raise RecipeError(
            f"a program of {task} on such a base was not compared with its plain class; supported: {', '.join(told)}; "
            "--format onnx has this one"
        )


def write_program(folder: Path, held: Held, inputs: Sequence[Any], base: Base, kind: Kind) -> dict[str, Json]:
    """The program's folder; returns its card.

    Raises:
        AdapterError: the program does not answer as PyTorch does.
    """
    card = card_of([held], base, kind, merge=True, int8=False) | {"alone": True}
    plain = merged(base, held.spec, held.adapter)
    write_adapters(folder, [held], card, merge=True)
    copy_runner("program", kind, folder)
    kind.save(base, folder)
    facts = card["adapters"][held.name]
    feed = runpy.run_path(str(folder / ROWS))["Rows"](folder, card).encode(inputs[0], facts)[0]
    batch = {name: torch.as_tensor(feed[name])[None].contiguous() for name in card["inputs"]}
    if any(name in FREE for name in batch):
        card["tokens"] = [_SHORTEST, facts["max_length"]]  # of a row
    card["outputs"] = _write(plain, batch, facts.get("max_length"), folder / PROGRAM)
    (folder / CARD).write_text(json.dumps(card))
    bundle = _opened(folder)
    found = compare(bundle, inputs, {held.name: held.wanted})
    check_like(found, "the program")
    feed = middle(bundle, inputs, held.name)
    card["figures"] = {
        "float": {
            "parity": asdict(found),
            "bytes": (folder / PROGRAM).stat().st_size,
            "executorch_ms": milliseconds(lambda: bundle.run([dict(feed)])),
            "pytorch_ms": pytorch_ms(plain, feed),
        },
        "adapter_bytes": {},
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    return card


def _opened(folder: Path) -> Bundle:
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    from ray_lora.export.edge.program import Bundle

    _unsafe_reset_threadpool(1)  # as PyTorch beside it; no program runs yet
    return Bundle(folder)


class _Flat(nn.Module):
    """Inputs and outputs one after the other, as a program has them."""

    def __init__(self, graph: Graph, names: Sequence[str]) -> None:
        super().__init__()
        self.plain, self.names = graph, tuple(names)  # a module named `graph` would hide the exported one's

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.plain(dict(zip(self.names, given, strict=True))).values())


def _write(graph: Graph, batch: Mapping[str, Tensor], longest: int | None, path: Path) -> list[str]:
    """Write the program of one row; returns its outputs' names.

    Args:
        longest: tokens of the longest row, where rows are of any length.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    free = [name for name in batch if name in FREE]
    tokens = torch.export.Dim("tokens", min=_SHORTEST, max=longest) if free else None
    shapes = tuple({1: tokens} if name in free else None for name in batch)
    with torch.no_grad(), _quiet():
        outputs = list(graph(dict(batch)))
        program = torch.export.export(_Flat(graph, list(batch)), tuple(batch.values()), dynamic_shapes=(shapes,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)
    return outputs


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)
