"""Speech recognition: what a sound says. A row is

    {"audio": b"<the bytes of a wav, flac, ogg or mp3 file>", "text": "The cat sat."}

The base is Whisper, whose decoder writes the text behind its encoder, or Wav2Vec2, which says a letter a frame
(`letter_recognition`). Its own output layer answers, adapters lie below it. An answer is {"text": " The cat sat."}, and
with the parameter `return_timestamps` it has "chunks" too, of sentences or ("word") of words.

A sound that is asked for may be longer than the base's window: it is heard in pieces that overlap. One that trains or
scores may not, since nobody says which words are in which piece. A text that is too long keeps its beginning, and its
row is counted as cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.speech import Letters, Speech
from ray_lora.errors import RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.augmented import Sound
from ray_lora.tasks.begun import Begun, Looked
from ray_lora.tasks.letter_recognition import LetterRecognition
from ray_lora.tasks.speech.asked import allowed, check
from ray_lora.tasks.speech.heard import joined
from ray_lora.tasks.speech.language import lead_of, prompt_of
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from ray_lora.tasks.speech.recognition import WRITES, Recognition
from ray_lora.tasks.speech.word_times import token_times
from ray_lora.tasks.task import Features
from ray_lora.tasks.token_losses import of_rows

if TYPE_CHECKING:
    from torch import Tensor


class SpeechRecognition(Recognition):
    """What Whisper writes."""

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        told = getattr(processor, "speech", None)
        if not isinstance(told, Speech):
            raise RecipeError(
                "automatic-speech-recognition needs a Whisper or a Wav2Vec2 with its tokenizer and feature extractor, "
                "such as whisper-tiny.en; this base is another"
            )
        self.base = told
        self.spec = cast(SpeechRecognitionSpec, spec)
        self._tokenizer, self._extractor = processor.tokenizer, processor.feature_extractor
        self.head = HeadSpec(WRITES, self.base.vocabulary)
        self._prompt = prompt_of(self.base, self.spec.language)
        self._lead = lead_of(self.spec.language)
        self._most = self.spec.max_length or self.base.written
        if self._most > self.base.written:
            raise RecipeError(
                f"task.max_length is {self._most}, the base has {self.base.written} positions; set it to that or less"
            )
        self._hear(self.base.seconds, self.base.rate)
        self.end: int = self.base.end

    @staticmethod
    def on(processor: Any) -> type[Recognition]:
        """The class for a base, by what its processor says of it."""
        return LetterRecognition if isinstance(getattr(processor, "speech", None), Letters) else SpeechRecognition

    # ------------------------------------------------------------ of rows on their way through the model

    @property
    def longest(self) -> int:
        return self.base.positions + self._most

    def _teach(self, features: Features, text: str) -> None:
        tokens = self._tokenizer(self._lead + text.strip(), add_special_tokens=False)["input_ids"]
        room = self._most - len(self._prompt)
        features["labels"] = tokens[:room]
        if len(tokens) > room:
            features["cut"] = f"longer than what is written, {self._most} tokens,"

    def size(self, features: Features) -> int:
        """Positions of the encoder and tokens of the decoder, of all windows."""
        windows = len(self._cuts(features))
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

    # ------------------------------------------------------------ of texts that are written

    def begin(self, features: Features, parameters: Mapping[str, Json]) -> Begun:
        """How a piece's text begins; parameters are checked."""
        self.check_parameters(parameters)
        language = parameters.get("language")
        prompt = self._prompt if language is None else prompt_of(self.base, language)
        timestamps = bool(parameters.get("return_timestamps", False))
        room = self._most - len(prompt)
        tokens, most = prompt[:-1] if timestamps else prompt, int(parameters.get("max_new_tokens") or room)
        words = parameters.get("return_timestamps") == "word"
        return Begun(tokens, most, timestamps, self.base.aligned if words else ())

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
            outputs: of each row its tokens, without its end, and where heads looked if they were to; None where what
                followed was no number.
        """
        self.check_parameters(parameters)
        return [self._part(text, row, parameters) for text, row in zip(outputs, features, strict=True)]

    def _part(self, text: Any, row: Features, parameters: Mapping[str, Json]) -> Json:
        if text is None:
            return math.nan
        if not isinstance(text, Looked):
            return {"tokens": list(text)}
        begun = len(self.begin(row, parameters).tokens)
        times = token_times(self.base, begun, text, len(row["samples"]), self._extractor.hop_length)
        return {"tokens": text.tokens, "times": times}

    def whole(self, parts: Sequence[Any], features: Features, parameters: Mapping[str, Json]) -> Json:
        if any(isinstance(part, float) for part in parts):
            return math.nan  # which nobody takes for an answer
        cuts = map(self._cut_of, self.windows(features))
        pieces = list(zip(parts, cuts, strict=True))
        timestamps = parameters.get("return_timestamps", False)
        return joined(self._tokenizer, pieces, self.base.rate, self.base.precision, timestamps)
