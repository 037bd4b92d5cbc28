"""A plain class as a graph sees it: weights as constants, and the numbers of adapters as inputs or merged into them.

Each target layer adds its low-rank term from inputs of the graph, `NAME.A` [slots, rank, in] and `NAME.B` [slots, out,
rank] with the scaling in B, of which each row takes those of its own slot. A head's layers are taken from `NAME.weight`
and `NAME.bias` with an axis of slots in front. It knows modules and tensors: no files, no tasks and no ONNX.

    graph = with_inputs(base, spec, adapter.layers, adapter.head)
    graph({"input_ids": ids, "attention_mask": mask}, slots, stacks)     # {"logits": [rows, labels]}
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.base import Base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine.layers import is_convolution, is_linear
from ray_lora.errors import AdapterError

_OUTPUTS = ("logits", "start_logits", "end_logits")


@dataclass
class _Given:
    """What a pass was given: the slot of each row, [rows], and the stacked numbers by name."""

    slots: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    stacks: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, name: str) -> Tensor:
        """Each row's own, [rows, ...]."""
        return self.stacks[name].index_select(0, self.slots)


class Graph(nn.Module):
    """A plain class behind inputs by name, whose outputs are its logits by name."""

    def __init__(self, model: nn.Module, given: _Given) -> None:
        super().__init__()
        self.model, self.given = model, given

    def forward(
        self, batch: dict[str, Tensor], slots: Tensor | None = None, stacks: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """batch: the class's inputs, each [rows, ...]; slots and stacks of a graph that has adapters as inputs."""
        if slots is not None and stacks is not None:
            self.given.slots, self.given.stacks = slots, stacks
        outputs = self.model(**batch)
        return {name: outputs[name] for name in _OUTPUTS if getattr(outputs, name, None) is not None}


def with_inputs(base: Base, spec: HeadSpec, names: Iterable[str], head: Mapping[str, Tensor]) -> Graph:
    """The class of a base with adapters on these layers as inputs.

    Args:
        names: target layers by their names in the plain class.
        head: one adapter's head, for its names.

    Raises:
        AdapterError: a layer or a part of the head is of a kind that has no form with inputs.
    """
    model, given = _plain(base, spec, head), _Given()
    for name in names:
        module = model.get_submodule(name)
        if is_linear(module):
            model.set_submodule(name, _LoraProduct(name, module, given))
        elif type(module) is nn.Conv2d:
            model.set_submodule(name, _LoraConvolution(name, module, given))
        else:
            raise AdapterError(
                f"adapters on {name!r}, a {type(module).__name__}, cannot be inputs of a graph; export with --merge"
            )
    for name in sorted({key.rpartition(".")[0] for key in head}):
        module = model.get_submodule(name)
        if not isinstance(module, nn.Linear):
            raise AdapterError(
                f"the head's {name!r} is a {type(module).__name__}, which cannot be an input of a graph; export with "
                "--merge"
            )
        model.set_submodule(name, _HeadProduct(name, module.bias is not None, given))
    return Graph(_constants(model), given)


def merged(base: Base, spec: HeadSpec, adapter: Adapter) -> Graph:
    """The class of a base with one adapter's changes in its weights, and its head."""
    model = _plain(base, spec, adapter.head)
    for name, pair in adapter.layers.items():
        module = model.get_submodule(name)
        change = adapter.scaling(name) * (pair.B.flatten(1).double() @ pair.A.flatten(1).double())
        weight = module.get_parameter("weight")
        if pair.embedding or not (isinstance(module, nn.Linear) or is_convolution(module)):
            change = change.T  # an Embedding is [words, width], GPT-2's Conv1D [in, out]
        if getattr(module, "transposed", False):
            raise AdapterError(f"an adapter on {name!r}, a transposed convolution, cannot be merged yet")
        told = (weight.double() + change.reshape(weight.shape)).to(weight.dtype)
        module.register_parameter("weight", nn.Parameter(told, requires_grad=False))
    return Graph(_constants(model), _Given())


def _plain(base: Base, spec: HeadSpec, head: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the base under its plain class, with this head."""
    model = base.plain(spec)
    setattr(model, base.prefix, copy.deepcopy(base.backbone))
    odd = model.load_state_dict({name: tensor.float() for name, tensor in head.items()}, strict=False, assign=True)
    empty = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if odd.unexpected_keys or empty:
        raise AdapterError(f"the head of {spec.architecture} has no numbers for {[*odd.unexpected_keys, *empty][:3]}")
    return model.requires_grad_(False).eval()


def _constants(model: nn.Module) -> nn.Module:
    """The model with every product's weight laid as a graph multiplies with it, so that it is one constant."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            model.set_submodule(name, _Product(module))
    return model


class _Product(nn.Module):
    """x W + b with W [in, out]."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        weight = module.weight.T if isinstance(module, nn.Linear) else module.weight
        self.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
        self.bias = module.bias

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


class _LoraProduct(_Product):
    """A target layer: each row's own low-rank term beside the base's product."""

    def __init__(self, name: str, module: Any, given: _Given) -> None:
        super().__init__(module)
        self.name, self.given = name, given

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.given.of(f"{self.name}.A"), self.given.of(f"{self.name}.B")
        rows = x.unsqueeze(1) if x.dim() == 2 else x
        term = (rows @ a.transpose(1, 2)) @ b.transpose(1, 2)
        return super().forward(x) + (term.squeeze(1) if x.dim() == 2 else term)


class _LoraConvolution(nn.Conv2d):
    """A target layer: A of all slots as one convolution of the layer's own kind, of which each row keeps its own
    channels, and its own B behind it. A graph's convolution cannot have groups that follow from its rows."""

    def __init__(self, name: str, module: nn.Conv2d, given: _Given) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(module.__dict__)  # a class may read the layer's sizes
        self.name, self.given = name, given

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        stack, groups = self.given.stacks[f"{self.name}.A"], self.groups
        slots, rank = stack.shape[:2]
        weight = stack.reshape(slots * rank, *self.weight.shape[1:])
        weight = weight.repeat(groups, 1, 1, 1)  # every group's own channels by the same A
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        wide = F.conv2d(x, weight, None, self.stride, padding, self.dilation, groups)
        wide = wide.reshape(x.shape[0], groups, slots, rank, -1)
        chosen = self.given.slots.reshape(-1, 1, 1, 1, 1).expand(-1, groups, 1, rank, wide.shape[-1])
        own = wide.gather(2, chosen).squeeze(2)  # [rows, groups, rank, pixels]
        b = self.given.of(f"{self.name}.B").unflatten(1, (groups, -1))
        term: Tensor = (b @ own).reshape(y.shape)
        return y + term


class _HeadProduct(nn.Module):
    """A head's layer, all of whose numbers are each row's own."""

    def __init__(self, name: str, bias: bool, given: _Given) -> None:
        super().__init__()
        self.name, self.biased, self.given = name, bias, given

    def forward(self, x: Tensor) -> Tensor:
        weight = self.given.of(f"{self.name}.weight").transpose(1, 2)
        rows = x.unsqueeze(1) if x.dim() == 2 else x
        product = rows @ weight
        if self.biased:
            product = product + self.given.of(f"{self.name}.bias").unsqueeze(1)
        return product.squeeze(1) if x.dim() == 2 else product
