"""An ONNX file of a graph, with rows, tokens, slots, ranks and labels of any number.

    write_onnx(graph, batch, stacks, path)

It knows modules and files: no adapters and no tasks.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ray_lora.errors import RecipeError
from ray_lora.export.graph import Graph

_NEEDED = ("onnx", "onnxruntime", "onnxscript")
_LARGEST = 2**31 - 2**20  # bytes of numbers in one ONNX file, whose format counts with 31 bits
FREE = ("input_ids", "attention_mask", "token_type_ids", "input_values")  # whose second axis is of any size


def check_installed() -> None:
    """RecipeError unless what writes and runs ONNX files is installed."""
    lost = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if lost:
        raise RecipeError(
            f"graphs are written and compared by {', '.join(lost)}, which {'are' if len(lost) > 1 else 'is'} not "
            "installed: pip install 'ray_lora[export]'"
        )


def write_onnx(
    graph: Graph, batch: Mapping[str, Tensor], path: Path, stacks: Mapping[str, Tensor] | None = None
) -> list[str]:
    """Write the graph; returns its outputs' names.

    Args:
        batch: two rows or more, as the graph takes them.
        stacks: of two slots or more, for a graph that has adapters as inputs.

    Raises:
        RecipeError: the graph is larger than one file holds.
    """
    rows = len(next(iter(batch.values())))
    any_size = torch.export.Dim.DYNAMIC
    given: dict[str, Any] = {"batch": dict(batch)}
    free: dict[str, Any] = {
        "batch": {name: {0: any_size, 1: any_size} if name in FREE else {0: any_size} for name in batch}
    }
    names = list(batch)
    if stacks is not None:
        given |= {"slots": torch.arange(rows) % 2, "stacks": dict(stacks)}
        free |= {"slots": {0: any_size}, "stacks": {name: free_axes(name) for name in stacks}}
        names += ["slots", *stacks]
    with torch.no_grad():
        outputs = list(graph(**given))
    write_module(graph, given, free, (names, outputs), path)
    return outputs


def write_module(
    module: torch.nn.Module,
    given: Mapping[str, Any],
    free: Mapping[str, Any],
    names: tuple[Sequence[str], Sequence[str]],
    path: Path,
) -> None:
    """Write any module as a graph.

    Args:
        given: what it is called with, by name. free: in the same shape, the axes of any size.
        names: of its inputs and its outputs, each in the order in which they are laid flat.

    Raises:
        RecipeError: it is larger than one file holds.
    """
    numbers = {
        tensor.data_ptr(): tensor for tensor in module.state_dict().values()
    }  # each once, of those that are tied
    size = sum(tensor.numel() * tensor.element_size() for tensor in numbers.values())
    if size > _LARGEST:
        raise RecipeError(
            f"the base has {size / 1e9:.1f} GB of numbers, and one ONNX file holds 2; choose a smaller base"
        )
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            module,
            (),
            kwargs=dict(given),
            dynamic_shapes=dict(free),
            input_names=names[0],
            output_names=names[1],
            dynamo=True,
            verbose=False,
        )
    _save(program.model_proto, path)


def _save(model: Any, path: Path) -> None:
    """Without where each operator comes from, which is most of a small file and names folders of this machine."""
    import onnx

    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph, model):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save_model(model, path)


def free_axes(name: str) -> dict[int, Any]:
    """Slots, and of a pair its rank; of a head its labels, unless the class says how many outputs a layer has."""
    found, maybe = torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO
    return {0: found, 2: found} if name.endswith(".B") else {0: found, 1: found if name.endswith(".A") else maybe}


class _quiet:
    """Without what torch's exporter says of itself."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger("torch.onnx")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        self._warnings.__exit__(None, None, None)
        self._logger.setLevel(self._level)
