"""Speech recognition by a base that says a letter, or nothing, of each frame of a sound (CTC): Wav2Vec2.

Its own output layer answers, so that its letters are those of its tokenizer: texts are written in the vocabulary's
case, and punctuation that it lacks is left out; a text with another letter is refused. An answer is
{"text": "THE CAT SAT"}, and with the parameter `return_timestamps` it has "chunks" too: "char" or "word" as
transformers' pipeline has them, and true for phrases, which end where nothing is said for a while.

A sound that is longer than 30 seconds is heard in pieces that overlap, as by the pipeline with that `chunk_length_s`.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.speech import Letters
from ray_lora.errors import RecipeError
from ray_lora.recipe import Json, TaskSpec
from ray_lora.tasks.augmented import Sound
from ray_lora.tasks.speech.heard import Cut
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from ray_lora.tasks.speech.recognition import LETTERS, Recognition
from ray_lora.tasks.task import Features

if TYPE_CHECKING:
    from torch import Tensor

_SECONDS = 30  # heard at once: attention costs the square of it
_TIMES = (False, True, "char", "word")
_PAUSE, _LONG = 0.5, 6.0  # seconds: a phrase ends before a pause, and is not much longer


class LetterRecognition(Recognition):
    """What Wav2Vec2 says. `size` and `longest` are in frames, or in samples where only rows of one length share a pass;
    `positions`, the frames of the longest row, is what memory follows."""

    def __init__(self, spec: TaskSpec, processor: Any) -> None:
        self.base: Letters = processor.speech
        self.spec = cast(SpeechRecognitionSpec, spec)
        self._tokenizer, self._extractor = processor.tokenizer, processor.feature_extractor
        for name in ("language", "max_length"):
            if getattr(self.spec, name) is not None:
                raise RecipeError(
                    f"task.{name} is {getattr(self.spec, name)!r}, and this base says letters, not tokens of a "
                    "language one after the other; leave it out"
                )
        self.head = HeadSpec(LETTERS, self.base.vocabulary)
        self._hear(_SECONDS, self.base.rate, self.base.ratio)
        self._letters = frozenset(letter for letter in self._tokenizer.get_vocab() if len(letter) == 1) | {" "}
        letters = [letter for letter in self._letters if letter.isalpha()]
        self._upper = any(map(str.isupper, letters)) and not any(map(str.islower, letters))
        self._lower = any(map(str.islower, letters)) and not any(map(str.isupper, letters))

    # ------------------------------------------------------------ of rows on their way through the model

    def _misfit(self, samples: int, text: str) -> str:
        if why := super()._misfit(samples, text):
            return why
        written = self._written(text)
        if strange := sorted(set(written) - self._letters):
            shown = ", ".join(map(repr, strange[:5]))
            return f"text {text[:60]!r} has {shown}, which this base does not write; spell it in its letters"
        labels = self._labels(text)
        if not labels:
            return f"text {text[:60]!r} has no letter that this base writes"
        if self.base.frames(samples) < _least(labels):
            return (
                f"the sound has {self.base.frames(samples)} frames, a letter each at most, and text {text[:60]!r} "
                f"needs {_least(labels)}; they do not belong together"
            )
        return ""

    def _written(self, text: str) -> str:
        """A text as this base can write it, with one blank between words."""
        text = text.upper() if self._upper else text.lower() if self._lower else text
        kept = (letter if letter in self._letters or letter.isspace() else _aside(letter) for letter in text)
        return " ".join("".join(kept).split())

    def _labels(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(self._written(text), add_special_tokens=False)["input_ids"]
        return found

    def _teach(self, features: Features, text: str) -> None:
        features["labels"] = self._labels(text)

    @property
    def positions(self) -> int:
        return self.base.frames(self._window)

    @property
    def longest(self) -> int:
        return self.positions if self.base.masks else self._window

    def size(self, features: Features) -> int:
        samples = [cut.end - cut.start for cut in self._cuts(features)]
        return sum(max(1, self.base.frames(count)) for count in samples) if self.base.masks else sum(samples)

    def collate(self, features: Sequence[Features]) -> dict[str, Tensor]:
        """`input_values` [rows, samples], each row normalised by itself as the feature extractor does it, and where the
        base reads it `attention_mask`. A sound that is too short for one frame is silent behind its end."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        heard, masks = [], []
        for row in features:
            samples = self._shown(row)
            told = self._extractor(samples.numpy(), sampling_rate=self.base.rate, return_tensors="pt").input_values[0]
            short = self.base.least - len(told)
            heard.append(torch.nn.functional.pad(told, (0, short)) if short > 0 else told)
            masks.append(torch.ones(len(heard[-1]), dtype=torch.long))
        inputs = {"input_values": pad_sequence(heard, batch_first=True)}
        return inputs | ({"attention_mask": pad_sequence(masks, batch_first=True)} if self.base.masks else {})

    def _shown(self, row: Features) -> Tensor:
        """The samples without what is hidden of them: of a stretch of time all, of a band its frequencies."""
        import torch

        samples: Tensor = row["samples"]
        for hidden in row.get("hidden", ()):
            if hidden.along == "time":
                stretch = slice(round(hidden.start * len(samples)), round(hidden.end * len(samples)))
                samples = samples.clone()
                samples[stretch] = 0
            else:
                waves = torch.fft.rfft(samples)
                waves[round(hidden.start * len(waves)) : round(hidden.end * len(waves))] = 0
                samples = torch.fft.irfft(waves, len(samples))
        return samples

    def loss(self, outputs: Any, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """CTC's, and the letters of each row: an adapter's loss is by letter."""
        import torch
        import torch.nn.functional as F

        logits = outputs.logits
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        lengths = torch.tensor([len(row["labels"]) for row in features])
        sums = F.ctc_loss(
            exact.transpose(0, 1),
            torch.tensor([letter for row in features for letter in row["labels"]], device=exact.device),
            torch.tensor([self.frames(row) for row in features]),
            lengths,
            blank=self.base.blank,
            reduction="none",
        )
        return sums, lengths.to(sums)

    def frames(self, row: Features) -> int:
        """What is said of a piece, a letter or nothing each."""
        return max(1, self.base.frames(len(row["samples"])))

    def with_view(self, features: Features, view: Sound) -> Features:
        """As it was where the altered sound has too few frames for its letters, as when it is said too fast."""
        altered = features | {"samples": view.samples, "hidden": view.hidden}
        return altered if self.base.frames(len(view.samples)) >= _least(features["labels"]) else features

    # ------------------------------------------------------------ of answers

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        unknown = sorted(set(parameters) - {"return_timestamps", "temperature"})
        if unknown:
            raise RecipeError(
                f"parameters {unknown} are not known to this task on a base that says letters; it takes "
                "return_timestamps, temperature"
            )
        times = parameters.get("return_timestamps", False)
        if not any(times is known or (isinstance(times, str) and times == known) for known in _TIMES):
            raise RecipeError(f"return_timestamps is {times!r}; it must be true, false, 'char' or 'word'")
        temperature = parameters.get("temperature")
        if temperature not in (None, 0) or isinstance(temperature, bool):
            raise RecipeError(
                f"temperature is {temperature!r}; the likeliest letters are said, which is 0: leave it out"
            )

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        """A part of an answer for each piece: the likeliest token of each of its frames, without those that are its
        neighbours'."""
        self.check_parameters(parameters)
        parts: list[Json] = []
        for row, logits in zip(features, outputs.logits, strict=True):
            mine = logits[: self.frames(row)]
            if not bool(mine.isfinite().all()):
                parts.append(math.nan)
                continue
            parts.append(mine.argmax(-1).tolist()[self._own(self._cut_of(row))])
        return parts

    def _own(self, cut: Cut) -> slice:
        """The frames of a piece that are not its neighbours', by the rule of transformers' pipeline."""
        if not cut.left and not cut.right:
            return slice(None)
        samples = cut.end - cut.start
        frames = round(samples / self.base.ratio)
        left, right = (round(side / samples * frames) for side in (cut.left, cut.right))
        return slice(left, frames - right)

    def whole(self, parts: Sequence[Any], features: Features, parameters: Mapping[str, Json]) -> Json:
        if any(isinstance(part, float) for part in parts):
            return math.nan  # which nobody takes for an answer
        ids = [token for part in parts for token in part]
        answer: dict[str, Json] = {"text": self._tokenizer.decode(ids)}
        times = parameters.get("return_timestamps", False)
        if times:
            letters = self._tokenizer.decode(ids, output_char_offsets=True)["char_offsets"]
            blank = self._tokenizer.replace_word_delimiter_char
            words = letters if times == "char" else self._tokenizer._get_word_offsets(letters, blank)
            kind = "char" if times == "char" else "word"
            chunks = [self._chunk(item[kind], item["start_offset"], item["end_offset"]) for item in words]
            answer["chunks"] = _phrases(chunks, blank) if times is True else chunks
        return answer

    def _chunk(self, text: str, start: int, end: int) -> dict[str, Json]:
        begins, ends = (offset * self.base.ratio / self.base.rate for offset in (start, end))
        return {"text": text, "timestamp": [begins, ends]}


def _least(labels: Sequence[int]) -> int:
    """Frames that letters need: one each, and one that says nothing between two that are equal."""
    return len(labels) + sum(one == other for one, other in pairwise(labels))


def _aside(letter: str) -> str:
    """What stands where a text has a sign that a vocabulary lacks: nothing for punctuation inside of words, a blank for
    a dash, and the sign itself for all else, which is refused."""
    kind = unicodedata.category(letter)
    return " " if kind == "Pd" else "" if kind.startswith("P") else letter


def _phrases(words: Sequence[dict[str, Any]], blank: str) -> list[dict[str, Json]]:
    """Words that follow each other, as one chunk."""
    found: list[dict[str, Any]] = []
    for word in words:
        begins, ends = word["timestamp"]
        last = found[-1]["timestamp"] if found else None
        if last is None or begins - last[1] >= _PAUSE or ends - last[0] > _LONG:
            found.append({"text": word["text"], "timestamp": [begins, ends]})
        else:
            found[-1]["text"] += blank + word["text"]
            last[1] = ends
    return found
