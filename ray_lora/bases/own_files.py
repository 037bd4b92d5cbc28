"""What the folders of our own bases and public checkpoints hold: tensors by name, of which no code ever runs.

    read_checkpoint(Path("yolox_s.pth"), within=("model",))     # names to tensors
    shapes_in(Path("bases/yolox-s"))                            # names to shapes; no numbers are read

It knows files, not what a base is.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ray_lora.errors import BaseModelError

WEIGHTS = "model.safetensors"
_PARALLEL = "module."  # what torch's DataParallel puts before every name


@dataclass(frozen=True)
class Shape:
    """A tensor without its numbers."""

    shape: tuple[int, ...]


def shapes_in(folder: Path) -> dict[str, Shape]:
    """Names and shapes in a folder, of which no numbers are read; BaseModelError where they cannot be."""
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            return {name: Shape(tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BaseModelError(f"{str(folder / WEIGHTS)!r} cannot be read: {error}") from None


def tensors_in(folder: Path, begins: str | tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a folder whose names begin so."""
    with safe_open(folder / WEIGHTS, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(begins)}  # noqa: SIM118


def read_checkpoint(path: Path, within: Sequence[str] = ()) -> dict[str, Tensor]:
    """The state dict in a file of torch's or safetensors'.

    Args:
        within: names under which it may lie in the file.

    Raises:
        BaseModelError: it cannot be read, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return _unwrapped(load_file(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols; what they hold is refused or read
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseModelError(
            f"{str(path)!r} cannot be read as tensors alone ({reason}); code in it is never run: save its state dict "
            "as safetensors where you trust it"
        ) from None
    for name in within:
        found = found.get(name, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise BaseModelError(f"{str(path)!r} holds no state dict; give a checkpoint with tensors by name")
    return _unwrapped(found)


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what a DataParallel puts before every name."""
    wrapped = all(name.startswith(_PARALLEL) for name in tensors)
    return {name.removeprefix(_PARALLEL) if wrapped else name: tensor for name, tensor in tensors.items()}
