"""What units of a frozen base are worth to an adapter's task, from the adapter's gradients alone.

LoRAPrune (Zhang et al. 2023, arXiv 2305.18403): the gradient of a frozen weight W is told by A, B and their own
gradients, G = dB A + B dA - dB dA, and the worth of one number is (G * (W + B A)) squared. A unit's is the sum over its
numbers, the mean over batches of rows. No gradient of the base is ever computed or held.

    worth = importance_of(engine, slot, adapter, task, features, weights, kind, sizes)
    worth.rows[0]          # [rows] of the first layer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_lora.adapters.adapter import Adapter
from ray_lora.adapters.peft_folder import PREFIX
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError
from ray_lora.inference.predict import forward, passes
from ray_lora.inference.windows import spread_windows
from ray_lora.pruning.kinds import Kind
from ray_lora.pruning.shapes import Sizes
from ray_lora.tasks import Features, Task

BATCH = 16  # rows whose gradients are summed before they are squared, as in a step of training


@dataclass(frozen=True)
class Importance:
    """Of each layer, in the base's order.

    Attributes:
        rows: of the feed-forward rows, or the channels, [rows] float64 each. groups: of the groups of heads, [groups];
            none where heads cannot go. layers: of all of a layer's numbers that hold adapters.
    """

    rows: tuple[Tensor, ...]
    groups: tuple[Tensor, ...]
    layers: tuple[float, ...]


def importance_of(
    engine: AdapterEngine,
    slot: int,
    adapter: Adapter,
    task: Task,
    features: Sequence[Features],
    weights: Mapping[str, Tensor],
    kind: Kind,
    sizes: Sizes,
) -> Importance:
    """Read from rows with targets.

    Args:
        engine: built with `train=True`; `slot` holds the adapter.
        weights: of the base, by layer names of the backbone, [out, in] or [out, in, *kernel].

    Raises:
        AdapterError: the adapter leaves a layer out whose units are to be told apart, or its gradients are no numbers.
    """
    prefix = engine.residents[slot].prefix
    check_targets(adapter, prefix, kind, sizes)
    whole, batches = sizes.whole, 0
    rows = [torch.zeros(count, dtype=torch.float64) for count in sizes.units]
    groups = torch.zeros(whole.layers, whole.groups or 0, dtype=torch.float64)
    layers = torch.zeros(whole.layers, dtype=torch.float64)
    for gradients in _gradients(engine, slot, task, features):
        batches += 1
        for layer in range(whole.layers):
            for inner, worth in _of_layer(adapter, prefix, f"{kind.blocks}.{layer}.", gradients, weights):
                layers[layer] += worth.sum(dtype=torch.float64)
                if not len(rows[layer]):
                    continue
                if inner in kind.rows:
                    rows[layer] += worth.sum(1, dtype=torch.float64)
                elif inner == kind.columns:
                    rows[layer] += worth.sum(0, dtype=torch.float64)
                elif kind.attention is not None and inner in kind.products:
                    axis = 0 if inner == kind.attention.output else 1
                    groups[layer] += worth.sum(axis, dtype=torch.float64).reshape(groups.shape[1], -1).sum(1)
    if not bool(layers.isfinite().all()):
        raise AdapterError("the adapter's gradients on these rows are no finite numbers; train it at a lower rate")
    told = groups / batches if whole.groups is not None else groups[:0]
    return Importance(tuple(one / batches for one in rows), tuple(told), tuple((layers / batches).tolist()))


def check_targets(adapter: Adapter, prefix: str, kind: Kind, sizes: Sizes) -> None:
    """AdapterError for an adapter without a pair on a layer that units are made of.

    Args:
        prefix: what the names of its layers begin with.
    """
    made = [layer for layer, count in enumerate(sizes.units) if count]
    wanted = [f"{prefix}{kind.blocks}.{layer}.{name}" for layer in made for name in kind.products]
    lacking = [name for name in wanted if name not in adapter.layers]
    if lacking:
        raise AdapterError(
            f"the adapter has no pair on {lacking[0]!r}, so nothing tells what its units are worth; train one with "
            f"lora.target_modules: {list(kind.products) if kind.channels else 'all-linear'}"
        )


def _of_layer(
    adapter: Adapter, prefix: str, block: str, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """The worth of each number of a layer's weights, by their names in it, [out, in]."""
    for name, pair in adapter.layers.items():
        inner = name.removeprefix(prefix)
        if inner.startswith(block):
            scaling = adapter.scaling(name)
            a, b = pair.A.float().flatten(1), pair.B.float().flatten(1) * scaling
            da = gradients[f"{PREFIX}{name}.lora_A.weight"].flatten(1)
            db = gradients[f"{PREFIX}{name}.lora_B.weight"].flatten(1) / scaling
            gradient = db @ a + (b - db) @ da
            yield inner.removeprefix(block), (gradient * (weights[inner].float().flatten(1) + b @ a)).square()


def _gradients(
    engine: AdapterEngine, slot: int, task: Task, features: Sequence[Features]
) -> Iterator[dict[str, Tensor]]:
    """The slot's gradients of the mean loss of each batch, under PEFT's keys."""
    for at in range(0, len(features), BATCH):
        spread = spread_windows({slot: task}, features[at : at + BATCH], [slot] * len(features[at : at + BATCH]))
        for flat in (engine.grad, *engine.head_grad.values()):
            flat.zero_()
        count = 0.0
        for chunk in passes(engine, {slot: task}, spread.features, spread.slots):
            for _, rows, outputs in forward(engine, {slot: task}, spread.features, spread.slots, chunk):
                losses, terms = task.loss(outputs, [spread.features[row] for row in rows])
                losses.sum().backward()
                count += float(terms.sum())
        held = engine.read(slot, [engine.grad, *engine.head_grad.values()])
        yield {name: gradient.float().cpu() / max(count, 1.0) for name, gradient in held.items()}
