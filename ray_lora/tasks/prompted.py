"""What rows of text generation share, whatever they are: a prompt and an answer as tokens, their loss, what follows.

    {"prompt": "The capital of Peru is", "completion": " Lima."}

The kinds of rows are in `text_generation`. It knows one kind, that of prompt and completion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from ray_lora.bases.padding import pad
from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.generation_options import LENGTH, TextGenerationSpec
from ray_lora.tasks.lengths import Length
from ray_lora.tasks.rows import bad_texts, is_text, say_text
from ray_lora.tasks.soft_tokens import SoftTokens
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.tasks.token_losses import logits_of, of_rows

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

_PLAIN = "AutoModelForCausalLM"
_TARGET = "labels"  # the answer's tokens in a row's features
_MOST = 700.0  # of a loss whose exponential is still a number


class Prompted(SoftTokens):
    """Rows of prompt and completion. The base's own output layer answers; adapters lie below it.

    A row's features are `input_ids`, the prompt's tokens, and in training `labels`, the answer's.
    """

    spec_type: ClassVar[type[TaskSpec]] = TextGenerationSpec
    columns: ClassVar[Mapping[str, Column]] = {
        "prompt": Column(("text",), about="what comes before the answer"),
        "completion": Column(("text",), "training", "the answer, with the blank that it begins with"),
    }
    input: ClassVar[str] = "prompt"
    pipeline: ClassVar[str] = "text-generation"
    full: ClassVar[Mapping[str, Json]] = {}
    scoring: ClassVar[Mapping[str, Json]] = {"losses": True}
    metric: ClassVar[str] = "perplexity"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {"perplexity": "min", "loss": "min"}
    peft_type: ClassVar[str | None] = "CAUSAL_LM"
    fits_head: ClassVar[bool] = False

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        if getattr(processor, "vocabulary", None) is None:
            raise RecipeError("text-generation needs a base with a tokenizer and a vocabulary; this base has none")
        self.spec = cast(TextGenerationSpec, spec)
        self._tokenizer = processor
        self._length = Length.of(self.spec.max_length, processor, LENGTH)
        self.head = HeadSpec(_PLAIN, processor.vocabulary)
        begin, end = getattr(processor, "bos_token_id", None), getattr(processor, "eos_token_id", None)
        empty = processor("")["input_ids"]
        self._lead = [begin] if begin is not None and empty[:1] == [begin] else []
        self._end = [] if end is None else [end]

    # ------------------------------------------------------------ of a block of rows, before anything is loaded

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> None:
        return None

    @classmethod
    def merge(cls, spec: TaskSpec, learned: Iterable[None]) -> TaskSpec:
        return spec

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        for column in cls.columns:
            yield from bad_texts(block.column(column), column)

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        return TextGenerationSpec(max_length=None) if head.architecture == _PLAIN else None

    # ------------------------------------------------------------ of rows on their way through the model

    @property
    def longest(self) -> int:
        return self._length.longest

    @property
    def lead(self) -> list[int]:
        """The tokens with which every prompt begins."""
        return list(self._lead)

    def prompt(self, text: object) -> list[int]:
        """A prompt's tokens, however many, as a row of it has them; DataError for what is no text."""
        if not is_text(text):
            raise DataError(say_text(text, "prompt"))
        return [*self._lead, *self._tokens([cast(str, text)])[0]]

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        parts = [self._parts(row) for row in rows]
        prompts = self._tokens([prompt for prompt, _ in parts])
        answers = self._tokens([answer or "" for _, answer in parts])
        features = []
        for prompt, (_, answer), told in zip(prompts, parts, answers, strict=True):
            features.append(self._row([*self._begin(), *prompt], None if answer is None else self._finished(told)))
        return features

    def _parts(self, row: Row) -> tuple[str, str | None]:
        """A row's prompt and answer, as they become tokens."""
        for column in self.columns:
            if row.get(column) is not None and not is_text(row[column]):
                raise DataError(say_text(row[column], column))
        if row.get("prompt") is None:
            raise DataError(say_text(None, "prompt"))
        return row["prompt"], row.get("completion")

    def _answer(self, row: Row) -> str | None:
        """A row's answer as people read it."""
        answer: str | None = row.get("completion")
        return answer

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return found

    def _begin(self) -> list[int]:
        return self._lead

    def _finished(self, answer: list[int]) -> list[int]:
        """An answer's tokens with the one that ends it."""
        return answer if answer[-1:] == self._end else [*answer, *self._end]

    def _row(self, prompt: list[int], answer: list[int] | None) -> Features:
        if not prompt:
            raise DataError("the prompt has no tokens on this base; write more of it")
        room = self.longest - 1
        row = Features(input_ids=prompt[-room:])
        if answer is not None:
            row[_TARGET] = answer[: self.longest - len(row["input_ids"])]
        if len(prompt) > room:
            row["cut"] = f"{self._length.why.removesuffix(',')} by its prompt alone,"
        elif len(row.get(_TARGET, ())) < len(answer or ()):
            row["cut"] = self._length.why
        return row

    def size(self, features: Features) -> int:
        """Tokens."""
        return len(_all(features))

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """input_ids and attention_mask, [rows, longest]: prompt and answer, padded at the end."""
        return pad([_all(row) for row in features], SimpleNamespace(pad_token_id=self._tokenizer.pad_token_id))

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """Cross entropy of each token that is asked for, after those before it, as in transformers' loss."""
        return of_rows(outputs, [self.asked(row) for row in features])

    def asked(self, row: Features) -> tuple[int, list[int]]:
        first = self._first(row)
        return first - 1, _all(row)[first:]

    def teaching(self, spec: TaskSpec) -> TaskSpec:
        """This task's own options, so that rows are the same."""
        return self.spec

    @property
    def known(self) -> int:
        return len(self._tokenizer)

    def _first(self, row: Features) -> int:
        """The first token of a row that the loss is of."""
        return 1 if self.spec.loss == "all" else len(row["input_ids"])

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        unknown = sorted(set(parameters) - {"losses"})
        if unknown:
            raise RecipeError(f"parameters {unknown} are not known to this task")

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        """The likeliest next token's text; with `losses` the loss of the answer that the row has, and its tokens."""
        import torch

        self.check_parameters(parameters)
        if parameters.get("losses"):
            sums, counts = self.loss(outputs, features)
            return [{"loss": loss, "tokens": int(n)} for loss, n in zip(sums.tolist(), counts.tolist(), strict=True)]
        last = torch.tensor([len(row["input_ids"]) - 1 for row in features])
        logits = logits_of(outputs, torch.arange(len(features)), last)
        return [{"generated_text": self._tokenizer.decode([token])} for token in logits.argmax(-1).tolist()]

    # ------------------------------------------------------------ of answers that are written token by token

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset(self._end)

    def opening(self, features: Features) -> tuple[list[int], list[int]]:
        """The tokens that are gone on with, and those that follow in the row."""
        return features["input_ids"], features.get(_TARGET, [])

    def said(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without those that are no text."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def most(self, parameters: Mapping[str, Json]) -> int:
        """How many tokens of an answer are written beside what `decode` gives."""
        return 0

    def with_written(self, answer: Json, tokens: Sequence[int], ended: bool) -> Json:
        """An answer of `decode` with what was written: `text`, and `ended`, whether it came to its end."""
        return {**answer, "text": self.said(tokens), "ended": ended}

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """Of all tokens that the loss is of: long answers count for more."""
        loss = sum(answer["loss"] for answer in predictions) / max(1, sum(answer["tokens"] for answer in predictions))
        return {"perplexity": math.exp(min(loss, _MOST)), "loss": float(loss)}

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        return {}


def _all(row: Features) -> list[int]:
    tokens: list[int] = [*row["input_ids"], *row.get(_TARGET, ())]
    return tokens
