"""Text generation on causal language models: what follows a prompt. A row is, by the option `rows`, one of

    {"prompt": "The capital of Peru is", "completion": " Lima."}
    {"text": "Lima is the capital of Peru."}
    {"messages": [{"role": "user", "content": "Capital of Peru?"}, {"role": "assistant", "content": "Lima."}]}

The answer is the completion, the last message where it is the assistant's, or all of a text. Prompt and answer become
tokens by themselves, as they do when the answer is still to come, and the tokenizer's end of text closes the answer.

A prompt that leaves no room keeps its end, an answer that is too long its beginning; such rows are counted as cut, and
at least one token of every answer is read. With `answer_tokens` scores have answers written too, for `exact_match`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from ray_lora.errors import DataError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.dialogues import ANSWERS, Dialogues, wrong
from ray_lora.tasks.exact_match import exact_match
from ray_lora.tasks.generation_options import TextGenerationSpec
from ray_lora.tasks.prompted import Prompted
from ray_lora.tasks.rows import is_text, say_text
from ray_lora.tasks.task import Column, Features, Row

if TYPE_CHECKING:
    import pyarrow as pa

_SAID = "reference"  # the answer's text, where answers are compared whole
_OPENING = 4  # of a text this part is what a sample goes on from


class TextGeneration(Prompted):
    """Rows of prompt and completion; of the other kinds what `of` chooses."""

    @classmethod
    def of(cls, spec: TaskSpec) -> type[Prompted]:
        return _CLASSES[cast(TextGenerationSpec, spec).rows, cast(TextGenerationSpec, spec).answer_tokens is not None]


class TextsAlone(Prompted):
    """Rows of texts, each token of which is predicted but the first; asked, a text is a prompt."""

    columns: ClassVar[Mapping[str, Column]] = {"text": Column(("text",), about="what is to be written")}
    input: ClassVar[str] = "text"

    def _parts(self, row: Row) -> tuple[str, str | None]:
        if not is_text(row["text"]):
            raise DataError(say_text(row["text"]))
        return row["text"], None

    def _row(self, prompt: list[int], answer: list[int] | None) -> Features:
        whole = self._finished(prompt)
        if len(whole) < 2:
            raise DataError("the text has one token on this base, which follows nothing; write more of it")
        row = Features(input_ids=whole[: self.longest])
        if len(whole) > self.longest:
            row["cut"] = self._length.why
        return row

    def _first(self, row: Features) -> int:
        return 1

    def opening(self, features: Features) -> tuple[list[int], list[int]]:
        ids: list[int] = features["input_ids"]
        first = max(1, len(ids) // _OPENING)
        return ids[:first], ids[first:]


class DialogueGeneration(Prompted):
    """Rows of messages, written as the base's chat template writes them."""

    columns: ClassVar[Mapping[str, Column]] = {
        "messages": Column(("messages",), about="a list of {role, content}, the last the assistant's answer")
    }
    input: ClassVar[str] = "messages"

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        super().__init__(spec, processor)
        self._dialogues = Dialogues(processor)

    @property
    def ends(self) -> frozenset[int]:
        return super().ends | self._dialogues.ends

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        for row, messages in enumerate(block.column("messages").to_pylist()):
            why = wrong(messages, answered=True)
            if why is not None:
                yield row, why

    def prompt(self, text: object) -> list[int]:
        """The tokens of messages, up to where the answer begins; DataError for what is none."""
        return self._tokens([self._dialogues.parts(text)[0]])[0]

    def _parts(self, row: Row) -> tuple[str, str | None]:
        return self._dialogues.parts(row["messages"])

    def _begin(self) -> list[int]:
        return []  # the template writes it

    def _finished(self, answer: list[int]) -> list[int]:
        return answer

    def _answer(self, row: Row) -> str | None:
        last = row["messages"][-1]
        return last["content"] if last["role"] == ANSWERS else None


class _Answers(Prompted):
    """Scores have answers written, the likeliest token and the next, and compare them whole."""

    scoring: ClassVar[Mapping[str, Json]] = {"losses": True, "answers": True}
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {**Prompted.metrics, "exact_match": "max"}

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        found = super().encode(rows)
        return [
            features if (answer := self._answer(row)) is None else features | {_SAID: answer}
            for features, row in zip(found, rows, strict=True)
        ]

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        super().check_parameters({name: value for name, value in parameters.items() if name != "answers"})

    def most(self, parameters: Mapping[str, Json]) -> int:
        return self.spec.answer_tokens or 0 if parameters.get("answers") else 0

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """What has not ended within `answer_tokens` is no match."""
        answers = [answer["text"] if answer["ended"] else None for answer in predictions]
        matched = exact_match(answers, [row[_SAID] for row in features], self.spec.normalisation)
        return super().score(predictions, features) | {"exact_match": matched}


class PromptAnswers(_Answers):
    """Rows of prompt and completion whose completions are short."""


class DialogueAnswers(_Answers, DialogueGeneration):
    """Rows of messages whose answers are short."""


_CLASSES: Mapping[tuple[str, bool], type[Prompted]] = {
    ("prompt", False): TextGeneration,
    ("text", False): TextsAlone,
    ("messages", False): DialogueGeneration,
    ("prompt", True): PromptAnswers,
    ("messages", True): DialogueAnswers,
}
