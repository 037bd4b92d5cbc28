"""The folder that runs without torch: graph, adapters' arrays, what reads rows, runner, and a card with what it costs.

    write_bundle(folder, held, inputs, base, kind, merge=False, int8=True)     # the card

It knows adapters that were answered in PyTorch: no stores.
"""

from __future__ import annotations

import itertools
import json
import runpy
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.base import Base
from ray_lora.bases.plain import HeadSpec
from ray_lora.export.arrays import arrays_of, filled, stacked, write_arrays
from ray_lora.export.figures import latency, middle, swap
from ray_lora.export.graph import Graph, merged, with_inputs
from ray_lora.export.int8 import quantise_file
from ray_lora.export.kinds import Kind
from ray_lora.export.onnx_file import write_onnx
from ray_lora.export.parity import Wanted, check_like, compare
from ray_lora.recipe import Json
from ray_lora.store import Entry
from ray_lora.tasks import Task

if TYPE_CHECKING:
    from ray_lora.export.edge.runner import Bundle  # whose onnxruntime may not be installed

_RANGED = 64  # rows that the ranges of activations in 8 bits are taken from
GRAPH, CARD, RUNNER, ROWS = "graph.onnx", "card.json", "runner.py", "rows.py"


@dataclass(frozen=True)
class Held:
    """An adapter on its way out.

    Attributes:
        name: in the bundle. adapter: with its head, whoever it came from. spec: its head's class.
    """

    name: str
    entry: Entry
    adapter: Adapter
    spec: HeadSpec
    task: Task
    wanted: Wanted


def write_bundle(
    folder: Path, held: Sequence[Held], inputs: Sequence[Any], base: Base, kind: Kind, merge: bool, int8: bool
) -> dict[str, Json]:
    """The bundle's files; returns its card."""
    card = card_of(held, base, kind, merge, int8)
    plain = merged(base, held[0].spec, held[0].adapter)
    write_adapters(folder, held, card, merge)
    copy_runner("runner", kind, folder)
    kind.save(base, folder)
    (folder / CARD).write_text(json.dumps(card))  # the runner reads it
    graph, stacks = (plain, None) if merge else with_stacks(base, held)
    whole = _traced(folder, inputs, held)
    card["outputs"] = write_onnx(graph, whole, folder / GRAPH, stacks)
    (folder / CARD).write_text(json.dumps(card))
    card["figures"] = {"float": _figures(folder, inputs, held, plain)}
    if int8:
        card["figures"]["int8"] = _made_int8(folder, inputs, held, plain, kind)
    card["figures"]["adapter_bytes"] = adapter_bytes(folder)
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    return card


def copy_runner(name: str, kind: Kind, folder: Path) -> None:
    """What answers without this library: a runner of `edge/`, and what it reads rows with."""
    edge = Path(__file__).parent / "edge"
    shutil.copy(edge / f"{name}.py", folder / RUNNER)
    shutil.copy(edge / f"{kind.rows}.py", folder / ROWS)
    for beside in ("arrays", *kind.beside):
        shutil.copy(edge / f"{beside}.py", folder / f"{beside}.py")


def card_of(held: Sequence[Held], base: Base, kind: Kind, merge: bool, int8: bool) -> dict[str, Any]:
    """What a runner must know, before graphs and figures."""
    adapters = {
        one.name: {
            "ref": one.entry.ref,
            "sha256": one.entry.sha256,
            "base_fingerprint": base.fingerprint,
            **kind.of_adapter(one.task, base),
        }
        for one in held
    }
    return {
        "task": held[0].task.spec.type,
        "base": base.id,
        "base_fingerprint": base.fingerprint,
        "merged": merge,
        "int8": int8,
        **kind.of_base(base),
        "adapters": adapters,
    }


def write_adapters(folder: Path, held: Sequence[Held], card: Mapping[str, Any], merge: bool) -> None:
    """Each adapter's file beside the graphs: what a runner must know of it, and its arrays unless it is merged."""
    for one, arrays in zip(held, [{} for _ in held] if merge else _arrays(held), strict=True):
        write_arrays(folder, one.name, arrays, card["adapters"][one.name])


def adapter_bytes(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_size for path in sorted((folder / "adapters").iterdir())}


def with_stacks(base: Base, held: Sequence[Held]) -> tuple[Graph, dict[str, Tensor]]:
    """The graph, and stacks to trace it with: two slots or more, so that one is not taken for a constant."""
    layers, arrays = list(dict.fromkeys(name for one in held for name in one.adapter.layers)), _arrays(held)
    graph = with_inputs(base, held[0].spec, layers, held[0].adapter.head)
    return graph, stacked([*arrays, *arrays] if len(arrays) == 1 else arrays)


def _arrays(held: Sequence[Held]) -> list[dict[str, Tensor]]:
    return filled([arrays_of(one.adapter) for one in held])


def _traced(folder: Path, inputs: Sequence[Any], held: Sequence[Held]) -> dict[str, Tensor]:
    """Rows as the runner feeds them, two or more, so that their number is not taken for a constant."""
    from ray_lora.export.edge.arrays import stacked as fill

    card = json.loads((folder / CARD).read_text())
    reader = runpy.run_path(str(folder / ROWS))["Rows"](folder, card)
    chosen = [*inputs, *inputs][: max(2, min(4, len(inputs)))]
    feeds = [reader.encode(value, card["adapters"][held[0].name])[0] for value in chosen]
    return {name: torch.as_tensor(fill([feed[name] for feed in feeds])) for name in feeds[0]}


def _figures(folder: Path, inputs: Sequence[Any], held: Sequence[Held], plain: Graph) -> dict[str, Json]:
    """Of a float graph: its parity and what it costs.

    Raises:
        AdapterError: it does not answer as PyTorch does.
    """
    bundle = _opened(folder)
    found = compare(bundle, inputs, {one.name: one.wanted for one in held})
    check_like(found, "the graph")
    told: dict[str, Json] = {"parity": asdict(found), "bytes": (folder / GRAPH).stat().st_size}
    return told | _costs(bundle, inputs, held[0], plain)


def _opened(folder: Path) -> Bundle:
    from ray_lora.export.edge.runner import Bundle

    return Bundle(folder)


def _costs(bundle: Bundle, inputs: Sequence[Any], one: Held, plain: Graph) -> dict[str, Json]:
    """Latencies of the row of middle length, and what a swap takes where there is one."""
    told: dict[str, Json] = latency(bundle, middle(bundle, inputs, one.name), one.name, plain)
    return told if bundle.card["merged"] else told | {"swap_ms": swap(bundle, one.name)}


def _made_int8(folder: Path, inputs: Sequence[Any], held: Sequence[Held], plain: Graph, kind: Kind) -> dict[str, Json]:
    """Put the int8 graph in the float one's place; how alike its answers are, and what it costs."""
    quantise_file(folder / GRAPH, _given(_opened(folder), inputs[:_RANGED], held) if kind.ranged else None)
    bundle = _opened(folder)
    found = compare(bundle, inputs, {one.name: one.wanted for one in held})
    told: dict[str, Json] = {"parity": asdict(found), "bytes": (folder / GRAPH).stat().st_size}
    return told | _costs(bundle, inputs, held[0], plain)


def _given(bundle: Bundle, inputs: Sequence[Any], held: Sequence[Held]) -> Iterator[Mapping[str, Any]]:
    """What a graph is given of each row, adapters in turn."""
    for value, one in zip(inputs, itertools.cycle(held), strict=False):
        yield bundle.given([bundle.rows.encode(value, bundle.adapter(one.name)[0])[0]], [one.name])
