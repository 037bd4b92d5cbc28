"""An adapter: low-rank tensors, head and card; on disk a plain PEFT folder.

`adapter_config.json` and `adapter_model.safetensors` are PEFT's own; `ray_lora.json` beside them is the card, which
plain PEFT ignores and which a folder written by plain PEFT lacks. What cannot be served exactly is refused by name.
This module knows nothing of engines, tasks' meaning or where adapters are stored.

    adapter = Adapter.load(Path("store/tweets/3"))
    adapter.layers["bert.encoder.layer.0.attention.self.query"].A.shape   # [rank, in]
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from ray_lora.errors import AdapterError
from ray_lora.recipe import Json, LoraSpec, Spec, TaskSpec

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CARD = "ray_lora.json"
_PREFIX = "base_model.model."

# PEFT fields that say where adapters came from or how they were initialised; they do not change what an adapter
# answers.
_NEUTRAL = frozenset(
    "auto_mapping base_model_name_or_path revision inference_mode peft_version task_type peft_type lora_dropout "
    "fan_in_fan_out layers_to_transform layers_pattern megatron_core runtime_config qalora_group_size "
    "ensure_weight_tying modules_to_save target_parameters".split()
)
_PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")  # others rewrite the base's weights


class Card(Spec):
    """What an adapter knows about itself beyond PEFT's config."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")  # a metric may be no number

    task: TaskSpec | None = None
    base: str | None = None
    base_fingerprint: str | None = None
    architecture: str | None = None  # the plain transformers class whose head this adapter carries
    metrics: dict[str, float] = Field(default_factory=dict)
    recipe: dict[str, Json] | None = None
    sha256: str | None = None


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


@dataclass(frozen=True)
class Adapter:
    """Low-rank tensors by module name of the plain transformers class, the head's tensors by parameter name, config and
    card."""

    config: LoraSpec
    layers: Mapping[str, LowRank]
    head: Mapping[str, Tensor]
    card: Card = field(default_factory=Card)
    peft_type: str | None = None  # PEFT's task_type, "SEQ_CLS"
    head_modules: tuple[str, ...] = ()  # PEFT's modules_to_save

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors under PEFT's file keys."""
        named = {_PREFIX + name: tensor for name, tensor in self.head.items()}
        for name, pair in self.layers.items():
            a, b = ("lora_embedding_A", "lora_embedding_B") if pair.embedding else ("lora_A.weight", "lora_B.weight")
            named[f"{_PREFIX}{name}.{a}"] = pair.A
            named[f"{_PREFIX}{name}.{b}"] = pair.B
        return named

    @cached_property
    def sha256(self) -> str:
        """Content hash: every tensor's name, dtype, shape and bytes, the config, and the card's task."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        task = self.card.task.model_dump(mode="json") if self.card.task else None
        config = self.config.model_dump(mode="json", exclude={"lora_dropout"})
        config["target_modules"] = sorted(self.layers)  # what is targeted, however it was written
        digest.update(json.dumps([config, task], sort_keys=True).encode())
        return digest.hexdigest()

    def scaling(self, name: str) -> float:
        """alpha/r of one layer (alpha/sqrt(r) with rsLoRA, arXiv 2312.03732), rank and alpha patterns applied."""
        return layer_scaling(self.config, name, self.layers[name].rank)

    def save(self, folder: Path) -> str:
        """Write the PEFT folder; returns the content hash. Existing adapter files are an AdapterError."""
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CONFIG).exists():
            raise AdapterError(f"{str(folder)!r} already holds an adapter; give another folder or remove it first")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        (folder / WEIGHTS).write_bytes(dump_tensors(tensors, metadata={"format": "pt"}))
        card = self.card.model_copy(update={"sha256": self.sha256})
        (folder / CARD).write_text(card.model_dump_json(indent=2))
        (folder / CONFIG).write_text(json.dumps(self._peft_config(), indent=2))
        return self.sha256

    def _peft_config(self) -> dict[str, Json]:
        spec = self.config.model_dump(mode="json", exclude_none=True)
        if float(self.config.lora_alpha).is_integer():
            spec["lora_alpha"] = int(self.config.lora_alpha)
        spec["target_modules"] = sorted(self.layers)  # exact names: what was resolved here is what PEFT must wrap
        return spec | {
            "peft_type": "LORA",
            "task_type": self.peft_type,
            "base_model_name_or_path": self.card.base,
            "modules_to_save": list(self.head_modules) or None,
            "inference_mode": True,
            "bias": "none",
        }

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read a PEFT LoRA folder, ours or plain PEFT's.

        Raises:
            AdapterError: a file is missing, torn, not safetensors, or holds what cannot be served exactly; or the
                content is not what the card's hash says.
        """
        where = str(folder)
        config = _read_json(folder / CONFIG, where)
        spec = _spec(config, where)
        card = Card()
        if (folder / CARD).exists():
            try:
                card = Card.model_validate(_read_json(folder / CARD, where))
            except ValidationError as error:
                raise AdapterError(f"{where!r}: {CARD} is not a card of this library: {_why(error)}") from None
        layers, head = split(_read_tensors(folder, where), where)
        if head and card.architecture is None:
            card = card.model_copy(update={"architecture": _architecture(config)})
        saved = tuple(config.get("modules_to_save") or ()) or _modules_of(head)
        adapter = cls(spec, layers, head, card, config.get("task_type"), saved)
        if card.sha256 is not None and card.sha256 != adapter.sha256:
            raise AdapterError(
                f"{where!r}: content hash is {adapter.sha256[:12]}…, the card says {card.sha256[:12]}…; "
                "the files were changed or torn: fetch or export the adapter again"
            )
        return adapter


