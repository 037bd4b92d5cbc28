"""Transforms of sounds: of their samples, and SpecAugment's, which hide parts of what features show of them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from ray_lora.augmentation.geometry import Range, ascending
from ray_lora.tasks.augmented import Hidden, Sound
from ray_lora.transform_spec import Needs, TransformSpec

_FINEST = 100  # of a speed: 0.953 is as good as 0.95
Decibels = Annotated[float, Field(ge=-120, le=120)]
Levels = Annotated[tuple[Decibels, Decibels], AfterValidator(ascending)]  # from, to


class Speed(TransformSpec):
    """Said faster or slower, higher or lower with it, as a tape does (Kaldi's speed perturbation). What would become
    longer than the base hears at once stays as it is.

    Attributes:
        factor: from and to how many times as fast.
    """

    needs: ClassVar[frozenset[Needs]] = frozenset({"sounds"})
    name: Literal["speed"] = "speed"
    factor: Range = (0.9, 1.1)

    def alter(self, view: Sound, draw: np.random.Generator) -> Sound:
        import torch
        from scipy.signal import resample_poly

        ratio = Fraction(float(draw.uniform(*self.factor))).limit_denominator(_FINEST)  # samples before to one after
        if ratio == 1 or len(view.samples) > view.most * ratio:
            return view
        samples = resample_poly(view.samples.numpy(), ratio.denominator, ratio.numerator).astype(np.float32, copy=False)
        return replace(view, samples=torch.from_numpy(samples[: view.most]))


class Gain(TransformSpec):
    """Louder or softer; what goes beyond full scale is cut there, as a microphone does.

    Attributes:
        decibels: from and to; 6 is twice as loud, -6 half.
    """

    needs: ClassVar[frozenset[Needs]] = frozenset({"sounds"})
    name: Literal["gain"] = "gain"
    decibels: Levels = (-6.0, 6.0)

    def alter(self, view: Sound, draw: np.random.Generator) -> Sound:
        factor = 10 ** (draw.uniform(*self.decibels) / 20)
        return replace(view, samples=(view.samples * float(factor)).clamp(-1, 1))


class BackgroundNoise(TransformSpec):
    """White noise; a silent sound stays silent.

    Attributes:
        decibels: from and to how far the sound as a whole is above it.
    """

    needs: ClassVar[frozenset[Needs]] = frozenset({"sounds"})
    name: Literal["background_noise"] = "background_noise"
    p: float = Field(default=0.5, ge=0, le=1)
    decibels: Levels = (10.0, 40.0)

    def alter(self, view: Sound, draw: np.random.Generator) -> Sound:
        import torch

        below = 10 ** (-draw.uniform(*self.decibels) / 20)
        noise = torch.from_numpy(draw.standard_normal(len(view.samples), dtype=np.float32))
        loudness = view.samples.square().mean().sqrt()
        return replace(view, samples=view.samples + float(below) * loudness * noise)


class _Mask(TransformSpec):
    needs: ClassVar[frozenset[Needs]] = frozenset({"sounds"})
    along: ClassVar[Literal["time", "frequency"]]
    count: int = Field(default=2, ge=1, le=20)

    def _hidden(self, view: Sound, share: float, draw: np.random.Generator) -> Sound:
        masks = []
        for _ in range(self.count):
            width = float(draw.uniform(0, share))
            start = float(draw.uniform(0, 1 - width))
            masks.append(Hidden(self.along, start, start + width))
        return replace(view, hidden=(*view.hidden, *masks))


class TimeMask(_Mask):
    """Stretches of time are hidden (SpecAugment, arXiv 1904.08779).

    Attributes:
        share: of the sound, the longest that a stretch may be; count: how many of them.
    """

    along: ClassVar[Literal["time", "frequency"]] = "time"
    name: Literal["time_mask"] = "time_mask"
    share: float = Field(default=0.1, gt=0, le=1)

    def alter(self, view: Sound, draw: np.random.Generator) -> Sound:
        return self._hidden(view, self.share, draw)


class FrequencyMask(_Mask):
    """Bands of frequencies are hidden (SpecAugment).

    Attributes:
        share: of the base's bands, the widest that is hidden at once; count: how many of them.
    """

    along: ClassVar[Literal["time", "frequency"]] = "frequency"
    name: Literal["frequency_mask"] = "frequency_mask"
    share: float = Field(default=0.2, gt=0, le=1)

    def alter(self, view: Sound, draw: np.random.Generator) -> Sound:
        return self._hidden(view, self.share, draw)
