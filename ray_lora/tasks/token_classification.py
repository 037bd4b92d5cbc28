"""Entities, parts of speech: one label a word. A row is

    {"tokens": ["Ada", "Lovelace", "lived", "in", "London"], "tags": ["B-person", "I-person", "O", "O", "B-place"]}

Words are joined by a blank and read as the text that a request holds, so that answers train on what they will see. A
word's label is predicted at its first piece, or (where a decoder reads from left to right) its last; a decoder may read
both ways too. Answers are those of transformers' token-classification pipeline, by its own code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.task_spec import Attention
from ray_lora.tasks.classification import ClassificationSpec, Labelled, taught
from ray_lora.tasks.labels import label_index, plain_labels
from ray_lora.tasks.lengths import LENGTH, Length
from ray_lora.tasks.pictures import confusion
from ray_lora.tasks.rows import is_text, say_text, say_unread, shown
from ray_lora.tasks.soft_words import SoftWords
from ray_lora.tasks.spans import OUTSIDE, entities, is_iob2, options_of, other_scheme
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.tasks.teaching import Taught, wrong_labels
from ray_lora.tasks.text_rows import LongTextRows
from ray_lora.tasks.words import in_order, is_written_list, listed, numbered, pieces_in, text_of

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure
    from torch import Tensor

_PLAIN = "AutoModelForTokenClassification"
_IGNORED = -100  # a piece without a label, as transformers has it
_ENCODED = ("input_ids", "offset_mapping", "special_tokens_mask")
_NOT_IOB2 = "is of a scheme that is not read here; write IOB2: S- and U- as B-, and E-, L- and M- as I-"
_NAMES = ("input_ids", "offsets", "special", "text")


class TokenClassificationSpec(ClassificationSpec):
    """Labels, where a text is cut, which piece of a word has its label, and what a token sees of its row.

    Attributes:
        stride: tokens by which the windows overlap in which a longer text is read, as in Hugging Face's pipeline; null:
            it is cut.
        attention: "bidirectional" lets a decoder's tokens see all of their row; null: as the base's class is.
    """

    type: Literal["token-classification"] = "token-classification"
    max_length: int | None = Field(default=LENGTH, ge=2)
    piece: Literal["first", "last"] = "first"
    stride: int | None = Field(default=None, ge=0, exclude_if=lambda told: told is None)
    attention: Attention | None = Field(default=None, exclude_if=lambda told: told is None)

    @property
    def reads(self) -> Attention | None:
        return self.attention


class TokenClassification(LongTextRows, Labelled, SoftWords):
    """One label a word, from the plain class AutoModelForTokenClassification."""

    spec_type: ClassVar[type[TaskSpec]] = TokenClassificationSpec
    columns: ClassVar[Mapping[str, Column]] = {
        "tokens": Column(("words", "text"), about="the words, as a list or between blanks; a text to be answered"),
        "tags": Column(("labels",), "training", "a label, or its index among the labels, for each word"),
    }
    input: ClassVar[str] = "tokens"
    pipeline: ClassVar[str] = "token-classification"
    full: ClassVar[Mapping[str, Json]] = {"ignore_labels": []}
    calibrates: ClassVar[bool] = True
    metric: ClassVar[str] = "f1"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = dict.fromkeys(
        ("f1", "precision", "recall", "accuracy"), "max"
    )
    peft_type: ClassVar[str | None] = "TOKEN_CLS"
    truths: ClassVar[tuple[str, str]] = ("labels", "labels")

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        super().__init__(spec)
        options = cast(TokenClassificationSpec, spec)
        if not getattr(processor, "is_fast", False):
            raise RecipeError("token-classification needs a base with a fast tokenizer, which says where a piece lies")
        self.head = HeadSpec(_PLAIN, len(self.labels), self.labels, options.attention)
        self._length = Length.of(options.max_length, processor)
        self._last, self._stride = options.piece == "last", options.stride
        self._tokenizer = processor
        room = self.longest - processor.num_special_tokens_to_add()
        if self._stride is not None and self._stride >= room:
            raise RecipeError(f"task.stride {self._stride} must be less than the {room} tokens of a window")

    # ------------------------------------------------------------ of a block of rows

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> Taught:
        """The block's labels, where the options do not say them, and the first rows that have none."""
        return taught(spec, _each(block.column("tags").to_pylist()))

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        """Rows without words, and words without a label of the options'."""
        labels = cast(TokenClassificationSpec, spec).labels or ()
        tags = block.column("tags").to_pylist()
        for row, (words, given) in enumerate(zip(block.column("tokens").to_pylist(), tags, strict=True)):
            why = _unlike(words, given)
            if why is not None:
                yield row, why
        if other := other_scheme(labels):
            first = next((row for row, tag in _each(tags) if tag in (other, labels.index(other))), None)
            if first is not None:
                yield first, f"label {shown(other)} {_NOT_IOB2}"
        seen = -1
        for row, why in wrong_labels(_each(tags), labels):
            if row != seen:  # the first wrong label of a row
                yield row, why
            seen = row

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        """Its classes are LABEL_0, LABEL_1, … as transformers names them."""
        if head.architecture != _PLAIN or head.num_labels < 2:
            return None
        labels = plain_labels(head.num_labels)
        return TokenClassificationSpec(labels=labels, max_length=None, attention=head.attention)

    # ------------------------------------------------------------ of rows on their way through the model

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        """Beside `input_ids`: the text, where each piece lies in it, which are special; with tags also the class of
        each piece (`labels`), of each word (`tags`), and the piece that stands for a word (`pieces`, None: it is
        cut). Of a text that is read in several `windows` they have the first three, each its own `labels`, and
        `pieces` are counted through."""
        texts = [text_of(row["tokens"]) for row in rows]
        encoded = self._tokenizer(
            texts,
            truncation=True,
            max_length=self.longest,
            stride=self._stride or 0,
            return_overflowing_tokens=self._stride is not None,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_token_type_ids=False,
            return_attention_mask=False,
        )
        owners = encoded.get("overflow_to_sample_mapping", range(len(texts)))
        windows: list[list[Features]] = [[] for _ in texts]
        for owner, *parts in zip(owners, *(encoded[key] for key in _ENCODED), strict=True):
            windows[owner].append(dict(zip(_NAMES, (*parts, texts[owner]), strict=True)))
        for text, (first, *_) in zip(texts, windows, strict=True):
            if not first["input_ids"]:
                raise DataError(say_unread(text))
        features = [self._features(row, in_order(mine)) for row, mine in zip(rows, windows, strict=True)]
        if self._stride is None:
            self._length.mark(features, encoded)
        return features

    def _features(self, row: Row, windows: list[Features]) -> Features:
        several = len(windows) > 1
        found: Features = {"windows": windows, "text": windows[0]["text"]} if several else windows[0]
        if row.get("tags") is None:
            return found
        words, tags = listed(row["tokens"]), listed(row["tags"])
        why = _unlike(row["tokens"], row["tags"])
        if why is not None:
            raise DataError(why)
        assert words is not None
        assert tags is not None
        places = pieces_in(words, windows, self._last)
        classes = [label_index(tag, self.labels) for tag in tags]
        labels = [[_IGNORED] * len(window["input_ids"]) for window in windows]
        for place, label in zip(places, classes, strict=True):
            if place is not None:
                labels[place[0]][place[1]] = label
        if not any(places):
            raise DataError(f"none of the words {words[:5]} is a token of this base; leave the row out")
        firsts = numbered(windows)
        pieces = [None if place is None else firsts[place[0]] + place[1] for place in places]
        return found | {"labels": labels if several else labels[0], "tags": classes, "pieces": pieces}

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """The sum over a row's labelled words, and their number."""
        import torch
        import torch.nn.functional as F

        logits = outputs.logits
        targets = torch.full(logits.shape[:2], _IGNORED)
        for row, feature in enumerate(features):
            targets[row, self.held(len(feature["labels"]), targets.shape[1])] = torch.tensor(feature["labels"])
        targets = targets.to(logits.device)
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=_IGNORED)
        return losses.sum(1), (targets != _IGNORED).sum(1).to(losses.dtype)

    # ------------------------------------------------------------ answers

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        options_of(parameters)

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Any]:
        """The logits of each window, [pieces, labels] float32, for `whole`."""
        return [
            logits[self.held(self.size(window), logits.shape[0])]
            for window, logits in zip(features, outputs.logits.float().cpu(), strict=True)
        ]

    def whole(self, parts: Sequence[Any], features: Features, parameters: Mapping[str, Json]) -> Json:
        """A list of pieces, or (with an `aggregation_strategy`) of entities, with their places in the text."""
        return self._answers.of(features.get("windows", [features]), parts, options_of(parameters))

    @cached_property
    def _answers(self) -> Any:
        from ray_lora.tasks.token_answers import Answers

        return Answers(self._tokenizer, self.labels)

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """Entities by exact span and type, all rows together; accuracy over words. What was cut counts as "O".

        Strictly by IOB2 where the rows' own labels are; else as conlleval reads them (Tjong Kim Sang and De Meulder,
        2003), where an I-x may begin one. A label without B- or I- is an entity of one word, but for "O".
        """
        hits = given = wanted = right = words = 0
        truths = [[self.labels[tag] for tag in row["tags"]] for row in features]
        strict = all(map(is_iob2, truths))
        for answer, row, truth in zip(predictions, features, truths, strict=True):
            guess = self._guess(answer, row)
            one, other = entities(truth, strict), entities(guess, strict)
            hits, given, wanted = hits + len(one & other), given + len(other), wanted + len(one)
            right, words = right + sum(a == b for a, b in zip(truth, guess, strict=True)), words + len(truth)
        precision, recall = hits / max(1, given), hits / max(1, wanted)
        f1 = 2 * hits / max(1, given + wanted)
        return {"f1": f1, "precision": precision, "recall": recall, "accuracy": right / max(1, words)}

    def _guess(self, answer: Json, row: Features) -> list[str]:
        """The label that an answer with no parameters gives each word."""
        by_piece = {part["index"]: part["entity"] for part in answer}
        return [by_piece.get(piece, OUTSIDE) for piece in row["pieces"]]

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, Figure]:
        """`confusion_matrix`, over words: rows are the truth, columns the answers."""
        truth = [self.labels[tag] for row in features for tag in row["tags"]]
        guess = [label for answer, row in zip(predictions, features, strict=True) for label in self._guess(answer, row)]
        return confusion(list(dict.fromkeys([*self.labels, *guess])), truth, guess)


def _each(rows: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Every label with its row; a row that is no list of labels has none."""
    return ((number, tag) for number, tags in enumerate(rows) for tag in listed(tags) or ())


def _unlike(tokens: Any, tags: Any) -> str | None:
    """What is wrong with a row's words, or with how many labels they have."""
    for name, value in (("tokens", tokens), ("tags", tags)):
        if is_written_list(value, of_words=name == "tokens"):
            return f"{name} {shown(value)} are a list written as a text; write words between blanks, or a list in jsonl"
    words, given = listed(tokens), listed(tags)
    if not words:
        return f"tokens {shown(tokens)} are no words; give a list of words, or a text with blanks between them"
    for word in words:
        if not is_text(word):
            return f"token {say_text(word)}"
    if given is None or len(given) != len(words):
        return f"{len(words)} tokens have {'no list of' if given is None else len(given)} tags; give one for each token"
    return None
