"""Speech recognition: what a sound says. A row is

    {"audio": b"<the bytes of a wav, flac, ogg or mp3 file>", "text": "The cat sat."}

The base is Whisper, whose decoder writes the text behind its encoder; its own output layer answers, adapters lie below
it. An answer is {"text": " The cat sat."}, and with the parameter `return_timestamps` it has "chunks" too.

A sound that is asked for may be longer than the base's window: it is heard in pieces that overlap. One that trains or
scores may not, since nobody says which words are in which piece. A text that is too long keeps its beginning, and its
row is counted as cut.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.speech import Speech
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.augmented import Sound
from ray_lora.tasks.begun import Begun
from ray_lora.tasks.rows import bad_texts, is_text, say_text
from ray_lora.tasks.sounds import is_silent, open_sound
from ray_lora.tasks.speech import wording
from ray_lora.tasks.speech.asked import allowed, check
from ray_lora.tasks.speech.heard import Cut, cuts, joined
from ray_lora.tasks.speech.language import lead_of, prompt_of
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.tasks.token_losses import of_rows
from ray_lora.transform_spec import Needs

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

_logger = logging.getLogger(__name__)
_PLAIN = "AutoModelForSpeechSeq2Seq"
_OVERLAP = 6  # of a window this part is shared with the neighbour where nobody says more, as in transformers' pipeline


class SpeechRecognition:
    """Rows of sounds and what they say.

    A row's features are `samples`, float32 [samples] at the base's rate, and in training `labels`, the text's tokens,
    `reference`, the text, and `hidden`, what is not to be heard of it. A piece of a longer row has its place in that
    beside, `piece`.
    """

    spec_type: ClassVar[type[TaskSpec]] = SpeechRecognitionSpec
    columns: ClassVar[Mapping[str, Column]] = {
        "audio": Column(("audio",), about="wav, flac, ogg or mp3"),
        "text": Column(("text",), "training", "what it says"),
    }
    input: ClassVar[str] = "audio"
    pipeline: ClassVar[str] = "automatic-speech-recognition"
    full: ClassVar[Mapping[str, Json]] = {"return_timestamps": True}
    metric: ClassVar[str] = "wer"
    metrics: ClassVar[Mapping[str, Literal["max", "min"]]] = {"wer": "min", "cer": "min"}
    peft_type: ClassVar[str | None] = None  # PEFT's type of sequence to sequence hands Whisper no sounds
    fits_head: ClassVar[bool] = False

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        told: Speech | None = getattr(processor, "speech", None)
        if told is None:
            raise RecipeError(
                "automatic-speech-recognition needs a Whisper with its tokenizer and feature extractor, such as "
                "whisper-tiny.en; this base is another"
            )
        self.base = told
        self.spec = cast(SpeechRecognitionSpec, spec)
        self._tokenizer, self._extractor = processor.tokenizer, processor.feature_extractor
        self.head = HeadSpec(_PLAIN, self.base.vocabulary)
        self._prompt = prompt_of(self.base, self.spec.language)
        self._lead = lead_of(self.spec.language)
        self._most = self.spec.max_length or self.base.written
        if self._most > self.base.written:
            raise RecipeError(
                f"task.max_length is {self._most}, the base has {self.base.written} positions; set it to that or less"
            )
        self._window = self.base.seconds * self.base.rate
        overlap = self.base.seconds / _OVERLAP if self.spec.overlap is None else self.spec.overlap
        if 2 * overlap >= self.base.seconds:
            raise RecipeError(
                f"task.overlap is {overlap:g} seconds at either end, the base hears {self.base.seconds} at once; set "
                "it below half of them"
            )
        self._overlap = round(overlap * self.base.rate)
        self.end: int = self.base.end

    # ------------------------------------------------------------ of a block of rows, before anything is loaded

    @classmethod
    def learn(cls, spec: TaskSpec, block: pa.Table) -> None:
        return None

    @classmethod
    def merge(cls, spec: TaskSpec, learned: Iterable[None]) -> TaskSpec:
        wording.check_installed()  # before anything starts, not with the first scores
        return spec

    @classmethod
    def check(cls, spec: TaskSpec, block: pa.Table) -> Iterator[tuple[int, str]]:
        """Every sound is decoded: that an end is missing shows nowhere else. Silent ones are told, and right."""
        yield from bad_texts(block.column("text"))
        sounds = (sound for chunk in block.column("audio").chunks for sound in chunk)
        silent = []
        for row, sound in enumerate(sounds):
            value = sound.as_py()
            try:
                if is_silent(open_sound(value)):
                    silent.append(value.get("path") if isinstance(value, Mapping) else None)
            except DataError as error:
                yield row, str(error)
        if silent:
            such = next((f", such as {path!r}" for path in silent if path), "")
            said = "%d of %d sounds are silent%s; their words are learned all the same"
            _logger.warning(said, len(silent), block.num_rows, such)

    def unknown(self, block: pa.Table) -> Iterator[tuple[int, str]]:
        """The rows whose sound is longer than this base hears at once."""
        sounds = (sound for chunk in block.column("audio").chunks for sound in chunk)
        for row, sound in enumerate(sounds):
            try:
                samples = len(open_sound(sound.as_py()))
            except DataError:
                continue  # said by `check`
            if samples > self._window:
                yield row, self._too_long(samples)

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        return SpeechRecognitionSpec() if head.architecture == _PLAIN else None

    # ------------------------------------------------------------ of rows on their way through the model

    @property
    def longest(self) -> int:
        return self.base.positions + self._most

    def encode(self, rows: Sequence[Row]) -> list[Features]:
        import torch

        features = []
        for row in rows:
            text = row.get("text")
            if text is not None and not is_text(text):
                raise DataError(say_text(text))
            samples = torch.from_numpy(open_sound(row["audio"]))
            found = Features(samples=samples)
            if text is not None:
                if len(samples) > self._window:
                    raise DataError(self._too_long(len(samples)))
                tokens = self._tokenizer(self._lead + text.strip(), add_special_tokens=False)["input_ids"]
                room = self._most - len(self._prompt)
                found |= {"labels": tokens[:room], "reference": text, "hidden": ()}
                if len(tokens) > room:
                    found["cut"] = f"longer than what is written, {self._most} tokens,"
            features.append(found)
        return features

    def _too_long(self, samples: int) -> str:
        return (
            f"the sound is {samples / self.base.rate:.1f} s long, and this base learns from at most "
            f"{self.base.seconds} s; cut it into sentences, with the words of each"
        )

    def windows(self, features: Features) -> Sequence[Features]:
        """The pieces in which a sound is heard."""
        found = cuts(len(features["samples"]), self._window, self._overlap)
        if len(found) == 1:
            return (features,)
        return [
            Features(samples=features["samples"][cut.start : cut.end], piece=(cut.start, cut.end, cut.left, cut.right))
            for cut in found
        ]

    def size(self, features: Features) -> int:
        """Positions of the encoder and tokens of the decoder, of all windows."""
        windows = len(cuts(len(features["samples"]), self._window, self._overlap))
        return windows * (self.base.positions + len(self._prompt)) + len(features.get("labels", ()))

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """`input_features` [rows, mel, frames] of a whole window each, and `decoder_input_ids` [rows, longest], what
        begins a text and the text, padded at the end: a token sees none that follow it."""
        import torch

        ids = [[*self._prompt, *row.get("labels", ())] for row in features]
        longest = max(map(len, ids))
        padded = torch.tensor([row + [self.end] * (longest - len(row)) for row in ids])
        return {"input_features": self._spectrograms(features), "decoder_input_ids": padded}

    def _spectrograms(self, features: Sequence[Features]) -> Tensor:
        """Each by itself, so that it is the same in any company."""
        import torch

        found = []
        for row in features:
            samples = row["samples"]
            heard = self._extractor(samples.numpy(), sampling_rate=self.base.rate, return_tensors="pt").input_features
            view = Sound(samples, self.base.rate, self._window, row.get("hidden", ()))
            found.append(view.hide(heard, len(samples) // self._extractor.hop_length))
        return torch.cat(found)

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """Cross entropy of each token of the text and of its end, after those before it."""
        first = len(self._prompt) - 1
        return of_rows(outputs, [(first, [*row["labels"], *(() if "cut" in row else (self.end,))]) for row in features])

    # ------------------------------------------------------------ of training rows that are altered

    @property
    def augments(self) -> frozenset[Needs]:
        return frozenset({"sounds"})

    def view(self, features: Features) -> Sound:
        return Sound(features["samples"], self.base.rate, self._window, features["hidden"])

    def with_view(self, features: Features, view: Sound) -> Features:
        return features | {"samples": view.samples, "hidden": view.hidden}

    # ------------------------------------------------------------ of texts that are written

    def begin(self, features: Features, parameters: Mapping[str, Json]) -> Begun:
        """How a piece's text begins; parameters are checked."""
        self.check_parameters(parameters)
        language = parameters.get("language")
        prompt = self._prompt if language is None else prompt_of(self.base, language)
        timestamps = bool(parameters.get("return_timestamps", False))
        room = self._most - len(prompt)
        return Begun(prompt[:-1] if timestamps else prompt, int(parameters.get("max_new_tokens") or room), timestamps)

    def allow(self, begun: Begun, tokens: Tensor, scores: Tensor) -> Tensor:
        """Scores of the next token, [rows, vocabulary], where those that may not come are -inf; by transformers' own
        rules of the base's generation config.

        Args:
            tokens: what each row has so far, [rows, tokens], those that begin it included.
        """
        for processor in self._rules[begun.timestamps]:
            if hasattr(processor, "begin_index"):
                processor.begin_index = len(begun.tokens)
            scores = processor(tokens, scores)
        return scores

    @cached_property
    def _rules(self) -> dict[bool, list[Any]]:
        return {timestamps: allowed(self.base, timestamps) for timestamps in (False, True)}

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        check(self.base, parameters, self._most - len(self._prompt))

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        """A part of an answer for each piece: the tokens that were written of it.

        Args:
            outputs: of each row its tokens, without its end; None where what followed was no number.
        """
        self.check_parameters(parameters)
        return [math.nan if tokens is None else list(tokens) for tokens in outputs]

    def whole(self, parts: Sequence[Any], features: Features, parameters: Mapping[str, Json]) -> Json:
        if any(isinstance(part, float) for part in parts):
            return math.nan  # which nobody takes for an answer
        pieces = [(part, Cut(*window.get("piece", (0, len(window["samples"]), 0, 0))))
                  for part, window in zip(parts, self.windows(features), strict=True)]  # fmt: skip
        timestamps = bool(parameters.get("return_timestamps", False))
        return joined(self._tokenizer, pieces, self.base.rate, self.base.precision, timestamps)

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """Of all words together: long texts count for more."""
        answers = [answer["text"] for answer in predictions]
        return wording.score(answers, [row["reference"] for row in features], self.spec.normalisation)

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, str]:
        """`transcripts`: what was written, those with most errors first, each error marked."""
        answers = [answer["text"] for answer in predictions]
        return {"transcripts": wording.page(answers, [row["reference"] for row in features], self.spec.normalisation)}
