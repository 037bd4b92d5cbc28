"""An adapter's numbers as a graph takes them, and the file that holds them beside the graph.

    arrays = arrays_of(adapter)          # {"bert.pooler.dense.A": [rank, in], "bert.pooler.dense.B": [out, rank], ...}

The scaling is in B. A file is safetensors, with what is to be known of the adapter in its metadata, so that a runner
needs nothing else to answer with it. It knows adapters and tensors: no graphs and no tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import AdapterError
from ray_lora.recipe import Json

SUFFIX = ".safetensors"


def arrays_of(adapter: Adapter) -> dict[str, Tensor]:
    """float32: A [rank, in, ...], B [out, rank] with the scaling in it, and the head's tensors by name.

    Raises:
        AdapterError: a layer is an embedding, whose A would be as long as the vocabulary in every run.
    """
    found: dict[str, Tensor] = {}
    for name, pair in adapter.layers.items():
        if pair.embedding:
            raise AdapterError(f"the adapter on the embedding {name!r} cannot be an input of a graph; give --merge")
        found[f"{name}.A"] = pair.A.float()
        found[f"{name}.B"] = (pair.B.flatten(1).double() * adapter.scaling(name)).float()
    return found | {name: tensor.float() for name, tensor in adapter.head.items()}


def filled(several: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Each with all layers that any has: a pair of zeros of rank 1 where it has none.

    Raises:
        AdapterError: a head has other tensors than another.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for arrays in several:
        for name, tensor in arrays.items():
            shape = tuple(tensor.shape)
            if name.endswith(".A"):
                shape = (1, *shape[1:])
            shapes[name] = (shape[0], 1) if name.endswith(".B") else shape
    found = []
    for arrays in several:
        lost = [name for name in shapes if name not in arrays and not name.endswith((".A", ".B"))]
        if lost:
            raise AdapterError(f"the adapters' heads differ: {lost[0]!r} is not in all; export them apart")
        found.append({name: arrays.get(name, torch.zeros(shape)).contiguous() for name, shape in shapes.items()})
    return found


def stacked(several: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """[slots, ...] of each name, filled up with zeros to the largest."""
    found = {}
    for name in several[0]:
        tensors = [arrays[name] for arrays in several]
        shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
        whole = torch.zeros(len(tensors), *shape)
        for slot, tensor in enumerate(tensors):
            whole[slot][tuple(map(slice, tensor.shape))] = tensor
        found[name] = whole
    return found


def write_arrays(folder: Path, name: str, arrays: Mapping[str, Tensor], facts: Mapping[str, Json]) -> Path:
    """`adapters/NAME.safetensors` in a bundle's folder."""
    path = folder / "adapters" / f"{name}{SUFFIX}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(save(dict(arrays), metadata={"adapter": json.dumps(facts)}))
    return path
