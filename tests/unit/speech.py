"""A tiny Whisper with random weights, a window of a second or some and a letter a token; a tiny Wav2Vec2; and sounds
that they hear."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ray_lora.recipe import Json
from ray_lora.tasks import Row

RATE = 16_000
WORDS = "uno due tre quattro cinque sei sette otto nove dieci".split()


def letters(words: Sequence[str]) -> Tokenizer:
    """A tokenizer of a letter a token, and of these special tokens."""
    found = Tokenizer(
        models.BPE({sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([AddedToken(f"<|{word}|>", special=True) for word in words])
    return found


def save_whisper(folder: Path, seed: int = 0, languages: tuple[str, ...] = (), seconds: int = 1) -> Path:
    """A folder as `save_pretrained` writes Whisper's: weights large enough that every layer matters.

    Args:
        languages: codes, of a base that knows several. seconds: its window.
    """
    words = ["endoftext", "startoftranscript", *languages, "translate", "transcribe", "startofprev", "notimestamps"]
    read = letters(words)
    read.add_tokens([AddedToken(f"<|{step * 0.02:.2f}|>", normalized=False) for step in range(51)])
    end = "<|endoftext|>"
    tokenizer = transformers.WhisperTokenizer(
        tokenizer_object=read,
        bos_token=end,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        additional_special_tokens=[f"<|{word}|>" for word in words],
    )
    ids = {word: tokenizer.convert_tokens_to_ids(f"<|{word}|>") for word in words}
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=20,
        max_source_positions=50 * seconds,
        max_target_positions=40,
        bos_token_id=ids["endoftext"],
        eos_token_id=ids["endoftext"],
        pad_token_id=ids["endoftext"],
        decoder_start_token_id=ids["startoftranscript"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.WhisperForConditionalGeneration(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, 2 * parameter[0].numel() ** -0.5)
            elif "bias" in name:
                parameter.data.normal_(0, 0.1)
    told: dict[str, Any] = {"is_multilingual": bool(languages), "no_timestamps_token_id": ids["notimestamps"]}
    if languages:
        told |= {"lang_to_id": {f"<|{code}|>": ids[code] for code in languages}}
        told |= {"task_to_id": {word: ids[word] for word in ("translate", "transcribe")}}
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=ids["endoftext"],
        eos_token_id=ids["endoftext"],
        pad_token_id=ids["endoftext"],
        decoder_start_token_id=ids["startoftranscript"],
        prev_sot_token_id=ids["startofprev"],
        max_length=config.max_target_positions,
        suppress_tokens=[3, 7, ids["startoftranscript"]],
        begin_suppress_tokens=[5, ids["endoftext"]],
        max_initial_timestamp_index=50,
        alignment_heads=[[0, 1], [1, 2], [1, 3]],
        **told,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=seconds).save_pretrained(folder)
    return folder


def save_wav2vec2(folder: Path, norm: str = "layer", seed: int = 0) -> Path:
    """A folder as `save_pretrained` writes Wav2Vec2 for CTC: capital letters, an apostrophe, 100 frames a second.

    Args:
        norm: of its convolutions: "layer", or "group", with which a row's answer depends on what it is padded to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    signs = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    (folder / "vocab.json").write_text(json.dumps({sign: number for number, sign in enumerate(signs)}))
    config = transformers.Wav2Vec2Config(
        vocab_size=len(signs),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 3, 4),
        conv_stride=(5, 4, 8),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        conv_bias=norm == "layer",
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.Wav2Vec2ForCTC(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.data.normal_(0, 2 * parameter[0].numel() ** -0.5)
            elif "bias" in name:
                parameter.data.normal_(0, 0.1)
    model.save_pretrained(folder)
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)
    return folder


def wav(samples: Any, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def tone(seconds: float, seed: int) -> Any:
    """Three tones and some noise, float32 [samples]."""
    draw = np.random.default_rng(seed)
    at = np.arange(int(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * draw.uniform(100, 3000) * at) for _ in range(3))
    return (0.2 * tones + 0.02 * draw.standard_normal(len(at))).astype(np.float32)


def rows(count: int) -> list[Row]:
    """Sounds of a quarter of a second and more, and up to three words of each."""
    found = []
    for number in range(count):
        text = " ".join(WORDS[(number + at) % len(WORDS)] for at in range(1 + number % 3))
        found.append({"audio": wav(tone(0.25 + number / 10, number)), "text": text})
    return found


def best_answer(row: Row) -> Json:
    return {"text": f" {row['text']}"}


@lru_cache(maxsize=8)
def _plain(folder: Path) -> Any:
    letters = transformers.AutoConfig.from_pretrained(folder).model_type == "wav2vec2"
    kind: Any = transformers.Wav2Vec2ForCTC if letters else transformers.WhisperForConditionalGeneration
    return kind.from_pretrained(folder, attn_implementation="eager")


def plain(folder: Path) -> Any:
    """The plain class on a folder's weights, in eval mode."""
    import copy

    return copy.deepcopy(_plain(folder)).eval()
