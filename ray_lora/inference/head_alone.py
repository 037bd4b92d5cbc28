"""The best head alone on the frozen base, of any task: the baseline that an adapter has to beat, and a start for it.

A head of the task's own class is fitted with the task's own loss on what the bare base gives (`frozen`), by L-BFGS
over all rows at once, its weights held small in units of their inputs' spread (for one Linear layer that is a standard
scaler and a logistic regression); how small is chosen by the loss on validation rows.

    head_alone(engine, task, train, validation)(test)     # an answer for each test row
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ray_lora.engine import AdapterEngine, LoneHead
from ray_lora.inference.frozen import Kept, keep
from ray_lora.inference.windows import spread_windows
from ray_lora.recipe import Json
from ray_lora.tasks import scoring_of
from ray_lora.tasks.task import Features, Task

# of the penalty on weights, beside the mean loss; the first leaves a head that tells no rows apart
STRENGTHS = (1e6, 10.0, 1.0, 0.1, 0.01, 0.001)
_STEPS = 100  # of L-BFGS
Add = Callable[[Tensor], None]  # sums a tensor over all workers, in place


def alone(tensor: Tensor) -> None:
    """The sum over one worker."""


@dataclass(frozen=True)
class Fitted:
    """A head that was fitted on the frozen base.

    Attributes:
        tensors: by their names in the plain class.
        strength: the penalty that held its weights; infinite where it was not fitted.
        loss: the mean over the rows that chose the strength.
    """

    tensors: dict[str, Tensor]
    strength: float
    loss: float


def head_alone(
    engine: AdapterEngine, task: Task, train: Sequence[Features], validation: Sequence[Features]
) -> Callable[[Sequence[Features]], list[Json]]:
    """Fit the best head on frozen features; returns what answers rows with it, as `task.score` takes answers.

    Args:
        engine: any engine on the base; its adapters are not used.
        train, validation: rows with targets.
    """
    head, tasks, options = LoneHead(engine.base, task.head), {0: task}, scoring_of(task)
    fitting, choosing = (
        keep(engine, task, spread_windows(tasks, rows, [0] * len(rows)).features) for rows in (train, validation)
    )
    fit_best(head, task, fitting, choosing)

    def answer(rows: Sequence[Features]) -> list[Json]:
        spread = spread_windows(tasks, rows, [0] * len(rows))
        parts: list[Any] = [None] * len(spread.features)
        for kept in keep(engine, task, spread.features):
            with torch.no_grad():
                decoded = task.decode(head(kept.hidden, kept.inputs), kept.features, options)
            for row, part in zip(kept.rows, decoded, strict=True):
                parts[row] = part
        return spread.whole(tasks, parts, [options] * len(rows))

    return answer


def fit_best(
    head: LoneHead, task: Task, train: Sequence[Kept], validation: Sequence[Kept], add: Add = alone
) -> list[Fitted]:
    """Fit the head at ever weaker strengths, for as long as the loss on validation rows falls; the head is left with
    the best, which is the first of what is returned. Where it was, the strength of which is infinite, is one of them.
    """
    start = head.numbers.clone()
    units = head.units([(part.hidden, part.inputs) for part in train], add)
    loss, _ = mean_loss(head, task, validation, add)
    found = [Fitted(head.tensors(), math.inf, loss)]
    for strength in STRENGTHS:
        head.numbers.copy_(start)
        fit(head, task, train, units, strength, add)
        loss, _ = mean_loss(head, task, validation, add)
        if not math.isfinite(loss):
            break
        found.append(Fitted(head.tensors(), strength, loss))
        if len(found) > 2 and loss > found[-2].loss:
            break
    found.sort(key=lambda fitted: fitted.loss)
    head.set(found[0].tensors)
    return found


def fit(head: LoneHead, task: Task, kept: Sequence[Kept], units: Tensor, strength: float, add: Add = alone) -> None:
    """Fit the head from where it is: the mean loss and half `strength` times the sum of its weights' squares, in units
    of `LoneHead.units`, is made smallest."""
    held = nn.Parameter(head.numbers / units)
    penalty = torch.zeros_like(units)
    penalty[: head.weights] = strength
    search = torch.optim.LBFGS(
        [held], max_iter=_STEPS, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        head.numbers.copy_(held.detach() * units)
        loss, count = mean_loss(head, task, kept, add, backward=True)
        add(head.grad)
        held.grad = head.grad * units / count + penalty * held.detach()
        return torch.tensor(loss + 0.5 * float((penalty * held.detach().square()).sum()), dtype=torch.float64)

    search.step(closure)
    head.numbers.copy_(held.detach() * units)


def mean_loss(
    head: LoneHead, task: Task, kept: Sequence[Kept], add: Add = alone, backward: bool = False
) -> tuple[float, float]:
    """The task's mean loss over rows of all workers, and its number of terms; `backward` leaves the gradient of this
    worker's sum in `head.grad`."""
    head.grad.zero_()
    sums = torch.zeros(2, dtype=torch.float64, device=head.grad.device)
    for part in kept:
        with torch.set_grad_enabled(backward):
            losses, terms = task.loss(head(part.hidden, part.inputs), part.features)
            if backward:
                losses.sum().backward()
        sums += torch.stack([losses.detach().double().sum(), terms.double().sum()])
    add(sums)
    total, count = sums.tolist()
    return total / max(count, 1.0), count
