"""One head by itself: numbers of its own outside every slot, run on outputs of the backbone that were kept.

What is fitted on a frozen base needs no engine that trains and no free slot. It knows tensors, not tasks.

    head = LoneHead(base, spec)
    outputs = head(hidden, inputs)       # as the plain class answers these rows
    losses.sum().backward()              # adds to head.grad
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ray_lora.bases.base import Base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine.engine import AdapterEngine
from ray_lora.engine.heads import Head
from ray_lora.engine.routing import Routing, tensors_in
from ray_lora.engine.slotted import SlotLinear
from ray_lora.errors import AdapterError

_EXAMPLE = 5  # tokens of a row that tells how a head ends
_TRIED = 0.3  # spread of the numbers with which it is asked
_SEED = 0  # of where it begins: the same for whoever asks
_CONSTANT = 1e-6  # a spread below it is an input that is the same for all rows
_OWN = 1  # its row; row 0 is what a head class compares in


def last_layer(engine: AdapterEngine, spec: HeadSpec) -> tuple[str, ...]:
    """The tensors of the Linear layer that such a head ends in: all that it gives grows with them, so that half of
    them is half of every output. None for a head that ends otherwise; by their names in the plain class."""
    base = engine.base
    engine.reserve_head(spec)
    inputs = engine.cast(base.batch(base.examples([_EXAMPLE])))
    with torch.no_grad():
        return LoneHead(base, spec).ends_in(engine.hidden(inputs, torch.zeros(1, dtype=torch.long)), inputs)


class LoneHead:
    """A head that begins as every fresh one does, from one seed.

    Attributes:
        numbers: what is trained, [numbers], weights first; grad: its gradients, added up until they are cleared.
        weights: how many of the numbers are weights, the rest are biases and norms.
    """

    def __init__(self, base: Base, spec: HeadSpec) -> None:
        self._head, self._labels, self._device = Head(base, spec), spec.num_labels, base.device
        if self._head.own is not None:
            raise AdapterError(
                f"the head of {spec.architecture} is the base's own and never trained, so there is none to fit; leave "
                "training.head_start out"
            )
        weights, undecayed, kept = self._head.sizes
        exact = torch.promote_types(base.dtype, torch.float32)
        flat = torch.zeros(2, weights + undecayed + kept, device=base.device, dtype=exact)
        grad = torch.zeros(2, weights + undecayed, device=base.device, dtype=exact)
        self._head.place(flat, grad)
        self._head.init(_OWN, spec.num_labels, torch.Generator().manual_seed(_SEED), spec.labels)
        self._flat, self.weights = flat, weights
        self.numbers, self.grad = flat[_OWN, : weights + undecayed], grad[_OWN]

    def __call__(self, hidden: Any, inputs: Mapping[str, Tensor]) -> Any:
        """The plain class's outputs for rows whose backbone gave `hidden` for `inputs`."""
        rows = next(iter(inputs.values())).shape[0]
        slots = torch.full((rows,), _OWN, device=self._device)
        return self._head(hidden, dict(inputs), Routing.of(slots, [0, 0]), self._labels)

    def tensors(self) -> dict[str, Tensor]:
        """Copies of its tensors by their names in the plain class."""
        return {name: view.clone() for name, view in self._head.views(self._flat, _OWN, self._labels).items()}

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values that `tensors` gave."""
        for name, view in self._head.views(self._flat, _OWN, self._labels).items():
            view.copy_(tensors[name])

    def ends_in(self, hidden: Any, inputs: Mapping[str, Tensor]) -> tuple[str, ...]:
        """The tensors of the Linear layer with which all that the head gives for these rows grows in proportion, by
        their names in the plain class; none where no layer is the last of everything."""
        kept = self.numbers.clone()
        self.numbers.copy_(torch.empty(kept.shape).normal_(0, _TRIED, generator=torch.Generator().manual_seed(_SEED)))
        views = self._head.views(self._flat, _OWN, self._labels)
        layers = [module for module in self._head.of(self._labels).modules() if isinstance(module, SlotLinear)]
        try:
            before = self._numbers_of(hidden, inputs)
            for layer in layers[::-1]:
                names = tuple(f"{layer.name}.{part}" for part in layer.shapes)
                for name in names:
                    views[name] /= 2
                after = self._numbers_of(hidden, inputs)
                if all(
                    torch.allclose(2 * new, old, rtol=1e-5, atol=1e-7) for old, new in zip(before, after, strict=True)
                ):
                    return names
                for name in names:
                    views[name] *= 2
        finally:
            self.numbers.copy_(kept)
        return ()

    def _numbers_of(self, hidden: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [given for given in tensors_in(self(hidden, inputs)) if given.is_floating_point()]

    def units(self, rows: Iterable[tuple[Any, Mapping[str, Tensor]]], add: Callable[[Tensor], None]) -> Tensor:
        """In what each number is measured, [numbers]: a Linear layer's weight by the spread of its input over these
        rows, as a standard scaler does; 1 for all others.

        Args:
            rows: (hidden, inputs) of each pass.
            add: sums a tensor over all workers, in place.
        """
        model = self._head.of(self._labels)
        layers = {module.name: module for module in model.modules() if isinstance(module, SlotLinear)}
        sums = {name: self._flat.new_zeros(3, layer.shapes["weight"][1]).double() for name, layer in layers.items()}
        mask: Tensor | None = None

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach()
            held = mask is not None and x.dim() > 2 and x.shape[:2] == mask.shape
            x = (x[mask.to(x.device).bool()] if held else x.reshape(-1, x.shape[-1])).double()  # type: ignore[union-attr]
            sums[module.name] += torch.stack([torch.ones_like(x[0]) * len(x), x.sum(0), x.square().sum(0)])  # type: ignore[index]

        hooks = [layer.register_forward_pre_hook(note) for layer in layers.values()]
        try:
            for hidden, inputs in rows:
                mask = inputs.get("attention_mask")
                with torch.no_grad():
                    self(hidden, inputs)
        finally:
            for hook in hooks:
                hook.remove()
        flat = torch.ones_like(self._flat[:, : len(self.numbers)])
        views = self._head.views(flat, _OWN, self._labels)
        for name, found in sums.items():
            add(found)
            count, total, square = found
            spread = (square / count - (total / count).square()).clamp(min=0).sqrt()
            weight = views[f"{name}.weight"]
            weight.copy_((1 / torch.where(spread > _CONSTANT, spread, 1.0)).expand_as(weight))
        return flat[_OWN]
