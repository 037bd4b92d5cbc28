"""Question answering: the answer is a piece of a context, or there is none. A row is

    {"question": "What is the capital?", "context": "Peru's capital is Lima.",
     "answers": {"text": ["Lima"], "answer_start": [18]}}

as in SQuAD. A context longer than the base reads at once is read in windows that overlap by `doc_stride` tokens.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.segments import tells_apart
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.gold_answers import Gold, answers_of
from ray_lora.tasks.lengths import Length
from ray_lora.tasks.rows import is_text, say_text, shown
from ray_lora.tasks.soft_spans import NONE, SoftSpans, impossible
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.tasks.text_rows import LongTextRows
from ray_lora.tasks.words import words_of

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

    from ray_lora.tasks.span_answers import Options

_PLAIN = "AutoModelForQuestionAnswering"
# tokens of a window, of what two windows share, and of a question, as in Hugging Face's pipeline; on a base of fewer
# positions these give way, any other number is refused
_LENGTH, _STRIDE, _QUESTION = 384, 128, 64


class QuestionAnsweringSpec(TaskSpec):
    """How long contexts are read, and which answers there may be; names and defaults are Hugging Face's.

    Attributes:
        max_length: tokens of a window, question included.
        doc_stride: tokens by which windows overlap.
        max_question_len: tokens of a question; longer ones are cut.
        max_answer_len: tokens of the longest answer.
        handle_impossible_answer: whether "" may be the answer; null: whether it is in the training rows.
    """

    type: Literal["question-answering"] = "question-answering"
    max_length: int = Field(default=_LENGTH, ge=16)
    doc_stride: int = Field(default=_STRIDE, ge=0)
    max_question_len: int = Field(default=_QUESTION, ge=1)
    max_answer_len: int = Field(default=30, ge=1, le=1000)
    handle_impossible_answer: bool | None = None

    @property
    def outputs(self) -> int | None:
        return 2

    def describe(self) -> dict[str, Json]:
        return {"handle_impossible_answer": bool(self.handle_impossible_answer)}


class QuestionAnswering(LongTextRows, SoftSpans):
    """Spans of a context, from the plain class AutoModelForQuestionAnswering."""

    spec_type: ClassVar[type[TaskSpec]] = QuestionAnsweringSpec
    columns: ClassVar[Mapping[str, Column]] = {
        "question": Column(("text",), about="what is asked"),
        "context": Column(("text",), about="the text that holds the answer"),
        "answers": Column(("answers", "text"), "training", "{text: [...], answer_start: [...]}, or the answer's text"),
    }
    input: ClassVar[str] = "question"
    pipeline: ClassVar[str] = "question-answering"
    full: ClassVar[Mapping[str, Json]] = {"top_k": 5, "handle_impossible_answer": True}
    metric: ClassVar[str] = "f1"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = dict.fromkeys(("f1", "exact_match"), "max")
    peft_type: ClassVar[str | None] = "QUESTION_ANS"
    truths: ClassVar[tuple[str, str]] = ("targets", "target")

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        options = cast(QuestionAnsweringSpec, spec)
        if not getattr(processor, "is_fast", False) or processor("a", "b")["input_ids"][0] != processor.cls_token_id:
            raise RecipeError(
                "question-answering needs a base with a fast tokenizer that begins with a CLS token, which stands for "
                "no answer: an encoder such as BERT or RoBERTa"
            )
        self.spec = spec
        self.head = HeadSpec(_PLAIN, 2)
        self._options, self._tokenizer = options, processor
        self._length = Length.of(options.max_length, processor, default=_LENGTH)
        asked, stride = options.max_question_len, options.doc_stride
        self._asked_len = min(asked, self.longest // 4) if asked == _QUESTION else asked
        room = self.longest - processor.num_special_tokens_to_add(pair=True) - self._asked_len
        self._stride = max(0, min(stride, room // 2)) if stride == _STRIDE else stride
        if room <= self._stride:
            raise RecipeError(
                f"task.max_length {self.longest} leaves {room} tokens to the context beside a question of "
                f"task.max_question_len {self._asked_len}; task.doc_stride {self._stride} must be less"
            )
        typed = tells_apart(processor)
        if typed is None:
            raise RecipeError(
                "question-answering needs a base that tells two texts apart as BERT does, or not at all; this base's "
                "tokenizer writes token_type_ids of a kind that was not compared with its plain class"
            )
        self._typed = typed

    @property
    def longest_question(self) -> int:
        """Tokens, of a question."""
        return self._asked_len

    # ------------------------------------------------------------ of a block of rows

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> bool:
        """Whether the block has a question without an answer."""
        answers = block.column("answers").to_pylist()
        return any(isinstance(value, Mapping) and not value.get("text") for value in answers)

    @classmethod
    def merge(cls, spec: TaskSpec, learned: Iterable[bool]) -> TaskSpec:
        known = cast(QuestionAnsweringSpec, spec).handle_impossible_answer is not None
        return spec if known else spec.model_copy(update={"handle_impossible_answer": any(learned)})

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        """Rows without a question or a context, and answers that do not stand where they are said to."""
        columns = (block.column(name).to_pylist() for name in cls.columns)
        impossible = cast(QuestionAnsweringSpec, spec).handle_impossible_answer
        for row, (question, context, answers) in enumerate(zip(*columns, strict=True)):
            why = _wrong(question, context)
            if why is None:
                try:
                    if not answers_of(answers, context) and impossible is False:
                        why = "the question has no answer, and task.handle_impossible_answer is false; leave it out"
                except DataError as error:
                    why = str(error)
            if why is not None:
                yield row, why

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        """As Hugging Face's pipeline answers where it is told nothing."""
        if head.architecture != _PLAIN or head.num_labels != 2:
            return None
        return QuestionAnsweringSpec(max_answer_len=15, handle_impossible_answer=False)

    # ------------------------------------------------------------ of rows on their way through the model

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        """`windows`, each with `input_ids`, where its context lies (`begin`, `end`), and its tokens' places (`offsets`,
        `words`); `context`; with answers also their texts, and each window's first and last token of the first one."""
        features = []
        for row in rows:
            question, context = row["question"], row["context"]
            why = _wrong(question, context)
            if why is not None:
                raise DataError(why)
            asked = self._question(question)
            found: Features = {"windows": self._read(asked, context), "context": context}
            if asked != question:
                found["cut"] = f"questions longer than task.max_question_len, {self._asked_len} tokens,"
            if row.get("answers") is not None:
                golds = answers_of(row["answers"], context)
                found["answers"] = [gold.text for gold in golds]
                found["targets"] = [_target(window, golds) for window in found["windows"]]
                if golds and not any(map(any, found["targets"])):
                    _check_read(golds[0], found["windows"])
                    found["cut"] = f"answers longer than what two windows share, {self._stride} tokens,"
            features.append(found)
        return features

    def _question(self, question: str) -> str:
        """A question without what is beyond `max_question_len`."""
        places = self._tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return question if len(places) <= self._asked_len else question[: places[self._asked_len - 1][1]]

    def _read(self, question: str, context: str) -> list[Features]:
        """The windows of a context; DataError when nothing of it is a token."""
        encoded = self._tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=self.longest,
            stride=self._stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=self._typed,
            return_attention_mask=False,
        )
        windows = []
        for number, ids in enumerate(encoded["input_ids"]):
            of = encoded.sequence_ids(number)
            if 1 not in of:
                raise DataError("nothing of the context is a token of this base; leave the row out")
            window: Features = {"input_ids": ids, "begin": of.index(1), "end": len(of) - of[::-1].index(1)}
            if self._typed:
                window["token_type_ids"] = encoded["token_type_ids"][number]
            places = encoded["offset_mapping"][number]
            windows.append(window | {"offsets": places, "words": words_of(encoded.word_ids(number), places, context)})
        # a tokenizer that cuts from the left begins with the last one
        return sorted(windows, key=lambda window: window["offsets"][window["begin"]])

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """The mean of two cross entropies, of the answer's first and last token among those that can be in an answer;
        one term a window. A window that does not hold the answer answers with the CLS token."""
        import torch
        import torch.nn.functional as F

        starts, ends = outputs.start_logits, outputs.end_logits
        width = starts.shape[1]
        never = impossible(features, width, self.held).to(starts.device)
        firsts = torch.tensor([[self.held(len(window["input_ids"]), width).start] for window in features])
        targets = (torch.tensor([window["target"] for window in features]) + firsts).to(starts.device)
        losses = [
            F.cross_entropy(logits.masked_fill(never, float("-inf")), targets[:, at], reduction="none")
            for at, logits in enumerate((starts, ends))
        ]
        return (losses[0] + losses[1]) / 2, torch.ones_like(losses[0])

    # ------------------------------------------------------------ answers

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        self._chosen(parameters)

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Any]:
        """Of each window its likeliest spans, for `whole`."""
        from ray_lora.tasks.span_answers import spans_of

        options = self._chosen(parameters)
        starts, ends = outputs.start_logits.float().cpu().numpy(), outputs.end_logits.float().cpu().numpy()
        held = [self.held(len(window["input_ids"]), starts.shape[1]) for window in features]
        return [
            spans_of(window, starts[row, mine], ends[row, mine], options)
            for row, (window, mine) in enumerate(zip(features, held, strict=True))
        ]

    def whole(self, parts: Sequence[Any], features: Features, parameters: Mapping[str, Json]) -> Json:
        """`{"score", "start", "end", "answer"}`, or with a `top_k` above 1 a list of them, best first."""
        from ray_lora.tasks.span_answers import whole_answer

        return whole_answer(parts, features["context"], self._chosen(parameters))

    def _chosen(self, parameters: Mapping[str, Json]) -> Options:
        from ray_lora.tasks.span_answers import Options

        return Options.of(parameters, bool(self._options.handle_impossible_answer), self._options.max_answer_len)

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """SQuAD's exact match and F1 of words, from 0 to 1; a question without an answer wants ""."""
        from torchmetrics.functional.text import squad

        given = [{"prediction_text": answer["answer"], "id": str(row)} for row, answer in enumerate(predictions)]
        wanted: list[Any] = [
            {"answers": {"text": row["answers"] or [""], "answer_start": [0]}, "id": str(number)}
            for number, row in enumerate(features)
        ]
        found = squad(given, wanted)
        return {"f1": float(found["f1"]) / 100, "exact_match": float(found["exact_match"]) / 100}

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        return {}


