"""What a runner must know of a base and an adapter to hear sounds, and to write what they say.

It knows processors and tasks: no graphs.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from ray_lora.bases.base import Base
from ray_lora.bases.speech import Letters, Speech
from ray_lora.errors import RecipeError
from ray_lora.recipe import Json
from ray_lora.tasks import Row
from ray_lora.tasks.sounds import RATE, check_installed

_LENGTHS = (0.02, 0.11, 0.3, 0.3, 0.71, 1.3, 2.4)  # seconds of sounds that are drawn


def of_letters(base: Base) -> dict[str, Json]:
    """How a Wav2Vec2 hears samples, and what each of its outputs is called.

    Raises:
        RecipeError: what reads its sounds, or writes its letters, is of a kind that was not compared.
    """
    speech: Letters = base.processor.speech
    extractor, tokenizer = base.processor.feature_extractor, base.processor.tokenizer
    if type(extractor) is not Wav2Vec2FeatureExtractor or type(tokenizer) is not Wav2Vec2CTCTokenizer:
        raise RecipeError(
            f"base {base.id!r} hears by a {type(extractor).__name__} and writes by a {type(tokenizer).__name__}, which "
            "were not compared with what runs without transformers"
        )
    if tokenizer.clean_up_tokenization_spaces:
        raise RecipeError(
            f"the tokenizer of base {base.id!r} cleans up blanks (clean_up_tokenization_spaces), which was not "
            "compared with what runs without transformers"
        )
    return {
        "inputs": ["input_values"],
        "padding": {},
        "alone": True,  # in company a sound is padded, and a base of group norms hears that
        "rate": speech.rate,
        "normalise": bool(extractor.do_normalize),
        "least": speech.least,
        "tokens": tokenizer.convert_ids_to_tokens(list(range(speech.vocabulary))),
        "silent": tokenizer.pad_token,
        "delimiter": tokenizer.word_delimiter_token,
        "blank": tokenizer.replace_word_delimiter_char,
        "lower": bool(tokenizer.do_lower_case),
    }


def says_letters(task: Any, base: Base) -> dict[str, Json]:
    """How long a sound may be that is heard at once."""
    return {"samples": task.samples}


def of_whisper(base: Base) -> dict[str, Json]:
    """How a Whisper hears a window, and which of its tokens are no text.

    Raises:
        RecipeError: what reads its sounds, or writes its texts, does what was not compared.
    """
    speech: Speech = base.processor.speech
    extractor, tokenizer = base.processor.feature_extractor, base.processor.tokenizer
    if type(extractor) is not WhisperFeatureExtractor or extractor.dither or extractor.padding_value:
        raise RecipeError(
            f"base {base.id!r} hears by a {type(extractor).__name__} that dithers or pads with sound, or is another "
            "than Whisper's; it was not compared with what runs without transformers"
        )
    if not tokenizer.is_fast or tokenizer.clean_up_tokenization_spaces:
        raise RecipeError(
            f"the tokenizer of base {base.id!r} is no fast one, or cleans up blanks, which was not compared with what "
            "runs without transformers"
        )
    return {
        "rate": speech.rate,
        "window": int(extractor.n_samples),
        "fft": int(extractor.n_fft),
        "hop": int(extractor.hop_length),
        "times": speech.vocabulary if speech.no_timestamps is None else speech.no_timestamps + 1,
    }


def save_whisper(base: Base, folder: Path) -> None:
    """The tokenizer's file, and the filters that make a spectrogram, float32 [frequencies, mel]."""
    base.processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    np.save(folder / "mel.npy", np.asarray(base.processor.feature_extractor.mel_filters, np.float32))


def writes_text(task: Any, base: Base) -> dict[str, Json]:
    """How a text begins and ends, and what may not come in it."""
    speech: Speech = base.processor.speech
    begun = task.begin({}, {})
    return {
        "samples": task.samples,
        "begin": list(begun.tokens),
        "most": begun.most,
        "ends": [speech.end],
        "never": list(speech.suppressed),
        "never_first": list(speech.suppressed_first),
    }


def drawn_sounds(base: Base, task: Any) -> list[Row]:
    """Tones and noise, of lengths that the base hears at once."""
    check_installed()
    import soundfile

    draw = np.random.default_rng(0)
    rows: list[Row] = []
    for seconds in _LENGTHS:
        at = np.arange(min(int(seconds * RATE), task.samples)) / RATE
        tones = sum(np.sin(2 * np.pi * draw.uniform(100, 3000) * at) for _ in range(3))
        file = io.BytesIO()
        noise = 0.02 * draw.standard_normal(len(at))
        soundfile.write(file, (0.2 * tones + noise).astype(np.float32), RATE, format="WAV", subtype="FLOAT")
        rows.append({"audio": file.getvalue()})
    return rows
