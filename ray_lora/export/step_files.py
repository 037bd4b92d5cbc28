"""Files of the graphs that write: a step's, and before it an encoder's, each with the adapters' numbers that it reads.

    write_graphs(folder, steps, features, stacks)       # {"graph": ["logits", "next.0.keys", ...]}

It knows modules and files: no adapters and no tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ray_lora.export.onnx_file import free_axes, write_module
from ray_lora.export.steps import Stacks, Steps, names_of
from ray_lora.recipe import Json
from ray_lora.tasks import Features

_KEPT = 5  # tokens before those with which a step is traced


def write_graphs(folder: Path, steps: Steps, row: Features, stacks: Stacks | None) -> dict[str, Json]:
    """Each graph's outputs by its name. Rows and tokens are two or more, so that neither is taken for a constant.

    Args:
        row: one, as the task encodes it, with what the base is given of a sound.
        stacks: of two slots or more, for a class that has adapters as inputs.

    Raises:
        RecipeError: a graph is larger than one file holds.
    """
    free = torch.export.Dim.DYNAMIC
    told: dict[str, Json] = {}
    given: dict[str, Any] = {"tokens": torch.zeros(2, 3, dtype=torch.long), "kept": steps.empty(2, _KEPT)}
    axes: dict[str, Any] = {"tokens": {0: free, 1: free}, "kept": [({0: free, 2: free},) * 2] * steps.layers}
    names = ["tokens", *names_of(given["kept"], "kept")]
    if steps.hear is not None:
        features = torch.as_tensor(row["input_features"])[None].repeat(2, 1, 1)
        sound = {"input_features": features}
        mine = _asked(steps.hear, sound, stacks)
        with torch.no_grad():
            given["heard"] = steps.hear(**sound, **mine)
        axes["heard"] = [({0: free},) * 2] * steps.layers
        heard = names_of(given["heard"], "heard")
        write_module(
            steps.hear,
            sound | mine,
            {"input_features": {0: free}} | _axes(mine),
            (["input_features", *_named(mine)], heard),
            folder / "encoder.onnx",
        )
        told["encoder"] = heard
        names += heard
    mine = _asked(steps.step, given, stacks)
    outputs = ["logits", *names_of(given["kept"], "next")]
    write_module(steps.step, given | mine, axes | _axes(mine), (names + _named(mine), outputs), folder / "graph.onnx")
    return told | {"graph": outputs}


class _Read(dict[str, torch.Tensor]):
    """Stacks, and the names of those that were read."""

    def __init__(self, stacks: Stacks) -> None:
        super().__init__(stacks)
        self.names: dict[str, None] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        self.names[name] = None
        return super().__getitem__(name)


def _asked(module: torch.nn.Module, given: Mapping[str, Any], stacks: Stacks | None) -> dict[str, Any]:
    """Slots of two rows, and of the stacks those that this graph reads; nothing where there are none."""
    if stacks is None:
        return {}
    slots, read = torch.arange(2), _Read(stacks)
    with torch.no_grad():
        module(**given, slots=slots, stacks=read)
    return {"slots": slots, "stacks": {name: stacks[name] for name in read.names}} if read.names else {}


def _axes(asked: Mapping[str, Any]) -> dict[str, Any]:
    free = torch.export.Dim.DYNAMIC
    return {"slots": {0: free}, "stacks": {name: free_axes(name) for name in asked["stacks"]}} if asked else {}


def _named(asked: Mapping[str, Any]) -> list[str]:
    return ["slots", *asked["stacks"]] if asked else []
