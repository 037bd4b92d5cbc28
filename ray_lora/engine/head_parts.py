"""What a plain class's head consists of: modules that own tensors, and each tensor's shape for any number of labels.

It reads classes; it computes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ray_lora.adapters.peft_folder import COUNTER
from ray_lora.errors import AdapterError

Kind = Literal["weight", "undecayed", "kept"]  # trained; trained without weight decay; never trained

# what PEFT adds below a target layer
_PEFT_NAMES = ("lora_A", "lora_B", "lora_dropout", "lora_embedding_A", "lora_embedding_B", "base_layer", "default")
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase, nn.RMSNorm)
# transformers.Trainer.get_decay_parameter_names: what is not decayed
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """One tensor of a head.

    Attributes:
        name: in the plain class's state dict.
        shape: of a head of the most labels; slope: how many entries of each axis belong to one label.
    """

    name: str
    shape: tuple[int, ...]
    slope: tuple[int, ...]
    kind: Kind

    def cut(self, fewer: int) -> tuple[int, ...]:
        """The shape for so many labels less."""
        return tuple(size - fewer * slope for size, slope in zip(self.shape, self.slope, strict=True))

    @property
    def labels_axis(self) -> int | None:
        """An axis that grows with the labels."""
        return next((axis for axis, slope in enumerate(self.slope) if slope), None)


def reordered(
    parts: Sequence[Part], tensors: Mapping[str, Tensor], labels: int, order: Sequence[int]
) -> dict[str, Tensor]:
    """A head's tensors whose outputs are in another order; without those of which the class does not tell which entries
    are which label's.

    Args:
        order: for each new place the old one.
    """
    index, found = torch.tensor(order), {}
    for part in parts:
        axis, tensor = part.labels_axis, tensors.get(part.name)
        if tensor is None:
            continue
        if axis is None:
            found[part.name] = tensor
        elif tensor.shape[axis] == labels and sum(map(bool, part.slope)) == 1:
            found[part.name] = tensor.index_select(axis, index)
    return found


def owners(model: nn.Module, prefix: str, architecture: str) -> dict[str, nn.Module]:
    """The head's modules that own tensors, by name.

    Raises:
        AdapterError: a tensor is the base's own or is held twice, or belongs to no module of its own.
    """
    backbone: Any = getattr(model, prefix)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    seen = {id(tensor) for tensor in [*backbone.parameters(), *backbone.buffers()]}
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name == prefix or name.startswith(f"{prefix}."):
            continue
        tensors = own_tensors(module)
        if not tensors:
            continue
        full = [f"{name}.{part}" if name else part for part in tensors]
        shared = [key for key, tensor in zip(full, tensors.values(), strict=True) if id(tensor) in seen or key in tied]
        if shared:
            raise AdapterError(
                f"head class {architecture} ties {shared[0]!r} to another weight; a head has weights of its own: "
                "untie it (tie_word_embeddings: false), or train low-rank pairs alone"
            )
        seen.update(map(id, tensors.values()))
        if not name or any(own_tensors(child) for child in list(module.modules())[1:]):
            raise AdapterError(
                f"head class {architecture} has parameters {full[:3]} outside of a module of their own, such as a "
                "Linear, convolution or norm layer; such a head is not supported"
            )
        found[name] = module
    if not found:
        raise AdapterError(f"head class {architecture} has no parameters on this base; such a head is not supported")
    return found


def saved_modules(model: nn.Module, names: Iterable[str], architecture: str) -> tuple[str, ...]:
    """The top-level modules of the head's modules, PEFT's `modules_to_save`.

    Raises:
        AdapterError: PEFT, which goes by the ends of names, would take another module for one of them.
    """
    saved = tuple(sorted({name.split(".")[0] for name in names}))
    others = [*_PEFT_NAMES, *(name for name, _ in model.named_modules() if name not in saved)]
    for top in saved:
        alike = [other for other in others if other.endswith(top)]
        if alike:
            raise AdapterError(
                f"head class {architecture} has a module {top!r}, and PEFT would take {alike[0]!r} for it, which ends "
                "alike; give the head's module another name"
            )
    return saved


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What the module itself adds to a state dict, but for the counters of batch norms."""
    buffers = {name: value for name, value in module._buffers.items() if name not in module._non_persistent_buffers_set}
    own = {**module._parameters, **buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None and name != COUNTER}


def parts_of(modules: Mapping[str, nn.Module], wider: Mapping[str, nn.Module], architecture: str) -> list[Part]:
    """Every tensor of a head, from its modules and those of a head with one label more.

    Raises:
        AdapterError: a tensor is not of floating-point numbers, or the two heads have different tensors.
    """
    parts = []
    if set(modules) != set(wider):
        odd = sorted(set(modules) ^ set(wider))[:3]
        raise AdapterError(f"head class {architecture} has modules {odd} for some numbers of labels only")
    for owner, module in modules.items():
        more = own_tensors(wider[owner])
        for name, tensor in own_tensors(module).items():
            full = f"{owner}.{name}"
            if not tensor.is_floating_point():
                raise AdapterError(f"head class {architecture} keeps {tensor.dtype} in {full!r}; only numbers train")
            slope = tuple(big - small for small, big in zip(tensor.shape, more[name].shape, strict=True))
            parts.append(Part(full, tuple(tensor.shape), slope, _kind(full, module, name)))
    return parts


def _kind(full: str, module: nn.Module, name: str) -> Kind:
    if name not in module._parameters:
        return "kept"
    return "undecayed" if isinstance(module, _NORMS) or _UNDECAYED.search(full) else "weight"
