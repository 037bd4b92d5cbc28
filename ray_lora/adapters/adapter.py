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
from pydantic import ValidationError
from safetensors.torch import save as dump_tensors
from torch import Tensor

from ray_lora.adapters.card import CARD, Card, Merged, Parent
from ray_lora.adapters.peft_config import (
    architecture_of,
    check_head,
    check_targets,
    origin_of,
    read_spec,
)
from ray_lora.adapters.peft_folder import (
    CONFIG,
    COUNTER,
    PREFIX,
    WEIGHTS,
    LowRank,
    find,
    modules_of,
    read_json,
    read_tensors,
    split,
)
from ray_lora.adapters.readme import README, readme
from ray_lora.bounds import named, reason
from ray_lora.errors import AdapterError
from ray_lora.recipe import Json, LoraSpec

__all__ = ["CARD", "Adapter", "Card", "Merged", "Parent", "layer_rank", "layer_scaling", "pattern_value"]


@dataclass(frozen=True)
class Adapter:
    """Low-rank tensors by module name of the plain class, the head's tensors by parameter name, config and card."""

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
        named = {PREFIX + name: tensor for name, tensor in self.head.items()}
        for name, pair in self.layers.items():
            a, b = ("lora_embedding_A", "lora_embedding_B") if pair.embedding else ("lora_A.weight", "lora_B.weight")
            named[f"{PREFIX}{name}.{a}"] = pair.A
            named[f"{PREFIX}{name}.{b}"] = pair.B
        return named

    @cached_property
    def sha256(self) -> str:
        """Content hash: every tensor's name, dtype, shape and bytes, the config, and of the card the task and
        the attention."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        task = self.card.task.recorded() if self.card.task else None
        config = self.config.model_dump(mode="json", exclude={"lora_dropout", "batch_norms"})
        config["target_modules"] = sorted(self.layers)  # what is targeted, however it was written
        told = [config, task] if self.card.attention is None else [config, task, self.card.attention]
        digest.update(json.dumps(told, sort_keys=True).encode())
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
        tensors |= {
            f"{name.removesuffix('running_mean')}{COUNTER}": torch.zeros((), dtype=torch.int64)
            for name in self.tensors
            if name.endswith(".running_mean")
        }
        (folder / WEIGHTS).write_bytes(dump_tensors(tensors, metadata={"format": "pt"}))
        card = self.card.model_copy(update={"sha256": self.sha256})
        (folder / CARD).write_text(card.model_dump_json(indent=2))
        (folder / README).write_text(readme(card, self.config, self.layers, self.num_parameters), encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps(self._peft_config(), indent=2))
        return self.sha256

    def _peft_config(self) -> dict[str, Json]:
        spec = self.config.model_dump(mode="json", exclude_none=True, exclude={"batch_norms"})
        if float(self.config.lora_alpha).is_integer():
            spec["lora_alpha"] = int(self.config.lora_alpha)
        spec["target_modules"] = sorted(self.layers)  # exact names: what was resolved here is what PEFT must wrap
        return spec | {
            "peft_type": "LORA",
            "task_type": self.peft_type,
            "base_model_name_or_path": self.card.base,
            "revision": self.card.base_revision,
            "modules_to_save": list(self.head_modules) or None,
            "inference_mode": True,
            "bias": "none",
        }

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read a PEFT LoRA folder, ours or another saver's; a Trainer's folder with one checkpoint in it is that one.

        Without a card the base is the one that the config names.

        Raises:
            AdapterError: a file is missing, torn, not safetensors, or holds what cannot be served exactly; or the
                content is not what the card's hash says.
        """
        where = str(folder)
        folder = find(folder, where)
        config = read_json(folder / CONFIG, where)
        spec = read_spec(config, where)
        card = Card()
        if (folder / CARD).exists():
            try:
                card = Card.model_validate(read_json(folder / CARD, where))
            except ValidationError as error:
                raise AdapterError(f"{where!r}: {CARD} is not a card of this library: {reason(error)}") from None
        layers, head = split(read_tensors(folder, where), where)
        check_targets(config, layers, where)
        check_head(config, head, where)
        _check_ranks(spec, layers, where)
        known = {} if card.base is not None else origin_of(config, where)
        if card.architecture is None and (architecture := architecture_of(config)) is not None:
            known["architecture"] = architecture
        saved = tuple(config.get("modules_to_save") or ()) or modules_of(head)
        adapter = cls(spec, layers, head, card.model_copy(update=known), config.get("task_type"), saved)
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


def _check_ranks(config: LoraSpec, layers: Mapping[str, LowRank], where: str) -> None:
    """AdapterError where a pair has another rank than the config gives it: plain PEFT would not load it, and alpha/r
    could mean either."""
    for name, pair in layers.items():
        told = layer_rank(config, name)
        if pair.rank != told:
            raise AdapterError(
                f"{where!r}: layer {named(name)} has rank {pair.rank}, adapter_config.json gives it {told} "
                "(r, rank_pattern), and plain PEFT would not load it; put the ranks of the file into rank_pattern"
            )
