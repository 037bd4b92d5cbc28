"""Texts that decoders write after rows' prompts, of rows of any adapters: the likeliest token, and the next.

    asks = [Ask(slot, [5, 6, 7], most=16, ends=frozenset({2}))]
    [text] = continued(engine, task.head, asks)          # Text([8, 9], ended=True)

Rows join as there is room and leave when they have ended. It knows tokens, no requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine
from ray_lora.inference.decoder import Decoder
from ray_lora.inference.prompts import ends_of
from ray_lora.inference.sampling import Sampling
from ray_lora.recipe import Json
from ray_lora.tasks import Features, Task, scoring_of

_CAPACITY = 4096  # tokens of all rows in the making, prompts included: memory of what is kept of them


@runtime_checkable
class Continuing(Protocol):
    """What a `Task` has beside, whose rows a decoder goes on with token by token.

    Attributes:
        ends: tokens that end an answer.
    """

    @property
    def ends(self) -> frozenset[int]: ...

    def opening(self, features: Features) -> tuple[list[int], list[int]]:
        """The tokens that are gone on with, and those that follow in the row."""
        ...

    def said(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        ...

    def most(self, parameters: Mapping[str, Json]) -> int:
        """How many tokens of an answer are written beside what `decode` gives; 0: none."""
        ...

    def with_written(self, answer: Json, tokens: Sequence[int], ended: bool) -> Json:
        """An answer of `decode` with what was written beside."""
        ...


@dataclass(frozen=True)
class Ask:
    """A prompt's tokens that a slot's adapter goes on with, by at most `most`, the end included."""

    slot: int
    ids: Sequence[int]
    most: int
    ends: frozenset[int]


@dataclass(frozen=True)
class Text:
    """What was written, without the token that ended it; `ended`: whether one did."""

    tokens: list[int]
    ended: bool


def continued(engine: AdapterEngine, head: HeadSpec, asks: Sequence[Ask]) -> list[Text | None]:
    """The texts of all asks, in their order; None where what followed was no number.

    Raises:
        AdapterError: the base's class cannot be read token by token.
    """
    positions = getattr(engine.base.config, "max_position_embeddings", None)
    capacity = max([_CAPACITY, *(len(ask.ids) + ask.most for ask in asks)])
    decoder, named = Decoder(engine, head, capacity, positions), ends_of(engine.base.config)
    found: list[Text | None] = [None] * len(asks)
    numbers: dict[int, int] = {}
    left = list(enumerate(asks))[::-1]
    while left or decoder.rows:
        while left and len(left[-1][1].ids) + left[-1][1].most <= decoder.free:
            number, ask = left.pop()
            [row] = decoder.join(ask.slot, ask.ids, Sampling(max_tokens=ask.most), ask.ends | named)
            numbers[row], found[number] = number, Text([], False)
        for row, written in decoder.step().items():
            text = found[numbers[row]]
            assert text is not None
            if written.reason == "stop":
                found[numbers[row]] = Text(text.tokens, True)
            else:
                text.tokens.append(written.token)
        for row in decoder.lost:
            found[numbers[row]] = None
    return found


def check_continues(engine: AdapterEngine, task: Task) -> None:
    """AdapterError unless the base can be read token by token, where the task's scores ask for it."""
    if isinstance(task, Continuing) and task.most(scoring_of(task)):
        Decoder(engine, task.head)


def with_continued(
    engine: AdapterEngine,
    tasks: Mapping[int, Task],
    features: Sequence[Features],
    slots: Sequence[int],
    options: Sequence[Mapping[str, Json]],
    answers: list[Any],
) -> list[Any]:
    """Answers of `decode`, those whose options ask for it with what is written of them beside."""
    mine = {slot: task for slot in set(slots) if isinstance(task := tasks[slot], Continuing)}
    by_head: dict[HeadSpec, list[tuple[int, Ask]]] = {}
    for row, slot in enumerate(slots) if mine else ():
        if slot in mine and (most := mine[slot].most(options[row])):
            ask = Ask(slot, mine[slot].opening(features[row])[0], most, mine[slot].ends)
            by_head.setdefault(tasks[slot].head, []).append((row, ask))
    for head, asked in by_head.items():
        for (row, ask), text in zip(asked, continued(engine, head, [ask for _, ask in asked]), strict=True):
            if text is None:
                answers[row] = math.nan  # which nobody takes for an answer
            else:
                answers[row] = mine[ask.slot].with_written(answers[row], text.tokens, text.ended)
    return answers
