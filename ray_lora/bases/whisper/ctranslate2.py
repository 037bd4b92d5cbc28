"""The tensors of a Whisper as CTranslate2 keeps them: a header, then name, shape, kind and bytes of each; and their
names in transformers' class.

    tensors = named_as_transformers(read_model(Path("model.bin")))      # {"model.encoder.conv1.weight": ..., ...}

What it reads is version 6 of the file, whose numbers are float32, float16 or whole.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ray_lora.errors import BaseModelError

_VERSION = 6
_KINDS = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_NORMS = {"gamma": "weight", "beta": "bias"}

Numbers = np.ndarray[Any, np.dtype[Any]]


def read_model(path: Path) -> dict[str, Numbers]:
    """Every tensor of a file, by CTranslate2's names; a tensor that stands under two names is there under one.

    Raises:
        BaseModelError: it is no Whisper of version 6, or it ends too early.
    """
    with path.open("rb") as file:
        try:
            (version,) = _unpack(file, "I")
            kind = _word(file) if version == _VERSION else ""
            if kind != "WhisperSpec":
                raise BaseModelError(f"{path.name} is not CTranslate2's Whisper of version {_VERSION}")
            _unpack(file, "I")  # the revision
            (count,) = _unpack(file, "I")
            return dict(_tensor(file) for _ in range(count))
        except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
            raise BaseModelError(f"{path.name} is broken: {error}") from None


def named_as_transformers(tensors: Mapping[str, Numbers]) -> dict[str, Numbers]:
    """Float32 tensors under the names of `WhisperForConditionalGeneration`, without its output layer, which is the
    table of its tokens.

    Queries, keys and values stand one under the other there, and keys have a bias, which is zero.

    Raises:
        BaseModelError: a tensor's place is not known, or a key's bias is not zero.
    """
    found: dict[str, Numbers] = {}
    for name, value in tensors.items():
        if value.ndim:
            found |= _named(name, value.astype(np.float32))
    return found


def _named(name: str, value: Numbers) -> dict[str, Numbers]:
    side, _, rest = name.partition("/")
    start = f"model.{side}."
    plain = {
        "embeddings/weight": "embed_tokens.weight",
        "position_encodings/encodings": "embed_positions.weight",
        "conv1/weight": "conv1.weight",
        "conv1/bias": "conv1.bias",
        "conv2/weight": "conv2.weight",
        "conv2/bias": "conv2.bias",
        "layer_norm/gamma": "layer_norm.weight",
        "layer_norm/beta": "layer_norm.bias",
    }
    if rest in plain:
        return {start + plain[rest]: value}
    if rest in ("alignment_heads",):
        return {}
    told = re.fullmatch(r"layer_(\d+)/(self_attention|attention|ffn)/(layer_norm|linear_\d)/(\w+)", rest)
    if told is None:
        raise BaseModelError(f"tensor {name!r} has no place in transformers' Whisper")
    layer, part, module, kind = told.groups()
    start += f"layers.{layer}."
    if part == "ffn":
        places = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}
        return {f"{start}{places[module]}.{_NORMS.get(kind, kind)}": value}
    attention = "self_attn" if part == "self_attention" else "encoder_attn"
    if module == "layer_norm":
        return {f"{start}{attention}_layer_norm.{_NORMS[kind]}": value}
    fused = {
        ("self_attention", "linear_0"): ("q_proj", "k_proj", "v_proj"),
        ("self_attention", "linear_1"): ("out_proj",),
        ("attention", "linear_0"): ("q_proj",),
        ("attention", "linear_1"): ("k_proj", "v_proj"),
        ("attention", "linear_2"): ("out_proj",),
    }[part, module]
    pieces = dict(zip(fused, np.split(value, len(fused)), strict=True))
    if kind == "bias" and "k_proj" in pieces and pieces.pop("k_proj").any():
        raise BaseModelError(f"tensor {name!r} holds a bias of keys, for which transformers' Whisper has no place")
    return {f"{start}{attention}.{piece}.{kind}": np.ascontiguousarray(part) for piece, part in pieces.items()}


def _tensor(file: IO[bytes]) -> tuple[str, Numbers]:
    name = _word(file)
    (rank,) = _unpack(file, "B")
    shape = _unpack(file, "I" * rank)
    kind, size = _unpack(file, "BI")
    return name, np.frombuffer(file.read(size), _KINDS[kind]).reshape(shape)


def _word(file: IO[bytes]) -> str:
    (length,) = _unpack(file, "H")
    return file.read(length).rstrip(b"\0").decode()


def _unpack(file: IO[bytes], form: str) -> tuple[int, ...]:
    form = f"<{form}"
    found: tuple[int, ...] = struct.unpack(form, file.read(struct.calcsize(form)))
    return found
