"""Folders of Whisper that transformers' class, tokenizer and feature extractor load: made of CTranslate2's files, and
with a window shorter than the 30 seconds that it was trained on.

A shorter window is the first rows of the encoder's table of positions: a sound of six seconds costs a fifth and less of
one of thirty. It is another base: its weights and so its fingerprint are others, and an adapter belongs to one of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ray_lora.bases.whisper.ctranslate2 import Numbers, named_as_transformers, read_model
from ray_lora.errors import BaseModelError

_FRAMES = 50  # of the encoder's a second
_RATE = 16_000  # samples a second
_HOP = 160  # samples from one column of the spectrogram to the next
_POSITIONS = "model.encoder.embed_positions.weight"
_TIMESTAMPS = 1501  # 0.00 to 30.00 seconds


def save_ctranslate2(source: Path, into: Path, seconds: int | None = None) -> None:
    """An English-only Whisper of CTranslate2's folder (model.bin, config.json, tokenizer.json) as transformers' folder.

    Args:
        seconds: the window; None: as the file has it.

    Raises:
        BaseModelError: the file is another model's, or its tensors are not all of transformers' class and no more.
    """
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    raw, told = read_model(source / "model.bin"), json.loads((source / "config.json").read_text())
    tensors = named_as_transformers(raw)
    tokenizer = _tokenizer(source / "tokenizer.json")
    start, end, plain = (
        tokenizer.convert_tokens_to_ids(f"<|{word}|>") for word in ("startoftranscript", "endoftext", "notimestamps")
    )
    sizes: dict[str, Any] = _sizes(raw, tensors)
    config = WhisperConfig(**sizes, bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=start)
    if len(tokenizer) != config.vocab_size:
        raise BaseModelError(f"the tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}")
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    given = {name: torch.from_numpy(value) for name, value in tensors.items()}
    given["proj_out.weight"] = given["model.decoder.embed_tokens.weight"]
    try:
        model.load_state_dict(given, strict=True, assign=True)
    except RuntimeError as error:
        raise BaseModelError(f"model.bin does not fit transformers' Whisper: {error}") from None
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        max_length=config.max_target_positions,
        suppress_tokens=told["suppress_ids"],
        begin_suppress_tokens=told["suppress_ids_begin"],
        no_timestamps_token_id=plain,
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        max_initial_timestamp_index=50,
        is_multilingual=False,
        return_timestamps=False,
        alignment_heads=told["alignment_heads"],
    )
    window = config.max_source_positions // _FRAMES
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=window)
    _save(into, model, tokenizer, extractor, seconds)


def shorten(source: Path, into: Path, seconds: int) -> None:
    """A folder of Whisper with a window of so many seconds, made of one of transformers'.

    Raises:
        BaseModelError: the folder is no Whisper's, or its window is not longer.
    """
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    try:
        model = WhisperForConditionalGeneration.from_pretrained(source, dtype="float32", local_files_only=True)
        processor: Any = WhisperProcessor.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{str(source)!r} is no folder of Whisper's: {error}") from None
    _save(into, model, processor.tokenizer, processor.feature_extractor, seconds)


def _save(into: Path, model: Any, tokenizer: Any, extractor: Any, seconds: int | None) -> None:
    from torch import nn

    from ray_lora.bases.transformers_base import quiet

    config, table = model.config, model.model.encoder.embed_positions
    window = config.max_source_positions // _FRAMES
    if seconds is not None:
        if not 1 <= seconds < window:
            raise BaseModelError(f"a window of {seconds} seconds is not shorter than the base's of {window}; give less")
        config.max_source_positions = seconds * _FRAMES
        table.weight = nn.Parameter(table.weight.detach()[: config.max_source_positions].clone(), requires_grad=False)
        extractor.chunk_length = seconds
        extractor.n_samples = seconds * _RATE
        extractor.nb_max_frames = extractor.n_samples // _HOP
    with quiet():
        model.save_pretrained(into)
        tokenizer.save_pretrained(into)
        extractor.save_pretrained(into)


def _tokenizer(path: Path) -> Any:
    """The tokenizer of an English-only Whisper, with a token for each timestamp."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import WhisperTokenizer

    read = Tokenizer.from_file(str(path))
    read.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>", normalized=False) for step in range(_TIMESTAMPS)])
    end = "<|endoftext|>"
    return WhisperTokenizer(tokenizer_object=read, bos_token=end, eos_token=end, unk_token=end, pad_token=end)


def _sizes(raw: dict[str, Numbers], tensors: dict[str, Numbers]) -> dict[str, Any]:
    """A config's sizes, read off the tensors."""

    def layers(side: str) -> int:
        return len({name.split(".")[3] for name in tensors if name.startswith(f"model.{side}.layers.")})

    conv, tokens = tensors["model.encoder.conv1.weight"], tensors["model.decoder.embed_tokens.weight"]
    return {
        "vocab_size": len(tokens),
        "d_model": tokens.shape[1],
        "num_mel_bins": conv.shape[1],
        "encoder_layers": layers("encoder"),
        "decoder_layers": layers("decoder"),
        "encoder_attention_heads": int(np.asarray(raw["encoder/num_heads"])),
        "decoder_attention_heads": int(np.asarray(raw["decoder/num_heads"])),
        "encoder_ffn_dim": len(tensors["model.encoder.layers.0.fc1.weight"]),
        "decoder_ffn_dim": len(tensors["model.decoder.layers.0.fc1.weight"]),
        "max_source_positions": len(tensors[_POSITIONS]),
        "max_target_positions": len(tensors["model.decoder.embed_positions.weight"]),
    }
