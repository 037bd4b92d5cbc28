"""A plain class as a graph sees it: weights as constants, and the numbers of adapters as inputs or merged into them.

Each target layer adds its low-rank term from inputs of the graph, `NAME.A` [slots, rank, in] and `NAME.B` [slots, out,
rank] with the scaling in B, of which each row takes those of its own slot. A head's layers are taken from `NAME.weight`
and `NAME.bias` with an axis of slots in front. It knows bases and tensors: no files, no tasks and no ONNX.

    graph = with_inputs(base, spec, adapter.layers, adapter.head)
    graph({"input_ids": ids, "attention_mask": mask}, slots, stacks)     # {"logits": [rows, labels]}
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.base import Base
from ray_lora.bases.geometry import Geometry
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine.layers import is_convolution
from ray_lora.engine.own_head import own_values, tied_tables
from ray_lora.errors import AdapterError
from ray_lora.export.layers import Given, Product, own, target

OUTPUTS = ("logits", "start_logits", "end_logits", "objectness", "boxes")


def outputs_of(outputs: Any) -> dict[str, Tensor]:
    """Of what a plain class gives those that are of `OUTPUTS`, by name."""
    whole = isinstance(outputs, Mapping)
    found: dict[str, Any] = {name: outputs.get(name) if whole else getattr(outputs, name, None) for name in OUTPUTS}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


class Graph(nn.Module):
    """A plain class behind inputs by name, whose outputs are its logits by name."""

    def __init__(self, model: nn.Module, given: Given) -> None:
        super().__init__()
        self.model, self.given = model, given

    def forward(
        self, batch: dict[str, Tensor], slots: Tensor | None = None, stacks: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """batch: the class's inputs, each [rows, ...]; slots and stacks of a graph that has adapters as inputs."""
        self.given.take(slots, stacks)
        return outputs_of(self.model(**batch))


def with_inputs(base: Base, spec: HeadSpec, names: Iterable[str], head: Mapping[str, Tensor]) -> Graph:
    """The class of a base with adapters on these layers as inputs.

    Args:
        names: target layers by their names in the plain class.
        head: one adapter's head, for its names.

    Raises:
        AdapterError: a layer or a part of the head is of a kind that has no form with inputs.
    """
    model, given = _plain(base, spec, head), Given()
    for name in names:
        module = model.get_submodule(name)
        layer = target(name, module, given)
        if layer is None:
            raise AdapterError(
                f"adapters on {name!r}, a {type(module).__name__}, cannot be inputs of a graph; export with --merge"
            )
        model.set_submodule(name, layer)
    for name in sorted({key.rpartition(".")[0] for key in head}):
        module = model.get_submodule(name)
        layer = own(name, module, given)
        if layer is None:
            raise AdapterError(
                f"the head's {name!r} is a {type(module).__name__}, which cannot be an input of a graph; export with "
                "--merge"
            )
        model.set_submodule(name, layer)
    return Graph(_constants(model, _tie(model, base, spec)), given)


def merged(base: Base, spec: HeadSpec, adapter: Adapter) -> Graph:
    """The class of a base with one adapter's changes in its weights, and its head."""
    model = _plain(base, spec, adapter.head)
    for name, pair in adapter.layers.items():
        module = model.get_submodule(name)
        change = adapter.scaling(name) * (pair.B.flatten(1).double() @ pair.A.flatten(1).double())
        weight = module.get_parameter("weight")
        if pair.embedding or not (isinstance(module, nn.Linear) or is_convolution(module)):
            change = change.T  # an Embedding is [words, width], GPT-2's Conv1D [in, out]
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            shape = (module.in_channels // module.groups, *module.kernel_size)
            change = Geometry.of(module).laid(change.unflatten(1, shape))  # type: ignore[arg-type]
        told = (weight.double() + change.reshape(weight.shape)).to(weight.dtype)
        module.register_parameter("weight", nn.Parameter(told, requires_grad=False))
    return Graph(_constants(model, _tie(model, base, spec)), Given())


def _plain(base: Base, spec: HeadSpec, head: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the base under its plain class, with this head, or the base's own."""
    model = base.plain(spec)
    own = own_values(base, spec, model)
    head = head if own is None else own
    setattr(model, base.prefix, copy.deepcopy(base.backbone))
    odd = model.load_state_dict({name: tensor.float() for name, tensor in head.items()}, strict=False, assign=True)
    empty = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if odd.unexpected_keys or empty:
        raise AdapterError(f"the head of {spec.architecture} has no numbers for {[*odd.unexpected_keys, *empty][:3]}")
    return model.requires_grad_(False).eval()


def _tie(model: nn.Module, base: Base, spec: HeadSpec) -> Collection[str]:
    """Give each output layer that is a table of the base that table again, which no adapter of such a class changes;
    returns their names."""
    tied = tied_tables(base, base.plain(spec))
    for layer, table in tied.items():
        weight = model.get_submodule(f"{base.prefix}.{table}").get_parameter("weight")
        model.get_submodule(layer).register_parameter("weight", weight)
    return tied


def _constants(model: nn.Module, tied: Collection[str] = ()) -> nn.Module:
    """The model with every product's weight laid as a graph multiplies with it, so that it is one constant; but for
    those that are tied to a table, which would be there twice."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name not in tied:
            model.set_submodule(name, Product(module))
    return model
