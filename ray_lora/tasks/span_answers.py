"""Answers of transformers' question-answering pipeline (up to its version 4), from logits computed elsewhere.

Which spans there are and how likely each is, in one window, is the library's own code; here is what that pipeline did
around it: spans of tokens to spans of characters, and the windows of a long context into one list. Unlike there, what
overlapping windows say of one answer is not added up, so that a score is a probability; an answer stands where it was
likeliest, without blanks around it, and is aligned to words only where words have blanks between them; and several
that were asked for are a list, however many there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json
from ray_lora.tasks.rows import BLANKS
from ray_lora.tasks.task import Features

MOST = 1000  # answers to one question
_NAMES = ("top_k", "handle_impossible_answer", "max_answer_len", "align_to_words")
_OF_THE_TASK = {"doc_stride": "doc_stride", "max_seq_len": "max_length", "max_question_len": "max_question_len"}


@dataclass(frozen=True)
class Options:
    """The pipeline's parameters."""

    top_k: int
    handle_impossible_answer: bool
    max_answer_len: int
    align_to_words: bool

    @classmethod
    def of(cls, parameters: Mapping[str, Json], impossible: bool, longest: int) -> Options:
        """Parameters, and where they say nothing: one answer, aligned to words, and the task's own.

        Raises:
            RecipeError: a parameter is not known, or has a value that is not allowed.
        """
        for name, key in _OF_THE_TASK.items():
            if name in parameters:
                raise RecipeError(f"parameter {name!r} belongs to the adapter: it was trained with its task.{key}")
        unknown = sorted(set(parameters) - set(_NAMES))
        if unknown:
            raise RecipeError(f"parameters {unknown} are not known to this task; it takes {', '.join(_NAMES)}")
        given = {name: value for name, value in parameters.items() if value is not None}
        options = cls(
            given.get("top_k", 1),
            given.get("handle_impossible_answer", impossible),
            given.get("max_answer_len", longest),
            given.get("align_to_words", True),
        )
        for name in ("top_k", "max_answer_len"):
            value = getattr(options, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
                raise RecipeError(f"{name} {value!r} must be a whole number from 1 to {MOST}")
        for name in ("handle_impossible_answer", "align_to_words"):
            if not isinstance(getattr(options, name), bool):
                raise RecipeError(f"{name} {getattr(options, name)!r} must be true or false")
        return options


@dataclass(frozen=True)
class Part:
    """What one window says: how likely it is that it holds no answer, and (first character, end, score) of spans."""

    null: float
    spans: Sequence[tuple[int, int, float]]


def spans_of(window: Features, start: NDArray[np.float32], end: NDArray[np.float32], options: Options) -> Part:
    """The likeliest spans of a window's context.

    Args:
        start, end: logits of the window's tokens, [tokens].
    """
    from transformers.pipelines.document_question_answering import select_starts_ends

    forbidden = np.ones((1, len(start)), dtype=np.int64)
    forbidden[0, 0] = 0  # the CLS token stands for no answer
    forbidden[0, window["begin"] : window["end"]] = 0
    wanted = 2 * options.top_k + 10 if options.align_to_words else options.top_k  # some come to the same words
    starts, ends, scores, null = select_starts_ends(
        start[None],
        end[None],
        forbidden,
        np.ones_like(forbidden),
        top_k=wanted,
        handle_impossible_answer=True,
        max_answer_len=options.max_answer_len,
    )
    spans = [
        (*_characters(window, int(first), int(last), options.align_to_words), float(score))
        for first, last, score in zip(starts, ends, scores, strict=True)
        if first >= window["begin"]  # CLS has its own score
    ]
    return Part(float(null), spans)


def _characters(window: Features, first: int, last: int, align: bool) -> tuple[int, int]:
    """From the first character of the first token to the end of the last; of their words, if aligned."""
    words, offsets = window["words"], window["offsets"]
    if align and words[first] is not None and words[last] is not None:
        while first > window["begin"] and words[first - 1] == words[first]:
            first -= 1
        while last + 1 < window["end"] and words[last + 1] == words[last]:
            last += 1
    return offsets[first][0], offsets[last][1]


def whole_answer(parts: Sequence[Part], context: str, options: Options) -> Json:
    """The best answers of all windows, a list where several are asked for. What one window says alike counts together;
    of two windows the surer one counts."""
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        for words, answer in _answers_of(part, context).items():
            if words not in found or answer["score"] > found[words]["score"]:
                found[words] = answer
    answers = list(found.values())
    if options.handle_impossible_answer or not answers:
        answers.append({"score": min(part.null for part in parts), "start": 0, "end": 0, "answer": ""})
    answers = sorted(answers, key=lambda answer: -float(answer["score"]))[: options.top_k]
    return answers[0] if options.top_k == 1 else answers


def _answers_of(part: Part, context: str) -> dict[str, dict[str, Any]]:
    """The answers of a window by their words, each where it is likeliest: spans come best first."""
    found: dict[str, dict[str, Any]] = {}
    for begin, end, score in part.spans:
        text = context[begin:end].strip(BLANKS)
        if text:
            start = context.index(text, begin)
            told = {"score": 0.0, "start": start, "end": start + len(text), "answer": text}
            found.setdefault(text.lower(), told)["score"] += score
    return found
