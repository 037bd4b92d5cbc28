"""What the files of a PEFT LoRA folder say, and which of it is refused: what cannot be computed exactly has a name.

`adapter_config.json` becomes a LoraSpec, `adapter_model.safetensors` pairs by layer and a head. Nothing is unpickled.
Knows no cards and no engines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from ray_lora.errors import AdapterError
from ray_lora.recipe import LoraSpec

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."  # of every key in a PEFT file
COUNTER = "num_batches_tracked"  # of a batch norm in train mode: PEFT asks for the key, and no answer depends on it

# PEFT fields that say where adapters came from or how they were initialised; they do not change what an adapter
# answers.
_NEUTRAL = frozenset(
    "auto_mapping base_model_name_or_path revision inference_mode peft_version task_type peft_type lora_dropout "
    "fan_in_fan_out layers_to_transform layers_pattern megatron_core runtime_config qalora_group_size "
    "ensure_weight_tying modules_to_save target_parameters".split()
)
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")  # others rewrite the base's weights


@dataclass(frozen=True)
class LowRank:
    """One target layer's pair. Linear: A [rank, in], B [out, rank]; Conv2d: A [rank, in, kh, kw], B [out, rank, 1, 1];
    Embedding: A [rank, vocabulary], B [out, rank]."""

    A: Tensor
    B: Tensor
    embedding: bool = False

    @property
    def rank(self) -> int:
        return int(self.A.shape[0])


def read_json(path: Path, where: str) -> dict[str, Any]:
    """The object in a JSON file; AdapterError, which names the folder `where`, when there is none."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise AdapterError(
            f"{where!r} has no {path.name}; an adapter is a folder that PEFT's save_pretrained wrote"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterError(f"{where!r}: {path.name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise AdapterError(f"{where!r}: {path.name} holds a {type(value).__name__}, not an object")
    return value


def read_spec(config: Mapping[str, Any], where: str) -> LoraSpec:
    """PEFT's config as a LoraSpec; anything that would change the answer and is not built here is refused by name."""
    from peft import LoraConfig

    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{where!r}: peft_type is {config.get('peft_type')!r}; only 'LORA' can be loaded")
    defaults = LoraConfig().to_dict()
    known = set(LoraSpec.model_fields)
    for key, value in config.items():
        if key in known or key in _NEUTRAL:
            continue
        if key == "init_lora_weights":
            allowed = value in _PLAIN_INIT
        elif key in defaults:
            allowed = value == defaults[key] or not value
        else:
            allowed = not value
        if not allowed:
            raise AdapterError(
                f"{where!r}: adapter_config.json has {key}={value!r}, which this engine does not compute; "
                "merge such an adapter into its base with PEFT, or train it without that option"
            )
    if config.get("target_parameters"):
        raise AdapterError(f"{where!r}: target_parameters is not supported; use target_modules")
    if not isinstance(config.get("task_type") or "", str):
        raise AdapterError(f"{where!r}: adapter_config.json has task_type={config['task_type']!r}; it must be a word")
    modules = config.get("modules_to_save") or []
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise AdapterError(
            f"{where!r}: adapter_config.json has modules_to_save={modules!r}; it must be a list of names"
        )
    fields = {key: defaults[key] for key in ("r", "lora_alpha")}  # PEFT's, where the file says nothing
    fields |= {key: value for key, value in config.items() if key in known and value is not None}
    try:
        return LoraSpec.model_validate(fields)
    except ValidationError as error:
        raise AdapterError(f"{where!r}: adapter_config.json: {reason(error)}") from None


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The head's class, from the model class that PEFT notes where it knows no task_type (images, audio): a name such
    as AutoModelForImageClassification, or that of a class which is not transformers' ("Finder")."""
    noted = config.get("auto_mapping")
    found = noted if isinstance(noted, dict) else {}
    name, library = found.get("base_model_class"), found.get("parent_library")
    if not isinstance(name, str) or not isinstance(library, str):
        return None
    kind = name.rpartition("For")[2] if "For" in name else None
    own = None if library.startswith("transformers") else name
    return f"AutoModelFor{kind}" if kind else own


def reason(error: ValidationError) -> str:
    """What pydantic found, on one line."""
    found = [(".".join(map(str, problem["loc"])), problem["msg"], problem["input"]) for problem in error.errors()]
    return "; ".join(f"{key}: {text.removeprefix('Value error, ')} (given: {given!r})" for key, text, given in found)


def read_tensors(folder: Path, where: str) -> dict[str, Tensor]:
    """The tensors of the weights file, under PEFT's keys."""
    path = folder / WEIGHTS
    if not path.exists():
        pickled = " (adapter_model.bin is pickled and is never read)" if (folder / "adapter_model.bin").exists() else ""
        raise AdapterError(f"{where!r} has no {WEIGHTS}{pickled}; save the adapter with safe_serialization=True")
    try:
        return load_tensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{where!r}: {WEIGHTS} is torn or not safetensors: {error}") from None


def split(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """PEFT's flat keys as pairs by layer, and what is left as the head."""
    parts: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not key.startswith(PREFIX):
            raise AdapterError(f"{where!r}: key {key!r} does not begin with {PREFIX!r}; it was not saved by PEFT")
        name = key.removeprefix(PREFIX)
        if name.endswith(f".{COUNTER}"):
            continue
        if not tensor.is_floating_point() or not _finite(tensor):
            raise AdapterError(f"{where!r}: tensor {key!r} holds values that are not finite numbers")
        for mark in (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B"):
            if name.endswith(mark):
                parts.setdefault(name.removesuffix(mark), {})[mark] = tensor.float()
                break
        else:
            if ".base_layer." in name:
                raise AdapterError(
                    f"{where!r}: {key!r} is a weight of the base, not of the adapter; "
                    "save the adapter with save_embedding_layers=False"
                )
            if ".lora_" in name:
                raise AdapterError(f"{where!r}: key {key!r} belongs to a variant of LoRA that is not supported")
            head[name.replace(".modules_to_save.default.", ".")] = tensor.float()
    layers = {}
    for name, pair in parts.items():
        embedding = ".lora_embedding_A" in pair
        a, b = (".lora_embedding_A", ".lora_embedding_B") if embedding else (".lora_A.weight", ".lora_B.weight")
        whole = set(pair) == {a, b} and min(pair[a].dim(), pair[b].dim()) >= 2
        if not whole or pair[a].shape[0] < 1 or pair[a].shape[0] != pair[b].shape[1]:
            raise AdapterError(f"{where!r}: layer {name!r} lacks a matching pair of A and B")
        layers[name] = LowRank(pair[a], pair[b], embedding)
    if not layers and not head:
        raise AdapterError(f"{where!r}: {WEIGHTS} holds no tensors")
    return layers, head


def _finite(tensor: Tensor) -> bool:
    """Whether all values are numbers; numpy takes a fifth of torch's time for the small ones that adapters have."""
    plain = tensor.device.type == "cpu" and tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return bool(np.isfinite(tensor.numpy()).all() if plain else torch.isfinite(tensor).all())


def modules_of(head: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The top-level modules that a head's parameters belong to, PEFT's `modules_to_save`."""
    return tuple(sorted({name.split(".")[0] for name in head}))
