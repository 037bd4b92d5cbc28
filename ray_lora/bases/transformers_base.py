"""Bases of transformers: a model class read from a folder or a GGUF file, its processor, and its plain task classes.

It finds no files: it is handed the folder or the file.
"""

from __future__ import annotations

import copy
import importlib.util
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_lora.bases.plain import HeadSpec
from ray_lora.errors import AdapterError, BaseModelError

_WRONG = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    struct.error,
)  # what transformers raises for files it cannot use


def is_gguf(path: Path) -> bool:
    """Whether it is a GGUF file by its name."""
    return path.suffix == ".gguf"


def load_backbone(path: Path, model: str, dtype: torch.dtype, attention: str) -> Any:
    """The model without a head, read from a folder or GGUF file; BaseModelError when it cannot be."""
    from transformers import AutoModel

    try:
        with quiet():
            return AutoModel.from_pretrained(
                *_place(path),
                dtype=dtype,
                attn_implementation=attention,
                local_files_only=True,
                use_safetensors=True,
                **_within(path),
            )
    except _WRONG as error:
        raise BaseModelError(f"base {model!r} cannot be loaded from {str(path)!r}: {error}") from None


def describe_backbone(path: Path, model: str) -> Any:
    """The same on the meta device."""
    from transformers import AutoConfig, AutoModel

    try:
        with quiet():
            config = AutoConfig.from_pretrained(*_place(path), local_files_only=True, **_within(path))
        with torch.device("meta"):
            return AutoModel.from_config(config)
    except _WRONG as error:
        raise BaseModelError(f"base {model!r} cannot be read from {str(path)!r}: {error}") from None


def load_processor(path: Path) -> Any:
    """The tokenizer or image processor of a folder or GGUF file; None when it has neither."""
    from transformers import AutoImageProcessor, AutoTokenizer

    if is_gguf(path):
        return _gguf_tokenizer(path)
    if (path / "tokenizer.json").exists() or (path / "tokenizer_config.json").exists():
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    if (path / "preprocessor_config.json").exists():
        return AutoImageProcessor.from_pretrained(path, local_files_only=True)
    return None


def _gguf_tokenizer(path: Path) -> Any:
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    if "tokenizer.ggml.tokens" not in GGUFReader(path).fields:
        return None
    return AutoTokenizer.from_pretrained(path.parent, local_files_only=True, **_within(path))


def check_gguf(path: Path) -> None:
    """BaseModelError unless what reads GGUF files is installed."""
    if importlib.util.find_spec("gguf") is None:
        raise BaseModelError(
            f"base {str(path)!r} is a GGUF file, and the package that reads them is not installed: "
            "pip install 'ray_lora[gguf]'"
        )


def _place(path: Path) -> tuple[Path]:
    return (path.parent if is_gguf(path) else path,)


def _within(path: Path) -> dict[str, str]:
    return {"gguf_file": path.name} if is_gguf(path) else {}


@contextmanager
def quiet() -> Iterator[None]:
    """Keys of another head are left out on purpose; and no progress bars."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def plain(config: Any, spec: HeadSpec) -> nn.Module:
    """The plain class of a base's config without memory for its weights, in eval mode.

    Raises:
        AdapterError: transformers has no such class, or it does not know this base.
    """
    import transformers

    config = copy.deepcopy(config)
    config.num_labels = spec.num_labels
    text = config.get_text_config()
    if getattr(text, "pad_token_id", 0) is None:
        text.pad_token_id = -1  # no token at all; without one a decoder's class takes a single row at a time
    named = spec.architecture.startswith("AutoModelFor")  # the name may come from a file: it reaches nothing else
    factory = getattr(transformers, spec.architecture, None) if named else None
    if factory is None:
        raise AdapterError(
            f"transformers has no class {spec.architecture!r}; name a class such as AutoModelForSequenceClassification"
        )
    try:
        with torch.device("meta"):
            model: nn.Module = factory.from_config(config)
    except ValueError as error:
        raise AdapterError(f"{spec.architecture} does not know this base ({config.model_type}): {error}") from None
    return model.eval()
