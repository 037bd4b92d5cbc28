"""Bases that are made on this machine of a packaged one: its weights, carried into another class of transformers'.

    convert("minilm-roberta")      # a folder that AutoModel, AutoTokenizer and AutoModelForSequenceClassification load

A folder's README.md says what it is. It is made once, in the cache, complete or not at all. Imports no torch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ray_lora.bases.packaged import cache_folder, complete, fetch, kept
from ray_lora.errors import BaseModelError, DataError

_POSITIONS = "embeddings.position_embeddings.weight"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
_CARD = """# minilm-roberta

MiniLM's weights in RoBERTa's class; not RoBERTa. ray_lora made this folder on this machine.

The weights are those of the packaged base `minilm` (its README is `SOURCE.md`), number for number, under
transformers' `RobertaModel`. Its table of positions has {shift} more row in front, of zeros, because RoBERTa counts
positions from behind the padding token's index. The vocabulary and the tokenizer are MiniLM's, so hidden states are
MiniLM's. Nothing was trained, and no weight of RoBERTa (Liu et al. 2019, arXiv 1907.11692) is in it: what its tokenizer
and its pretraining are good for is had from `roberta-base`.
"""


@dataclass(frozen=True)
class Conversion:
    """A packaged base, and what makes another one of it.

    Attributes:
        source: the packaged base's name.
        version: a number that grows when `make` writes something else.
        make: reads the source's folder, and writes all `files` into a new one.
    """

    source: str
    version: int
    make: Callable[[Path, Path], None]
    files: tuple[str, ...]


def convert(name: str) -> Path:
    """The folder of a converted base, made on first use.

    Raises:
        BaseModelError: what it is made of cannot be had, or the cache cannot be written.
    """
    found = converted(name)
    if found is not None:
        return found
    conversion = CONVERTED[name]
    source = fetch(conversion.source)
    try:
        return kept(_target(name), conversion.files, lambda into: conversion.make(source, into))
    except DataError as error:
        raise BaseModelError(f"base {name!r}: {error}") from None


def converted(name: str) -> Path | None:
    """The folder of a converted base, if it was made before."""
    return _target(name) if complete(_target(name), CONVERTED[name].files) else None


def _target(name: str) -> Path:
    return cache_folder() / f"{name}-{CONVERTED[name].version}"


def bert_as_roberta(source: Path, into: Path) -> None:
    """A BERT encoder as RoBERTa's class has it: the same tensors, positions shifted by the padding index + 1."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    config = json.loads((source / "config.json").read_text())
    padding = int(config["pad_token_id"])
    tensors = {
        name: value for name, value in load_file(source / "model.safetensors").items() if value.dtype.kind == "f"
    }
    table = tensors[_POSITIONS]
    unused = np.zeros((padding + 1, table.shape[1]), table.dtype)
    tensors[_POSITIONS] = np.concatenate([unused, table])
    into.mkdir()
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    told = {
        "model_type": "roberta",
        "architectures": ["RobertaModel"],
        "max_position_embeddings": config["max_position_embeddings"] + padding + 1,
        "tokenizer_class": "BertTokenizer",
        "_name_or_path": "minilm-roberta",
    }
    (into / "config.json").write_text(json.dumps(config | told, indent=2, sort_keys=True) + "\n")
    for name in _TOKENIZER:
        shutil.copyfile(source / name, into / name)
    shutil.copyfile(source / "README.md", into / "SOURCE.md")
    (into / "README.md").write_text(_CARD.format(shift=padding + 1))


CONVERTED: dict[str, Conversion] = {
    "minilm-roberta": Conversion(
        "minilm",
        1,
        bert_as_roberta,
        ("config.json", "model.safetensors", *_TOKENIZER, "README.md", "SOURCE.md"),
    ),
}
