"""What stays behind a cut takes over what it can of what went: a least-squares fit on what the base itself computes.

The product that reads the units, y = W a + b, becomes W' a_kept + b' with the smallest squared error on rows, its
weights held near the base's own (a ridge): W' = W_kept + W_cut C_cut,kept (C_kept,kept + r I)^-1, C the activations'
covariance, and b' keeps the mean. This is the refit of Kwon et al. 2022 (arXiv 2204.09656) and of optimal brain
surgery (Hassibi & Stork 1993), one product at a time. Units that are zero change nothing: W' and b' are then the base's
own. Where a batch norm follows, b' is a part of its mean; without a bias and a norm C is the second moment.

    changed = refit(engine, task, features, state, "bert.", kind, plan, sizes)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import cut_passes
from ray_lora.inference.windows import spread_windows
from ray_lora.pruning.cut import kept
from ray_lora.pruning.kinds import Kind, weight
from ray_lora.pruning.plan import Plan
from ray_lora.pruning.shapes import Sizes
from ray_lora.tasks import Features, Task

RIDGE = 1e-2  # of the mean variance of what stays
_MOST_ROWS = 64  # in one pass


@dataclass
class Moments:
    """Of what one product reads, summed over tokens: [in, in] and [in] float64."""

    products: Tensor
    sums: Tensor
    count: int = 0

    def add(self, values: Tensor) -> None:
        """Tokens' activations, [tokens, in]."""
        values = values.float()
        self.products += (values.T @ values).double()
        self.sums += values.sum(0, dtype=torch.float64)
        self.count += len(values)


def refit(
    engine: AdapterEngine,
    task: Task,
    features: Sequence[Features],
    state: Mapping[str, Tensor],
    prefix: str,
    kind: Kind,
    plan: Plan,
    sizes: Sizes,
) -> dict[str, Tensor]:
    """The tensors of `state` that the fit changes, by their names; those that are cut away are left as they are.

    Args:
        engine: on the whole base; its adapters are not used.
        state: of the plain class. prefix: what its backbone's names begin with.
    """
    wanted: dict[str, Tensor] = {}  # module of the backbone -> its inputs that stay
    for number, layer in enumerate(plan.layers):
        for inner in (kind.columns, *([kind.attention.output] if kind.attention is not None else ())):
            name, (_, inputs) = f"{kind.blocks}.{layer}.{inner}", kept(inner, number, kind, plan, sizes)
            if inputs is not None and len(inputs) < weight(engine.base.backbone, name).shape[1]:
                wanted[name] = inputs
    found: dict[str, Tensor] = {}
    for name, moments in _moments(engine, task, features, list(wanted)).items():
        told, takes, sign = state[f"{prefix}{name}.weight"], f"{prefix}{name}.bias", 1
        if kind.norm is not None:
            takes, sign = f"{prefix}{name.rpartition('.')[0]}.{kind.norm}.running_mean", -1
        bias = state.get(takes)
        new, shift = fitted(told.flatten(1), moments, wanted[name], centred=bias is not None)
        found[f"{prefix}{name}.weight"] = new.view_as(told).to(told.dtype)
        if bias is not None:
            found[takes] = (bias.double() + sign * shift).to(bias.dtype)
    return found


def fitted(weight: Tensor, moments: Moments, inputs: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """The weight [out, in] whose kept inputs do the work of all, and what its bias gains [out], in float64.

    Args:
        inputs: numbers of those that stay. centred: whether there is a bias that keeps the mean.
    """
    gone = torch.ones(weight.shape[1], dtype=torch.bool)
    gone[inputs] = False
    mean = moments.sums / moments.count
    spread = moments.products / moments.count - (torch.outer(mean, mean) if centred else 0)
    own = spread[inputs][:, inputs]
    own.diagonal().add_(RIDGE * own.diagonal().mean().clamp(min=1e-12))
    new = weight.double().clone()
    lost = new[:, gone]
    gain = lost @ torch.linalg.solve(own, spread[inputs][:, gone]).T
    new[:, inputs] += gain
    return new, lost @ mean[gone] - gain @ mean[inputs]


def _moments(
    engine: AdapterEngine, task: Task, features: Sequence[Features], names: Sequence[str]
) -> dict[str, Moments]:
    """Of what these modules of the bare base read for rows; padding is left out."""
    held = {}
    for name in names:
        width = weight(engine.base.backbone, name).shape[1]
        held[name] = Moments(torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))
    rows = spread_windows({0: task}, features, [0] * len(features)).features
    sizes = [task.size(row) for row in rows]
    lengths = engine.sharing.lengths
    mask: list[Tensor | None] = [None]
    with _watched(engine.base.backbone, held, mask), torch.no_grad():
        for chunk in cut_passes(engine, lengths, sizes, [0] * len(rows), _MOST_ROWS) if names else ():
            batch = task.collate([rows[row] for row in chunk])
            mask[0] = None if lengths == "joined" else batch.get("attention_mask")
            engine.hidden(batch, torch.zeros(len(chunk), dtype=torch.long))
    return held


@contextmanager
def _watched(backbone: nn.Module, held: Mapping[str, Moments], mask: Sequence[Tensor | None]) -> Iterator[None]:
    """While it lasts, what these modules read is added up."""

    def watch(moments: Moments) -> Any:
        def note(_: nn.Module, given: tuple[Any, ...]) -> None:
            values: Tensor = given[0].detach()
            if values.dim() == 4:  # pictures: a pixel is a token
                values = values.movedim(1, -1)
            told = mask[0]
            whole = told is None or values.shape[:2] != told.shape
            moments.add(values.flatten(0, -2) if whole else values[told.bool()])  # type: ignore[union-attr]

        return note

    hooks = [backbone.get_submodule(name).register_forward_pre_hook(watch(moments)) for name, moments in held.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
