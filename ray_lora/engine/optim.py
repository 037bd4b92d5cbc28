"""One optimizer for all slots: torch's AdamW with one parameter group a slot.

Each slot keeps its own rate, schedule, weight decay, clipping and step count, so an adapter is stepped exactly as it
would be alone. Biases and norms are not decayed, as in Hugging Face's Trainer. The gradients of a step are sums over
rows; `step` divides each slot's by its own number of terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ray_lora.engine.engine import AdapterEngine
from ray_lora.recipe import TrainingSpec

_MOMENTS = ("exp_avg", "exp_avg_sq")


def rate_at(spec: TrainingSpec, step: int, total: int) -> float:
    """The learning rate of 0-based `step` of `total`; the formulas of transformers.get_scheduler."""
    warm = spec.warmup_steps if spec.warmup_steps >= 1 else math.ceil(spec.warmup_steps * total)
    if step < warm:
        return spec.learning_rate * step / max(1, warm)
    if spec.lr_scheduler_type == "constant":
        return spec.learning_rate
    progress = (step - warm) / max(1, total - warm)
    if spec.lr_scheduler_type == "linear":
        return spec.learning_rate * max(0.0, 1 - progress)
    return spec.learning_rate * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))


class SlotOptimizer:
    """AdamW over the slots of one engine that was built with `train=True`."""

    def __init__(self, engine: AdapterEngine) -> None:
        self.engine = engine
        self._training: dict[int, tuple[TrainingSpec, int]] = {}  # slot -> spec, total steps
        self._done: dict[int, int] = {}  # slot -> steps taken
        self._parts: dict[int, list[nn.Parameter]] = {}  # slot -> low-rank numbers, head weights, biases and norms
        self._adamw: torch.optim.AdamW | None = None

    def join(self, slot: int, spec: TrainingSpec, total: int) -> None:
        """Begin to step a resident slot for `total` steps."""
        parts = [nn.Parameter(part) for part in self._slices(slot, self.engine.flat, self.engine.head_flat)]
        groups = [
            {
                "params": [part],
                "lr": spec.learning_rate,
                "betas": (spec.adam_beta1, spec.adam_beta2),
                "eps": spec.adam_epsilon,
                "weight_decay": 0.0 if which == 2 else spec.weight_decay,
                "slot": slot,
            }
            for which, part in enumerate(parts)
        ]
        if self._adamw is None:
            self._adamw = torch.optim.AdamW(groups, fused=True)
        else:
            for group in groups:
                self._adamw.add_param_group(group)
        self._training[slot], self._done[slot], self._parts[slot] = (spec, total), 0, parts

    def leave(self, slot: int) -> None:
        """Forget a slot's moments and step count."""
        assert self._adamw is not None
        for part in self._parts.pop(slot):
            self._adamw.state.pop(part, None)
        self._adamw.param_groups = [group for group in self._adamw.param_groups if group["slot"] != slot]
        if not self._adamw.param_groups:
            self._adamw = None
        del self._training[slot], self._done[slot]

    def rate(self, slot: int) -> float:
        """The learning rate of the slot's next step."""
        spec, total = self._training[slot]
        return rate_at(spec, self._done[slot], total)

    def step(self, counts: Mapping[int, float]) -> dict[int, float]:
        """Step the slots in `counts` (slot -> number of loss terms) and clear their gradients.

        Returns:
            Each slot's gradient norm before clipping. A slot whose norm is not finite is not stepped.
        """
        assert self._adamw is not None
        slots = list(counts)
        norms = self._norms(slots, [counts[slot] for slot in slots])
        healthy = {slot for slot, norm in norms.items() if math.isfinite(norm)}
        for slot in slots:
            spec, _ = self._training[slot]
            factor = 1.0 / counts[slot]
            if spec.max_grad_norm > 0:
                factor *= min(1.0, spec.max_grad_norm / (norms[slot] + 1e-6))  # torch.nn.utils.clip_grad_norm_
            for part, grad in zip(self._parts[slot], self._grads(slot), strict=True):
                part.grad = grad.mul_(factor) if slot in healthy else None
        for group in self._adamw.param_groups:
            if group["slot"] in healthy:
                group["lr"] = self.rate(group["slot"])
            else:
                group["params"][0].grad = None
        if healthy:
            self._adamw.step()
        for slot in slots:
            for part, grad in zip(self._parts[slot], self._grads(slot), strict=True):
                part.grad = None
                grad.zero_()
            self._done[slot] += 1
        self.engine.refresh(slots)
        return norms

    def _norms(self, slots: list[int], counts: list[float]) -> dict[int, float]:
        parts = [torch.stack([torch.linalg.vector_norm(grad) for grad in self._grads(slot)]) for slot in slots]
        norms = torch.stack([torch.linalg.vector_norm(part) for part in parts])
        values = (norms / torch.tensor(counts, device=norms.device)).tolist()
        return dict(zip(slots, values, strict=True))

    def _grads(self, slot: int) -> list[Tensor]:
        return self._slices(slot, self.engine.grad, self.engine.head_grad)

    def _slices(self, slot: int, lora: Tensor, heads: Mapping[str, Tensor]) -> list[Tensor]:
        spec = self.engine.residents[slot].head
        if spec is None:
            return [lora[slot]]
        weights, undecayed, _ = self.engine.heads[spec.kind].sizes
        flat = heads[spec.kind][slot]
        return [lora[slot], flat[:weights], flat[weights : weights + undecayed]]

    # ---------------------------------------------------------------- what a checkpoint holds

    def state(self, slot: int) -> tuple[int, dict[str, Tensor]]:
        """Steps taken, and the moments under `exp_avg/` and `exp_avg_sq/` with PEFT's keys."""
        named: dict[str, Tensor] = {}
        for moment in _MOMENTS:
            flats = self._moments(slot, moment)
            if flats is not None:
                named |= {f"{moment}/{key}": value for key, value in self.engine.read(slot, flats).items()}
        return self._done[slot], named

    def restore(self, slot: int, done: int, named: Mapping[str, Tensor]) -> None:
        """Set what `state` gave, also one taken on an engine of another size."""
        assert self._adamw is not None
        self._done[slot] = done
        if not named:
            return
        for part in self._parts[slot]:
            self._adamw.state[part] = {
                "step": torch.tensor(float(done), device=part.device),
                "exp_avg": torch.zeros_like(part),
                "exp_avg_sq": torch.zeros_like(part),
            }
        for moment in _MOMENTS:
            flats = self._moments(slot, moment)
            assert flats is not None
            start = f"{moment}/"
            mine = {key.removeprefix(start): value for key, value in named.items() if key.startswith(start)}
            self.engine.write(slot, mine, flats)
            for part, values in zip(self._parts[slot], self._join_head(slot, flats), strict=True):
                self._adamw.state[part][moment].copy_(values)

    def _moments(self, slot: int, moment: str) -> list[Tensor] | None:
        """The slot's moments laid out as the engine's gradients, [slots, numbers] with only this slot filled."""
        assert self._adamw is not None
        states = [self._adamw.state.get(part, {}) for part in self._parts[slot]]
        if not all(states):
            return None
        values = [state[moment] for state in states]
        lora = _rows(values[0], slot)
        return [lora] if len(values) == 1 else [lora, _rows(torch.cat(values[1:]), slot)]

    def _join_head(self, slot: int, flats: list[Tensor]) -> list[Tensor]:
        spec = self.engine.residents[slot].head
        if spec is None:
            return [flats[0][slot]]
        weights = self.engine.heads[spec.kind].sizes[0]
        return [flats[0][slot], flats[1][slot, :weights], flats[1][slot, weights:]]


def _rows(values: Tensor, slot: int) -> Tensor:
    """A buffer [slot + 1, numbers] whose row `slot` is `values`."""
    buffer = values.new_zeros(slot + 1, values.numel())
    buffer[slot] = values.detach()
    return buffer
