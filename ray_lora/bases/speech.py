"""What a base of transformers that hears tells of itself: Whisper, which writes token by token, and Wav2Vec2, which
says a letter a frame.

    tell_speech(processor, config, folder)
    processor.speech                   # a Speech or a Letters; None of another base

It knows configs and processors, no sounds and no tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Speech:
    """A base's own numbers.

    Attributes:
        seconds: what is heard at once, and rate: samples a second of it.
        positions: of the encoder for that; written: tokens of the longest text, those that begin it included.
        vocabulary: tokens.
        start, end: the tokens before and after a text; no_timestamps: the one that says that no timestamps are to come,
            after which those of timestamps have their numbers; None of a base without it.
        languages: tokens by language ("it"); none of a base that knows one language. transcribe: what follows them.
        suppressed, suppressed_first: tokens that no text holds, and none begins with.
        settings: transformers' generation config, of which timestamps follow.
        aligned: (layer, head) of the decoder's attention to the encoder that follow the sound word by word; none of a
            base that does not say which. smoothed: places of the median that makes them smooth.
    """

    seconds: int
    rate: int
    positions: int
    written: int
    vocabulary: int
    start: int
    end: int
    no_timestamps: int | None
    languages: dict[str, int] = field(default_factory=dict)
    transcribe: int | None = None
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    settings: Any = None
    aligned: tuple[tuple[int, int], ...] = ()
    smoothed: int = 7

    @property
    def precision(self) -> float:
        """Seconds of one position, which are those of a timestamp."""
        return self.seconds / self.positions


@dataclass(frozen=True)
class Letters:
    """The numbers of a base that says a letter, or nothing, of each frame (CTC).

    Attributes:
        rate: samples a second.
        vocabulary: letters and other tokens; blank: the one that says nothing.
        kernels, strides: of the convolutions that make frames of samples.
        masks: whether the base is told which samples of a row are padding. One that is not gives a row other answers
            in longer company, so that only rows of one length share a pass.
    """

    rate: int
    vocabulary: int
    blank: int
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    masks: bool

    @property
    def ratio(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(self.strides)

    def frames(self, samples: int) -> int:
        """Frames of so many samples."""
        return frames_of(samples, self.kernels, self.strides)

    @property
    def least(self) -> int:
        """Samples of one frame."""
        return samples_of(1, self.kernels, self.strides)


def frames_of(samples: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Frames that convolutions without padding make of so many samples."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = max(0, (samples - kernel) // stride + 1)
    return samples


def samples_of(frames: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """The fewest samples of which they make so many frames."""
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        frames = (frames - 1) * stride + kernel
    return frames


def speech_of(processor: Any, config: Any, folder: Path) -> Speech | Letters | None:
    """What a base's config says of what it hears; None of one that hears nothing, or writes nothing."""
    if getattr(processor, "feature_extractor", None) is None or getattr(processor, "tokenizer", None) is None:
        return None
    kind = getattr(config, "model_type", None)
    if kind == "wav2vec2":
        return _letters(processor, config)
    return _whisper(processor, config, folder) if kind == "whisper" else None


def _letters(processor: Any, config: Any) -> Letters | None:
    """None of a config whose frames are made otherwise."""
    if config.add_adapter:
        return None
    return Letters(
        rate=int(processor.feature_extractor.sampling_rate),
        vocabulary=int(config.vocab_size),
        blank=int(config.pad_token_id),
        kernels=tuple(config.conv_kernel),
        strides=tuple(config.conv_stride),
        masks=config.feat_extract_norm == "layer",
    )


def _whisper(processor: Any, config: Any, folder: Path) -> Speech:
    from transformers import GenerationConfig

    extractor = processor.feature_extractor
    told: Any = GenerationConfig.from_model_config(config)
    if (folder / "generation_config.json").exists():
        told = GenerationConfig.from_pretrained(folder, local_files_only=True)
    plain = getattr(told, "no_timestamps_token_id", None)
    if plain is None:
        plain = processor.tokenizer.convert_tokens_to_ids("<|notimestamps|>")
        told.no_timestamps_token_id = plain
    several = bool(getattr(told, "is_multilingual", False))
    languages = {name.strip("<|>"): token for name, token in (getattr(told, "lang_to_id", None) or {}).items()}
    return Speech(
        seconds=int(extractor.chunk_length),
        rate=int(extractor.sampling_rate),
        positions=int(config.max_source_positions),
        written=int(config.max_target_positions),
        vocabulary=int(config.vocab_size),
        start=int(config.decoder_start_token_id),
        end=int(_one(told.eos_token_id if told.eos_token_id is not None else config.eos_token_id)),
        no_timestamps=plain,
        languages=languages if several else {},
        transcribe=(getattr(told, "task_to_id", None) or {}).get("transcribe") if several else None,
        suppressed=tuple(getattr(told, "suppress_tokens", None) or ()),
        suppressed_first=tuple(getattr(told, "begin_suppress_tokens", None) or ()),
        settings=told,
        aligned=tuple((int(layer), int(head)) for layer, head in getattr(told, "alignment_heads", None) or ()),
        smoothed=int(config.median_filter_width),
    )


def tell_speech(processor: Any, config: Any, folder: Path) -> None:
    """Tell a processor of sounds of its base, as `speech`. What has no `feature_extractor` is left alone."""
    if hasattr(processor, "feature_extractor"):
        processor.speech = speech_of(processor, config, folder)


def _one(tokens: Any) -> Any:
    return tokens[0] if isinstance(tokens, (list, tuple)) else tokens
