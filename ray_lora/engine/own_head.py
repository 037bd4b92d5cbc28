"""A head that is the base's own: frozen, the same for all adapters, no part of any (a language model's output layer).

    values = own_values(base, HeadSpec("AutoModelForCausalLM", 49152), model)      # {"lm_head.weight": [49152, 576]}

It finds the values; `heads` runs the class with them.
"""

from __future__ import annotations

from torch import Tensor, nn

from ray_lora.bases.base import Base
from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import AdapterError

_MOST_NAMED = 3


def own_values(base: Base, spec: HeadSpec, model: nn.Module) -> dict[str, Tensor] | None:
    """Every tensor outside the backbone, by its name in the plain class: what is tied to a weight of the backbone is
    that weight, all else comes from the base's files or its builder. None where the head is an adapter's.

    Args:
        model: what `base.plain` gives for it.

    Raises:
        AdapterError: the head has another number of outputs, or the base has no values for it.
    """
    outputs = base.own_outputs(spec.architecture)
    if outputs is None:
        return None
    if spec.num_labels != outputs:
        raise AdapterError(
            f"the head of {spec.architecture} is the base's own, of {outputs} outputs; {spec.num_labels} were asked for"
        )
    inside = _named(getattr(model, base.prefix))
    names = {id(tensor): name for name, tensor in inside.items()}
    outside = {name: tensor for name, tensor in _named(model).items() if not name.startswith(f"{base.prefix}.")}
    real = _named(base.backbone)
    found = {name: real[names[id(tensor)]] for name, tensor in outside.items() if id(tensor) in names}
    held = {} if base.quantised is None else found.copy()  # tables in few bits, which `heads` puts there
    wanted = {name: tuple(tensor.shape) for name, tensor in outside.items() if name not in found}
    if wanted:
        found |= base.trained(wanted) or base.unpacked(wanted)
        fresh = base.fresh(spec)
        found |= {} if fresh is None else {name: _named(fresh)[name] for name in wanted}
    lost = [name for name in outside if name not in found or (found[name].is_meta and base.device.type != "meta")]
    if lost:
        raise AdapterError(
            f"the head of {spec.architecture} is the base's own, and base {base.id!r} has no "
            f"{', '.join(lost[:_MOST_NAMED])}; give a base that was saved with its head"
        )
    return {name: _as_base(tensor.detach(), base) for name, tensor in found.items() if name not in held} | held


def tied_tables(base: Base, model: nn.Module) -> dict[str, str]:
    """The backbone's module whose weight an output layer's is, by the layer's name in the plain class."""
    inside = {id(tensor): name for name, tensor in _named(getattr(model, base.prefix)).items()}
    return {
        name.rpartition(".")[0]: inside[id(tensor)].rpartition(".")[0]
        for name, tensor in _named(model).items()
        if not name.startswith(f"{base.prefix}.") and id(tensor) in inside
    }


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that a state dict has, tied ones under each of their names."""
    kept = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in kept.items() if isinstance(tensor, Tensor)}


def _as_base(tensor: Tensor, base: Base) -> Tensor:
    return tensor.to(base.device, base.dtype) if tensor.is_floating_point() else tensor.to(base.device)
