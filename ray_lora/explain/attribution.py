"""What an answer follows from: how much each token, or each pixel, adds to the answered class's output.

    with Attributor(base, adapter, task) as attributor:
        told = attributor.of(features)           # Attributed: tokens and their values, the adapter's and the base's

Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365): gradients along the straight way from a baseline to
the row, which add up to what the output gained on that way; how much they lack is told. They are taken by Gauss and
Legendre's rule over the way's third root, as layers' norms make outputs turn most where inputs are small. What a piece
of the way lacks is known from the outputs at its ends, so the piece that lacks most is halved until they add up. All
points of a piece are rows of one pass. The baseline is the zero embedding for tokens, special ones staying as they are,
and what the processor makes zero of, a mean colour, for pictures. It knows rows and engines, no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.bases.base import Base
from ray_lora.engine import AdapterEngine
from ray_lora.errors import RayLoraError
from ray_lora.inference.adopt import check_answers
from ray_lora.recipe import Json, LoraSpec
from ray_lora.tasks import Features, Task
from ray_lora.tasks.augmented import Picture
from ray_lora.tasks.image_classification import ImageClassification
from ray_lora.tasks.labels import plain_labels
from ray_lora.tasks.texts import Texts

STEPS = 16  # points of a piece of the way
MOST_STEPS = 512  # after which it is only told how much the values lack
ENOUGH = 0.01  # of what the output gained: a gap that small is well computed
CELLS = 32  # a side, of a picture's values
_TOKENS, _PICTURES = 2048, 8  # of a pass
_PIXELS = "pixel_values"


@dataclass(frozen=True)
class Way:
    """One side's attribution.

    Attributes:
        values: of each token; or of each cell of a picture, rows from above.
        answer: that side's own answer, as the pipeline gives it.
        output, baseline: of the explained class, with the row and at the baseline.
        gap: what the values lack of `output - baseline`; steps: points at which gradients were taken.
        head: whose head answered.
    """

    values: Sequence[float] | Sequence[Sequence[float]]
    answer: Json
    output: float
    baseline: float
    gap: float
    steps: int
    head: str


@dataclass(frozen=True)
class Attributed:
    """A row's attributions of one class's output, the adapter's answer, beside the base's.

    Attributes:
        target: the class. tokens: of a text; None of a picture.
        picture: [channels, height, width] from 0 to 1; None of a text, and where it is not known what a processor does.
    """

    target: str
    tokens: Sequence[str] | None
    picture: Tensor | None
    adapter: Way
    base: Way


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece of the way, between two third roots: its values, and the output at its ends."""

    start: float
    end: float
    values: Tensor
    first: float
    last: float

    @property
    def gap(self) -> float:
        """What the values lack."""
        return self.last - self.first - float(self.values.sum())


def why_not(task: Task) -> str | None:
    """Why a task has no attributions: its answers are not outputs of one head for a whole text or picture."""
    if isinstance(task, (Texts, ImageClassification)):
        return None
    return f"attributions are of classified texts and pictures, and {task.spec.type} answers otherwise"


