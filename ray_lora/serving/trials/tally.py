"""Counts of what one version answered, small and mergeable over replicas. Knows no files, no HTTP, no engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ray_lora.errors import AdapterError, RayLoraError
from ray_lora.recipe import Json
from ray_lora.store import BeingWrittenError

Variant = Literal["split", "shadow", "default", "explicit"]
_STEP = math.log(1.05)  # latencies are kept in classes 5% wide, so a quantile is right to 2.5%
_LABELS = 100  # told apart; the rest is OTHER
OTHER = "(other)"


class Arm(NamedTuple):
    """One version of a name and how requests came to it: by the name's split, as a shadow, by the bare name (default),
    or by an explicit ref. `began` names the trial of which it is part, if any."""

    name: str
    version: int
    variant: Variant
    began: str = ""


def did_it(error: Exception) -> bool:
    """Whether a failure is the version's own doing: not its client's, not the load's, not the store's."""
    if not isinstance(error, RayLoraError):
        return True
    return isinstance(error, AdapterError) and not isinstance(error, BeingWrittenError)


@dataclass
class Tally:
    """What one arm did."""

    requests: int = 0  # answered, or failed by the version's own doing
    errors: int = 0
    dropped: int = 0  # copies for a shadow that were not taken on because too much waited
    seconds: float = 0.0  # sum over answers
    times: Counter[int] = field(default_factory=Counter)  # answers by class of their time
    labels: Counter[str] = field(default_factory=Counter)  # rows by their first label
    scores: Counter[int] = field(default_factory=Counter)  # rows by tenths of the first score: 9 is 0.9 to 1

    def answered(self, seconds: float, predictions: Sequence[Json]) -> None:
        """One request's answer."""
        self.requests += 1
        self.seconds += seconds
        self.times[round(math.log(max(seconds, 1e-6)) / _STEP)] += 1
        for prediction in predictions:
            first = prediction[0] if isinstance(prediction, list) and prediction else prediction
            if isinstance(first, dict) and isinstance(label := first.get("label"), str):
                self.labels[label if label in self.labels or len(self.labels) < _LABELS else OTHER] += 1
            if isinstance(first, dict) and isinstance(score := first.get("score"), float) and 0 <= score <= 1.001:
                self.scores[min(int(score * 10), 9)] += 1

    def failed(self) -> None:
        """One request that this version could not answer."""
        self.requests += 1
        self.errors += 1

    def add(self, other: Tally) -> None:
        """What another replica counted."""
        self.requests += other.requests
        self.errors += other.errors
        self.dropped += other.dropped
        self.seconds += other.seconds
        self.times.update(other.times)
        self.labels.update(other.labels)
        self.scores.update(other.scores)

    @property
    def mean(self) -> float | None:
        """Mean seconds of an answer."""
        count = self.times.total()
        return self.seconds / count if count else None

    def quantile(self, share: float) -> float | None:
        """Seconds that this share of the answers took at most."""
        left = share * self.times.total()
        for place in sorted(self.times):
            left -= self.times[place]
            if left <= 0:
                return math.exp(place * _STEP)
        return None

    def dump(self) -> dict[str, Json]:
        """As JSON."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "dropped": self.dropped,
            "seconds": self.seconds,
            "times": dict(self.times),
            "labels": dict(self.labels),
            "scores": dict(self.scores),
        }

    @classmethod
    def load(cls, told: dict[str, Json]) -> Tally:
        """What `dump` gave; KeyError, TypeError or ValueError for anything else."""
        counts = {key: int(told[key]) for key in ("requests", "errors", "dropped")}
        times = Counter({int(place): int(count) for place, count in told["times"].items()})
        scores = Counter({int(place): int(count) for place, count in told["scores"].items()})
        return cls(**counts, seconds=float(told["seconds"]), times=times, labels=Counter(told["labels"]), scores=scores)
