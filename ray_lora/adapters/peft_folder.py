"""The files of a PEFT LoRA folder: the config, and the tensors as pairs by layer and a head.

`peft_config.py` knows what the config's fields mean, `peft_keys.py` how other savers write the tensors' names. Nothing
is unpickled. Knows no cards and no engines.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from ray_lora.adapters.peft_keys import PREFIX, plain_keys
from ray_lora.bounds import LONGEST_NAME, named, short
from ray_lora.errors import AdapterError

__all__ = ["CONFIG", "COUNTER", "PREFIX", "WEIGHTS", "LowRank", "find", "read_json", "read_tensors", "split"]

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
COUNTER = "num_batches_tracked"  # of a batch norm in train mode: PEFT asks for the key, and no answer depends on it
_COUNTERS = (f".{COUNTER}", ".position_ids")  # whole numbers that follow from the class


_MOST_JSON = 16 << 20  # bytes of a config or a card; that of a thousand layers and labels has some hundred thousand
_MOST_TENSORS = 1 << 16  # of an adapter: a hundred layers of a hundred experts have some ten thousand


@dataclass(frozen=True)
class LowRank:
    """One target layer's pair. Linear: A [rank, in], B [out, rank]; Conv2d: A [rank, in / groups, kh, kw],
    B [out, rank, 1, 1], and A with a last axis of 1 where PEFT would compute something else; Embedding:
    A [rank, vocabulary], B [out, rank]."""

    A: Tensor
    B: Tensor
    embedding: bool = False

    @property
    def rank(self) -> int:
        return int(self.A.shape[0])


def read_json(path: Path, where: str) -> dict[str, Any]:
    """The object in a JSON file; AdapterError, which names the folder `where`, when there is none."""
    try:
        value = json.loads(_regular(path, where, _MOST_JSON).read_text())
    except RecursionError:
        raise AdapterError(f"{where!r}: {path.name} is nested too deeply to be read") from None
    except FileNotFoundError:
        raise AdapterError(
            f"{where!r} has no {path.name}; an adapter is a folder that PEFT's save_pretrained wrote"
        ) from None
    except (OSError, ValueError) as error:  # no UTF-8, no JSON, a number of thousands of digits
        raise AdapterError(f"{where!r}: {path.name} cannot be read: {short(str(error), 200)}") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{where!r}: {path.name} holds a {type(value).__name__}, not an object")
    return value


def _regular(path: Path, where: str, most: int | None = None) -> Path:
    """The path, if a file of at most `most` bytes lies there: a pipe would never end, and a device's end is memory's.

    Raises:
        AdapterError: something else lies there, or more. OSError: nothing can be seen there.
    """
    told = path.stat()
    if not stat.S_ISREG(told.st_mode):
        raise AdapterError(f"{where!r}: {path.name} is no regular file; put the file itself there")
    if most is not None and told.st_size > most:
        raise AdapterError(f"{where!r}: {path.name} has {told.st_size:,} bytes; at most {most:,} are read of it")
    return path


def find(folder: Path, where: str) -> Path:
    """The folder itself, or the one in it that holds an adapter: a Trainer's checkpoint, or one named like the adapter.

    Raises:
        AdapterError: several folders in it hold one.
    """
    if (folder / CONFIG).exists() or not folder.is_dir():
        return folder
    held = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if len(held) > 1:
        raise AdapterError(
            f"{where!r} has no {CONFIG} of its own, and adapters in {', '.join(held[:8])}; name one of these folders"
        )
    return folder / held[0] if held else folder


def read_tensors(folder: Path, where: str) -> dict[str, Tensor]:
    """The tensors of the weights file, under the keys that PEFT gives them, whoever saved them."""
    path = folder / WEIGHTS
    if not path.exists():
        raise AdapterError(f"{where!r} has no {WEIGHTS}{_instead(folder)}")
    try:
        tensors = load_tensors(_regular(path, where).read_bytes())
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{where!r}: {WEIGHTS} is torn or not safetensors: {short(str(error), 200)}") from None
    long = next((key for key in tensors if len(key) > LONGEST_NAME), None)
    if long is not None or len(tensors) > _MOST_TENSORS:
        what = f"{len(tensors):,} tensors" if long is None else f"a tensor's name of {len(long):,} letters"
        raise AdapterError(f"{where!r}: {WEIGHTS} has {what}; at most {_MOST_TENSORS:,} and {LONGEST_NAME} are read")
    return plain_keys(tensors, where)


_OTHERS = {  # what lies in the place of the weights -> what to do about it
    "adapter_model.bin": "adapter_model.bin is pickled and is never read",
    "adapter_model-*.safetensors": "the weights are cut into several files",
    "global_step*": "DeepSpeed's shards are there, not the adapter: gather them first (zero_to_fp32.py)",
    "pytorch_model_fsdp*": "FSDP's shards are there, not the adapter: gather them first (accelerate merge-weights)",
    "model*.safetensors": "a whole model is there, not an adapter",
    "pytorch_model*.bin": "a whole model is there, not an adapter",
}


def _instead(folder: Path) -> str:
    """What to say of a folder without the weights file."""
    found = next((why for pattern, why in _OTHERS.items() if any(folder.glob(pattern))), None)
    told = f" ({found})" if found else ""
    return f"{told}; save the adapter with safe_serialization=True"


def split(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """PEFT's flat keys as pairs by layer, and what is left as the head."""
    parts: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if name.endswith(_COUNTERS) and not tensor.is_floating_point():
            continue
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise AdapterError(
                f"{where!r}: tensor {named(key)} is of {kind}; an adapter's tensors are floating-point numbers: "
                "quantised weights and counters are the base's, save the adapter without them"
            )
        tensor = tensor.float()
        if not _finite(tensor):
            raise AdapterError(f"{where!r}: tensor {named(key)} holds values that are not finite numbers")
        for mark in (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B"):
            if name.endswith(mark):
                parts.setdefault(name.removesuffix(mark), {})[mark] = tensor
                break
        else:
            if ".base_layer." in name:
                raise AdapterError(
                    f"{where!r}: {named(key)} is a weight of the base, not of the adapter; "
                    "save the adapter with save_embedding_layers=False"
                )
            if ".lora_" in name:
                raise AdapterError(
                    f"{where!r}: key {named(key)} belongs to a variant of LoRA that is not supported{_variant(name)}"
                )
            head[name] = tensor
    layers = {}
    for name, pair in parts.items():
        embedding = ".lora_embedding_A" in pair
        a, b = (".lora_embedding_A", ".lora_embedding_B") if embedding else (".lora_A.weight", ".lora_B.weight")
        whole = set(pair) == {a, b} and min(pair[a].dim(), pair[b].dim()) >= 2
        if not whole or pair[a].shape[0] < 1 or pair[a].shape[0] != pair[b].shape[1]:
            raise AdapterError(
                f"{where!r}: layer {named(name)} lacks a matching pair of A and B{_pair_why(pair.values())}"
            )
        layers[name] = LowRank(pair[a], pair[b], embedding)
    if not layers and not head:
        raise AdapterError(f"{where!r}: {WEIGHTS} holds no tensors")
    return layers, head


def _variant(name: str) -> str:
    """Which variant of LoRA a tensor's name belongs to."""
    known = {"magnitude": "DoRA", "lora_E": "AdaLoRA", "lora_A.bias": "lora_bias", "lora_B.bias": "lora_bias"}
    return next((f": {variant}" for mark, variant in known.items() if mark in name), "")


def _pair_why(pair: Iterable[Tensor]) -> str:
    """What is known of a pair that is none."""
    tensors = list(pair)
    if len(tensors) == 2 and min(tensor.dim() for tensor in tensors) > 2:
        return ": PEFT's A of a convolution in groups reads all channels, so that it cannot be merged; train it here"
    if any(tensor.numel() == 0 or tensor.dim() < 2 for tensor in tensors):
        return " (empty or flat: shards of DeepSpeed's ZeRO-3 or of FSDP that were not gathered before they were saved)"
    return ""


def _finite(tensor: Tensor) -> bool:
    """Whether all values are numbers; numpy takes a fifth of torch's time for the small ones that adapters have."""
    return bool(np.isfinite(tensor.numpy()).all() if tensor.device.type == "cpu" else torch.isfinite(tensor).all())


def modules_of(head: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The top-level modules that a head's parameters belong to, PEFT's `modules_to_save`."""
    return tuple(sorted({name.split(".")[0] for name in head}))
