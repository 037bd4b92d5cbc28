"""What a bundle costs beside PyTorch: milliseconds of one row, and of another adapter in its place. One thread each.

It knows the runner and graphs: no stores and no tasks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ray_lora.export.graph import Graph

if TYPE_CHECKING:
    from ray_lora.export.edge.program import Bundle as Program
    from ray_lora.export.edge.runner import Bundle
    from ray_lora.export.edge.writer import Bundle as Writer

_TIMES = 30


def latency(bundle: Bundle, feed: Mapping[str, Any], name: str, graph: Graph) -> dict[str, float]:
    """Medians of one row, milliseconds: the bundle's graph, and the same adapter merged into the plain class."""
    plain = pytorch_ms(graph, feed)
    return {"onnx_ms": milliseconds(lambda: bundle.run([dict(feed)], [name])), "pytorch_ms": plain}


def middle(bundle: Bundle | Program, inputs: Sequence[Any], name: str) -> dict[str, Any]:
    """The row of middle length, as the runner encodes it."""
    feeds = [bundle.rows.encode(value, bundle.adapter(name)[0])[0] for value in inputs]
    feed: dict[str, Any] = sorted(feeds, key=lambda feed: next(iter(feed.values())).size)[len(feeds) // 2]
    return feed


def pytorch_ms(graph: Graph, feed: Mapping[str, Any]) -> float:
    """The median of one row in the plain class, milliseconds, one thread."""
    batch: dict[str, Tensor] = {key: torch.as_tensor(value)[None] for key, value in feed.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return milliseconds(lambda: graph(batch))
    finally:
        torch.set_num_threads(threads)


def swap(bundle: Bundle | Writer, name: str) -> float:
    """Milliseconds from an adapter's file to arrays that the graph takes, median."""

    def once() -> None:
        _, arrays = bundle.read(name)
        for array in arrays.values():
            array[None]

    return milliseconds(once)


def milliseconds(act: Callable[[], object], times: int = _TIMES) -> float:
    """What an act takes when it was done before, the median of so many."""
    act()
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        spent.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(spent), 3)