class Attributor:
    """One adapter and its bare base in an engine that has gradients.

    Args:
        task: the adapter's, of which `why_not` says nothing.

    Raises:
        AdapterError, BaseModelError: as `AdapterEngine.load`.
    """

    def __init__(self, base: Base, adapter: Adapter, task: Task) -> None:
        self.task: Any = task
        self._engine = AdapterEngine(
            base,
            slots=2,
            max_rank=max((pair.rank for pair in adapter.layers.values()), default=1),
            train=True,
            embeddings=any(pair.embedding for pair in adapter.layers.values()),
        )
        try:
            self._slot = self._engine.load(adapter)
            check_answers(task.spec, self._engine.residents[self._slot].head)
            self._bare, self._bare_head = self._load_bare(adapter)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Attributor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the base back."""
        self._engine.close()

    def of(self, features: Features) -> Attributed:
        """The attributions of one encoded row."""
        pictures = _PIXELS in features
        answers = [self._answer(slot, features) for slot in (self._slot, self._bare)]
        target = self._target(answers[0], features)
        ways = [
            self._way(slot, features, target, answer, head)
            for slot, answer, head in zip(
                (self._slot, self._bare), answers, ("the adapter's", self._bare_head), strict=True
            )
        ]
        labels = getattr(self.task, "labels", None)
        view = self._view(features)
        return Attributed(
            target=str(labels[target]) if labels else f"output {target}",
            tokens=None if pictures else list(view.names(view.ids)),
            picture=view.pixels if isinstance(view, Picture) else None,
            adapter=ways[0],
            base=ways[1],
        )

    def _load_bare(self, adapter: Adapter) -> tuple[int, str]:
        """A slot that changes nothing: with the base's own head, where its files hold one for these labels, else with
        the adapter's."""
        task = self.task
        told = Card(task=task.spec, base=adapter.card.base, architecture=task.head.architecture)
        own = Adapter(LoraSpec(target_modules=()), {}, {}, told, task.peft_type)
        labels = getattr(task, "labels", None)
        named = self._engine.base.labels
        if labels is None or tuple(labels) == (named or plain_labels(len(labels))):
            try:
                slot = self._engine.load(own)
                if self._engine.residents[slot].head is not None:
                    return slot, "the base's own"
                self._engine.evict(slot)
            except RayLoraError:  # the base has none of this class
                pass
        return self._engine.load(replace(adapter, layers={})), "the adapter's"

    def _view(self, features: Features) -> Any:
        """What the task shows of a row; None of a picture whose processor is not known."""
        unknown = _PIXELS in features and "pictures" not in self.task.augments
        return None if unknown else self.task.view(features)

    def _answer(self, slot: int, features: Features) -> Json:
        with torch.inference_mode():
            return self.task.decode(self._outputs(slot, self.task.collate([features])), [features], {})[0]

    def _target(self, answer: Json, features: Features) -> int:
        """The class that is explained: the one answered; else the largest output."""
        labels = list(getattr(self.task, "labels", None) or ())
        if isinstance(answer, dict) and answer.get("label") in labels:
            return labels.index(answer["label"])
        with torch.inference_mode():
            return int(self._outputs(self._slot, self.task.collate([features])).logits[0].argmax())

    def _outputs(self, slot: int, batch: Mapping[str, Tensor]) -> Any:
        rows = len(next(iter(batch.values())))
        ((_, outputs),) = self._engine.forward(batch, torch.full((rows,), slot))
        return outputs

    def _way(self, slot: int, features: Features, target: int, answer: Json, head: str) -> Way:
        nodes, weights = np.polynomial.legendre.leggauss(STEPS)

        def piece(start: float, end: float) -> _Piece:
            roots = start + (end - start) * (nodes + 1) / 2
            points = torch.tensor([start**3, end**3, *roots**3], dtype=torch.float32)
            shares = torch.tensor([0.0, 0.0, *((end - start) * weights / 2 * 3 * roots**2)], dtype=torch.float64)
            part = self._pixels if _PIXELS in features else self._tokens
            values, outputs = part(slot, features, target, points, shares)
            return _Piece(start, end, values, float(outputs[0]), float(outputs[1]))

        whole = piece(0.0, 1.0)
        pieces, steps, gained = [whole], STEPS, whole.last - whole.first
        while abs(gap := sum(one.gap for one in pieces)) > ENOUGH * abs(gained) and steps < MOST_STEPS:
            worst = max(pieces, key=lambda one: abs(one.gap))
            middle = (worst.start + worst.end) / 2
            pieces.remove(worst)
            pieces += [piece(worst.start, middle), piece(middle, worst.end)]
            steps += 2 * STEPS
        values = torch.stack([one.values for one in pieces]).sum(0)
        told = values.tolist() if values.dim() == 1 else _cells(values).tolist()
        return Way(told, answer, whole.last, whole.first, gap, steps, head)

    def _tokens(
        self, slot: int, features: Features, target: int, points: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each token's value, [tokens] float64, and the output at each point."""
        fixed = torch.tensor(self._view(features).fixed)
        size = max(1, _TOKENS // len(fixed))
        values, outputs = torch.zeros(len(fixed), dtype=torch.float64), []
        for at in range(0, len(points), size):
            mine = points[at : at + size]
            batch = self.task.collate([features] * len(mine))
            held, whole, logits = self._embedded(slot, batch, mine, fixed)
            (slope,) = torch.autograd.grad(logits[:, target].sum(), held)
            of_token = self._by_row((slope * whole).double().sum(-1, keepdim=True), batch, slot)[..., 0]
            values += (of_token * shares[at : at + size, None]).sum(0)
            outputs.append(logits[:, target].detach().double())
        return values.masked_fill(fixed, 0), torch.cat(outputs)

    def _embedded(
        self, slot: int, batch: Mapping[str, Tensor], points: Tensor, fixed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A pass whose tokens' embeddings are shortened: these, the whole ones, and the logits, [rows, outputs]."""
        share = torch.where(fixed, 1.0, points[:, None])[..., None]  # [rows, tokens, 1]
        joined = self._engine.sharing.lengths == "joined"
        if joined:
            share = self._joined(batch, slot).take(share)
        kept: list[Tensor] = []

        def shorten(_: Any, __: Any, whole: Tensor) -> Tensor:
            kept.append(whole.detach())
            kept.append((kept[0] * share.to(whole)).requires_grad_())
            return kept[1]

        module = self._engine.base.backbone.get_input_embeddings()  # type: ignore[operator]
        hook = module.register_forward_hook(shorten)
        try:
            logits = self._outputs(slot, batch).logits
        finally:
            hook.remove()
        whole, held = kept
        return held, whole, logits

    def _joined(self, batch: Mapping[str, Tensor], slot: int) -> Any:
        mask = batch.get("attention_mask")
        mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
        return self._engine.joined(mask, [slot] * len(mask))

    def _by_row(self, values: Tensor, batch: Mapping[str, Tensor], slot: int) -> Tensor:
        """[rows, tokens, ...] of what lies as the pass laid it."""
        if self._engine.sharing.lengths != "joined":
            return values
        spread: Tensor = self._joined(batch, slot).spread(values)
        return spread

    def _pixels(
        self, slot: int, features: Features, target: int, points: Tensor, shares: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each pixel's value over its channels, [height, width] float64, and the output at each point."""
        picture: Tensor = features[_PIXELS].float()
        values, outputs = torch.zeros(picture.shape[-2:], dtype=torch.float64), []
        for at in range(0, len(points), _PICTURES):
            mine = points[at : at + _PICTURES]
            held = (picture * mine[:, None, None, None]).requires_grad_()
            logits = self._outputs(slot, {_PIXELS: held}).logits
            (slope,) = torch.autograd.grad(logits[:, target].sum(), held)
            values += ((slope * picture).double().sum(1) * shares[at : at + _PICTURES, None, None]).sum(0)
            outputs.append(logits[:, target].detach().double())
        return values, torch.cat(outputs)


def _cells(values: Tensor) -> Tensor:
    """Sums over at most `CELLS` by `CELLS` cells; they add up to what the pixels do."""
    for axis in (0, 1):
        parts = values.tensor_split(min(CELLS, values.shape[axis]), axis)
        values = torch.stack([part.sum(axis) for part in parts], axis)
    return values
