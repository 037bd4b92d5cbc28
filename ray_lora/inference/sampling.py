"""How the next token is chosen: what a request may ask for, and what is drawn from logits.

    sampling = Sampling.of({"temperature": 0.7, "top_p": 0.9, "seed": 3})      # RecipeError: out of bounds
    choice = Chooser(sampling).choose(logits, ids)

Temperature, top-k, top-p and the repetition penalty are transformers' own; the two penalties of OpenAI's interface are
taken from the scores of the answer's own tokens, as its documentation says. It knows tokens, not texts or rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ray_lora.errors import RecipeError, did_you_mean
from ray_lora.recipe import Json

MOST_TOKENS = 4096  # of an answer
MOST_ANSWERS = 16
MOST_STOPS = 4
MOST_LOGPROBS = 20
_MOST_STOP = 256  # characters of one


@dataclass(frozen=True)
class Sampling:
    """What a request asks for.

    Attributes:
        max_tokens: of the answer; a base of fewer positions ends it earlier.
        temperature: 0 takes the likeliest token; of what follows only the penalties then matter.
        top_p: the likeliest tokens that have so much probability together. top_k: the likeliest so many; 0: all.
        repetition_penalty: above 1 tokens that were there are less likely (Keskar et al., arXiv 1909.05858).
        presence_penalty: taken from the scores of tokens that the answer holds. frequency_penalty: as often as it does.
        seed: makes an answer the same again; None draws one.
        stop: texts before which an answer ends.
        n: answers, which temperature 0 makes the same.
        logprobs: log probabilities of so many tokens beside each chosen one; None: of none.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None

    @property
    def likeliest(self) -> Sampling:
        """The same with one answer of the likeliest tokens."""
        return replace(self, temperature=0.0, n=1, logprobs=None)

    @classmethod
    def of(cls, told: Mapping[str, Json]) -> Sampling:
        """What a request's parameters ask for.

        Raises:
            RecipeError: one is not known, of another kind, or out of bounds.
        """
        known = [field.name for field in fields(cls)]
        for name in told:
            if name not in known:
                raise RecipeError(
                    f"parameters [{name!r}] are not known{did_you_mean(name, known)}; there are {', '.join(known)}"
                )
        given = {name: value for name, value in told.items() if name != "stop" and value is not None}
        for name, (least, most) in _WHOLE.items():
            if name in given:
                _bounded(name, given[name], least, most, whole=True)
        for name, (low, high) in _REAL.items():
            if name in given:
                _bounded(name, given[name], low, high, whole=False)
        if given.get("top_p", 1.0) == 0:
            raise RecipeError("top_p 0 leaves no token; give a number above 0, up to 1")
        return cls(**given, stop=_stops(told.get("stop")))


_WHOLE: Mapping[str, tuple[int, int]] = {
    "max_tokens": (1, MOST_TOKENS),
    "top_k": (0, 2**31),
    "seed": (-(2**63), 2**63 - 1),
    "n": (1, MOST_ANSWERS),
    "logprobs": (0, MOST_LOGPROBS),
}
_REAL: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "repetition_penalty": (0.1, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}


def _bounded(name: str, value: Any, least: float, most: float, whole: bool) -> None:
    kinds = int if whole else (int, float)
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not least <= value <= most
        or not math.isfinite(value)
    ):
        what = "a whole number" if whole else "a number"
        raise RecipeError(f"{name} {value!r} must be {what} from {least} to {most}")


def _stops(told: Json) -> tuple[str, ...]:
    stops = [] if told is None else [told] if isinstance(told, str) else told
    right = isinstance(stops, (list, tuple)) and len(stops) <= MOST_STOPS
    if not right or not all(isinstance(stop, str) and 0 < len(stop) <= _MOST_STOP for stop in stops):
        raise RecipeError(
            f"stop {told!r} must be a text or a list of at most {MOST_STOPS}, each of 1 to {_MOST_STOP} characters"
        )
    return tuple(stops)


@dataclass(frozen=True)
class Choice:
    """A chosen token.

    Attributes:
        logprob: of it, as the model gives it; best: the likeliest tokens and theirs. Both where they were asked for.
    """

    token: int
    logprob: float | None = None
    best: tuple[tuple[int, float], ...] = ()


class Chooser:
    """Chooses one answer's tokens; what is drawn follows from the seed alone, whoever else is answered.

    Args:
        number: of the answer, among those of one request.
    """

    def __init__(self, sampling: Sampling, number: int = 0) -> None:
        self.sampling = sampling
        self._said: Counter[int] = Counter()  # tokens of the answer
        self._draw = torch.Generator()
        if sampling.seed is None:
            self._draw.seed()
        else:
            self._draw.manual_seed((sampling.seed * MOST_ANSWERS + number) % 2**63)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is all that is asked for."""
        asked = self.sampling
        penalised = asked.repetition_penalty != 1 or asked.presence_penalty != 0 or asked.frequency_penalty != 0
        return asked.temperature == 0 and not penalised and asked.logprobs is None

    def choose(self, logits: Tensor, ids: Sequence[int]) -> Choice:
        """The next token.

        Args:
            logits: [vocabulary]. ids: of prompt and answer up to here.
        """
        from transformers.generation.logits_process import (
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        asked, scores = self.sampling, logits.float().cpu()[None]
        before = torch.tensor([list(ids)])
        if asked.repetition_penalty != 1:
            scores = RepetitionPenaltyLogitsProcessor(asked.repetition_penalty)(before, scores)
        if self._said and (asked.presence_penalty or asked.frequency_penalty):
            tokens, times = torch.tensor([*self._said]), torch.tensor([*self._said.values()])
            scores = scores.clone()
            scores[0, tokens] -= asked.presence_penalty + asked.frequency_penalty * times
        if asked.temperature == 0:
            token = int(scores.argmax())
        else:
            scores = TemperatureLogitsWarper(float(asked.temperature))(before, scores)
            if asked.top_k:
                scores = TopKLogitsWarper(min(asked.top_k, scores.shape[-1]))(before, scores)
            if asked.top_p < 1:
                scores = TopPLogitsWarper(float(asked.top_p))(before, scores)
            token = int(torch.multinomial(scores.softmax(-1)[0], 1, generator=self._draw))
        self._said[token] += 1
        if asked.logprobs is None:
            return Choice(token)
        told = logits.float().cpu().log_softmax(-1)
        best = told.topk(min(asked.logprobs, len(told)))
        pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Choice(token, float(told[token]), pairs)