def _wrong(question: Any, context: Any) -> str | None:
    """What is wrong with a question or a context as a text."""
    for name, text in (("question", question), ("context", context)):
        if not is_text(text):
            return f"{name}: {say_text(text)}"
    return None


def _check_read(gold: Gold, windows: Sequence[Features]) -> None:
    """DataError where nothing of an answer is a token: it would be taught as none."""
    first, last = gold.span
    for window in windows:
        if any(begin < last and end > first for begin, end in window["offsets"][window["begin"] : window["end"]]):
            return
    raise DataError(f"nothing of the answer {shown(gold.text)} is a token of this base; leave the row out")


def _target(window: Features, golds: Sequence[Gold]) -> tuple[int, int]:
    """First and last token of the first right answer, or twice the CLS token where the window does not hold it."""
    begin, end, offsets = window["begin"], window["end"], window["offsets"]
    if not golds:
        return NONE, NONE
    first, last = golds[0].span
    if offsets[begin][0] > first or offsets[end - 1][1] < last:
        return NONE, NONE
    # a character may be of several tokens, which then lie in one place
    start = bisect_right(offsets, first, begin, end, key=lambda place: place[1])
    stop = bisect_left(offsets, last, begin, end, key=lambda place: place[0]) - 1
    return (start, stop) if begin <= start <= stop < end else (NONE, NONE)
