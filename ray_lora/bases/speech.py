"""What a base of transformers that writes what sounds say tells of itself: Whisper.

    tell_speech(processor, config, folder)
    processor.speech                   # a Speech; None of another base

It knows configs and processors, no sounds and no tasks.
"""

from __future__ import annotations

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

    @property
    def precision(self) -> float:
        """Seconds of one position, which are those of a timestamp."""
        return self.seconds / self.positions


def speech_of(processor: Any, config: Any, folder: Path) -> Speech | None:
    """What a Whisper's config and generation config say; None of another base, or of one without sounds."""
    extractor = getattr(processor, "feature_extractor", None)
    if getattr(config, "model_type", None) != "whisper" or extractor is None:
        return None
    from transformers import GenerationConfig

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
    )


def tell_speech(processor: Any, config: Any, folder: Path) -> None:
    """Tell a processor of sounds of its base, as `speech`. What has no `feature_extractor` is left alone."""
    if hasattr(processor, "feature_extractor"):
        processor.speech = speech_of(processor, config, folder)


def _one(tokens: Any) -> Any:
    return tokens[0] if isinstance(tokens, (list, tuple)) else tokens
