"""What every speech recognition shares, whichever way its base hears: its rows, and how transcripts are scored.

It knows sounds and texts, no base.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.augmented import Sound
from ray_lora.tasks.rows import bad_texts, is_text, say_text
from ray_lora.tasks.sounds import is_silent, open_sound
from ray_lora.tasks.speech import wording
from ray_lora.tasks.speech.heard import Cut, cuts
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from ray_lora.tasks.task import Column, Features, Row
from ray_lora.transform_spec import Needs

if TYPE_CHECKING:
    import pyarrow as pa

_logger = logging.getLogger(__name__)
_OVERLAP = 6  # of a window this part is shared with the neighbour where nobody says more, as in transformers' pipeline
WRITES, LETTERS = "AutoModelForSpeechSeq2Seq", "AutoModelForCTC"  # the plain classes


class Recognition(ABC):
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

    spec: SpeechRecognitionSpec
    _rate: int  # samples a second
    _window: int  # samples that are heard at once
    _overlap: int  # of them, at either end, those that a neighbouring piece of a longer sound has too

    def _hear(self, seconds: int, rate: int, step: int = 1) -> None:
        """Set how much is heard at once.

        Args:
            step: pieces begin and end at multiples of so many samples.
        """
        overlap = seconds / _OVERLAP if self.spec.overlap is None else self.spec.overlap
        if 2 * overlap >= seconds:
            raise RecipeError(
                f"task.overlap is {overlap:g} seconds at either end, the base hears {seconds} at once; set it below "
                "half of them"
            )
        self._rate, self._window = rate, round(seconds * rate / step) * step
        self._overlap = round(overlap * rate / step) * step

    @property
    def samples(self) -> int:
        """What is heard at once."""
        return self._window

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
        """The rows that this base cannot learn from: whose sound is longer than it hears at once, and others that
        `misfit` names."""
        texts = block.column("text").to_pylist()
        sounds = (sound for chunk in block.column("audio").chunks for sound in chunk)
        for row, (sound, text) in enumerate(zip(sounds, texts, strict=True)):
            try:
                samples = len(open_sound(sound.as_py()))
            except DataError:
                continue  # said by `check`
            if why := self._misfit(samples, text):
                yield row, why

    def _misfit(self, samples: int, text: str) -> str:
        """Why this base cannot learn this text from so many samples; empty where it can."""
        if samples <= self._window:
            return ""
        return (
            f"the sound is {samples / self._rate:.1f} s long, and this base learns from at most "
            f"{self._window / self._rate:g} s; cut it into sentences, with the words of each"
        )

    @classmethod
    def plain(cls, head: HeadSpec) -> TaskSpec | None:
        return SpeechRecognitionSpec() if head.architecture in (WRITES, LETTERS) else None

    # ------------------------------------------------------------ of rows on their way through the model

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
                if why := self._misfit(len(samples), text):
                    raise DataError(why)
                found |= {"labels": [], "reference": text, "hidden": ()}
                self._teach(found, text)
            features.append(found)
        return features

    @abstractmethod
    def _teach(self, features: Features, text: str) -> None:
        """Add a text's tokens, `labels`; and why it is `cut`, where it is."""

    def windows(self, features: Features) -> Sequence[Features]:
        """The pieces in which a sound is heard."""
        found = self._cuts(features)
        if len(found) == 1:
            return (features,)
        return [
            Features(samples=features["samples"][cut.start : cut.end], piece=(cut.start, cut.end, cut.left, cut.right))
            for cut in found
        ]

    def _cuts(self, features: Features) -> list[Cut]:
        return cuts(len(features["samples"]), self._window, self._overlap)

    @staticmethod
    def _cut_of(window: Features) -> Cut:
        """The place of a piece in its sound."""
        return Cut(*window.get("piece", (0, len(window["samples"]), 0, 0)))

    # ------------------------------------------------------------ of training rows that are altered

    @property
    def augments(self) -> frozenset[Needs]:
        return frozenset({"sounds"})

    def view(self, features: Features) -> Sound:
        return Sound(features["samples"], self._rate, self._window, features["hidden"])

    def with_view(self, features: Features, view: Sound) -> Features:
        return features | {"samples": view.samples, "hidden": view.hidden}

    # ------------------------------------------------------------ of answers

    def score(self, predictions: Sequence[Json], features: Sequence[Features]) -> dict[str, float]:
        """Of all words together: long texts count for more."""
        answers = [answer["text"] for answer in predictions]
        return wording.score(answers, [row["reference"] for row in features], self.spec.normalisation)

    def figures(self, predictions: Sequence[Json], features: Sequence[Features]) -> Mapping[str, str]:
        """`transcripts`: what was written, those with most errors first, each error marked."""
        answers = [answer["text"] for answer in predictions]
        return {"transcripts": wording.page(answers, [row["reference"] for row in features], self.spec.normalisation)}
