"""A text, or two that are read together, as a base's inputs: a row is

    {"text": "what a lovely day"}
    {"text": "A man sleeps.", "text_pair": "Somebody is awake."}

Which of two texts a token is of is told to bases that ask for it, as their tokenizers write it. Two texts that are too
long are cut token by token, the longer one first. It knows no labels and no answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ray_lora.bases.segments import tells_apart
from ray_lora.errors import DataError, RecipeError
from ray_lora.tasks.lengths import Length
from ray_lora.tasks.rows import bad_texts, is_text, say_text, say_unread
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.tasks.text_rows import TextRows
from ray_lora.transform_spec import Needs

if TYPE_CHECKING:
    import pyarrow as pa

PAIR = "text_pair"
TEXTS: Mapping[str, Column] = {
    "text": Column(("text",), about="what is to be classified"),
    PAIR: Column(("text",), "optional", "a second text, where two are to be read together"),
}
_TYPES = "token_type_ids"


class Texts(TextRows):
    """Rows of a text, or of two."""

    input: ClassVar[str] = "text"
    pipeline: ClassVar[str] = "text-classification"
    peft_type: ClassVar[str | None] = "SEQ_CLS"

    def __init__(self, max_length: int | None, processor: Any) -> None:
        if not hasattr(processor, "pad_token_id"):
            raise RecipeError("text-classification needs a base with a tokenizer; this base has none")
        self._tokenizer = processor
        self._length = Length.of(max_length, processor)

    @property
    def augments(self) -> frozenset[Needs]:
        """What is said of a text as a whole is said of it without a word too."""
        whole: frozenset[Needs] = frozenset({"order"})
        return super().augments | whole

    def encode_texts(self, rows: Sequence[Row]) -> list[Features]:
        """`input_ids` of each row, and `token_type_ids` of those of two texts where the base takes them.

        Raises:
            DataError: a text is none, or this base cannot read two.
        """
        features: list[Features] = [{} for _ in rows]
        for paired in (False, True):
            chosen = [at for at, row in enumerate(rows) if (PAIR in row) == paired]
            if chosen:
                encoded = self._encode([rows[at] for at in chosen], paired)
                for at, feature in zip(chosen, encoded, strict=True):
                    features[at] = feature
        return features

    def _encode(self, rows: Sequence[Row], paired: bool) -> list[Features]:
        columns = ("text", PAIR) if paired else ("text",)
        texts = [[_text(row[column], column) for row in rows] for column in columns]
        types = paired and self._check_pairs()
        encoded = self._tokenizer(*texts, truncation=True, max_length=self.longest, return_token_type_ids=types)
        features = [Features(input_ids=ids) for ids in encoded["input_ids"]]
        for feature, *given in zip(features, *texts, strict=True):
            if not feature["input_ids"]:
                raise DataError(say_unread(" ".join(given)))
        if types:
            for feature, of_tokens in zip(features, encoded[_TYPES], strict=True):
                feature[_TYPES] = of_tokens
        self._length.mark(features, encoded)
        return features

    def _check_pairs(self) -> bool:
        """Whether rows of two texts have token types here; DataError where they cannot be read."""
        special = getattr(self._tokenizer, "num_special_tokens_to_add", None)
        if special is None:
            raise DataError(f"this base's tokenizer reads one text at a time; leave {PAIR} out")
        least = special(pair=True) + 2
        if self.longest < least:
            raise DataError(f"two texts need {least} tokens or more, and rows are cut at {self.longest}")
        told = tells_apart(self._tokenizer)
        if told is None:
            raise DataError(
                f"this base's tokenizer writes {_TYPES} of a kind that was not compared with its plain class; leave "
                f"{PAIR} out, or choose a base that tells two texts apart as BERT does"
            )
        return told


def bad_rows(block: pa.Table) -> Iterator[tuple[int, str]]:
    """The rows of a block, from 0, one of whose texts is none or a blank one."""
    for column in TEXTS:
        if column in block.column_names:
            yield from bad_texts(block.column(column), column)


def _text(value: Any, column: str) -> str:
    if not is_text(value):
        raise DataError(say_text(value, column))
    text: str = value
    return text