def pattern_value(pattern: Mapping[str, Any], name: str, default: Any) -> Any:
    """PEFT's rule for rank_pattern and alpha_pattern: the first key that matches the module name's end."""
    from peft.utils.other import get_pattern_key

    return pattern.get(get_pattern_key(list(pattern), name), default)


def layer_rank(config: LoraSpec, name: str) -> int:
    """The rank of one layer under `rank_pattern`."""
    return int(pattern_value(config.rank_pattern, name, config.r))


def layer_scaling(config: LoraSpec, name: str, rank: int) -> float:
    """alpha/r, or alpha/sqrt(r) with rsLoRA, under `alpha_pattern`."""
    alpha = float(pattern_value(config.alpha_pattern, name, config.lora_alpha))
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _read_json(path: Path, where: str) -> dict[str, Any]:
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


def _spec(config: Mapping[str, Any], where: str) -> LoraSpec:
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
        raise AdapterError(f"{where!r}: adapter_config.json: {_why(error)}") from None


def _architecture(config: Mapping[str, Any]) -> str | None:
    """The head's class, from the model class that PEFT notes where it knows no task_type (images, audio)."""
    noted = config.get("auto_mapping")
    name = noted.get("base_model_class") if isinstance(noted, dict) else None
    kind = name.rpartition("For")[2] if isinstance(name, str) and "For" in name else None
    return f"AutoModelFor{kind}" if kind else None


def _why(error: ValidationError) -> str:
    """What pydantic found, on one line."""
    found = [(".".join(map(str, problem["loc"])), problem["msg"], problem["input"]) for problem in error.errors()]
    return "; ".join(f"{key}: {text.removeprefix('Value error, ')} (given: {given!r})" for key, text, given in found)


def _read_tensors(folder: Path, where: str) -> dict[str, Tensor]:
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
        if not key.startswith(_PREFIX):
            raise AdapterError(f"{where!r}: key {key!r} does not begin with {_PREFIX!r}; it was not saved by PEFT")
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise AdapterError(f"{where!r}: tensor {key!r} holds values that are not finite numbers")
        name = key.removeprefix(_PREFIX)
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


def _modules_of(head: Mapping[str, Tensor]) -> tuple[str, ...]:
    return tuple(sorted({name.split(".")[0] for name in head}))
