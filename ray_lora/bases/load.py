"""A base: a frozen pretrained model, its processor and its fingerprint. The one file that loads transformers models.

It knows nothing of adapters or tasks.

    base = load_base(BaseSpec(model="minilm", dtype="float32"))
    base.backbone           # BertModel, eval mode, no parameter requires a gradient
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ray_lora.bases.packaged import PACKAGED, fetch
from ray_lora.errors import BaseModelError
from ray_lora.recipe import BaseSpec

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Base:
    """A loaded base.

    Attributes:
        id: the name, hub id or folder it was asked for by.
        backbone: the transformers model without a task head.
        processor: its tokenizer or image processor, or None.
        fingerprint: sha256 over its weight files, whatever dtype it is held in.
        prefix: the attribute under which task classes hold the backbone ("bert").
    """

    id: str
    folder: Path
    backbone: nn.Module
    processor: Any
    config: Any
    fingerprint: str
    prefix: str
    dtype: torch.dtype
    device: torch.device


def load_base(spec: BaseSpec, device: str | torch.device = "cpu") -> Base:
    """Load, freeze and fingerprint a base.

    Raises:
        BaseModelError: the folder or hub id cannot be loaded; the message says what to give instead.
    """
    folder = locate(spec.model)
    device = torch.device(device)
    dtype = pick_dtype(spec.dtype, device)
    attention = spec.attn_implementation
    if attention == "auto":  # scaled-dot-product attention's backward is the slower one on a CPU at short lengths
        attention = "eager" if device.type == "cpu" else "sdpa"
    backbone = _load_backbone(folder, spec.model, dtype, attention)
    backbone.requires_grad_(False).eval().to(device)
    return Base(
        id=spec.model,
        folder=folder,
        backbone=backbone,
        processor=load_processor(folder),
        config=backbone.config,
        fingerprint=fingerprint(folder),
        prefix=str(backbone.base_model_prefix),
        dtype=dtype,
        device=device,
    )


def describe_base(spec: BaseSpec, device: str | torch.device = "cpu") -> Base:
    """A base without memory for its weights: enough to check what fits and to count parameters.

    Raises:
        BaseModelError: as `load_base`.
    """
    from transformers import AutoConfig, AutoModel

    folder = locate(spec.model)
    try:
        with torch.device("meta"):
            backbone = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"base {spec.model!r} cannot be read from {str(folder)!r}: {error}") from None
    return Base(
        id=spec.model,
        folder=folder,
        backbone=backbone.requires_grad_(False).eval(),
        processor=load_processor(folder),
        config=backbone.config,
        fingerprint=fingerprint(folder),
        prefix=str(backbone.base_model_prefix),
        dtype=pick_dtype(spec.dtype, torch.device(device)),
        device=torch.device("meta"),
    )


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The named dtype; `auto` is bfloat16 where the device multiplies it natively, else float32."""
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        probe = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.10 and later
        flags: dict[str, bool] = probe()
        return torch.bfloat16 if flags.get("avx512_bf16") or flags.get("amx_bf16") else torch.float32
    return torch.float32


def locate(model: str) -> Path:
    """The folder of a packaged base, a local folder, or a hub id's snapshot (fetched when a network is there)."""
    if model in PACKAGED:
        return fetch(model)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists() or not list(path.glob("*.safetensors")):
            raise BaseModelError(
                f"base folder {model!r} lacks config.json or *.safetensors; save it with save_pretrained"
            )
        return path
    names = ", ".join(sorted(PACKAGED))
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise BaseModelError(
            f"base {model!r} is not a folder here; give a folder, a hub id or a packaged base ({names})"
        )
    return _snapshot(model, names)


def _snapshot(model: str, names: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseModelError(
            f"base {model!r} cannot be fetched from the hub ({reason}); without a network give a folder that "
            f"save_pretrained wrote (base.model=/path/to/folder) or a packaged base ({names})"
        ) from None


def _load_backbone(folder: Path, model: str, dtype: torch.dtype, attention: str) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # keys of another head are left out on purpose
    try:
        return AutoModel.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BaseModelError(f"base {model!r} cannot be loaded from {str(folder)!r}: {error}") from None
    finally:
        logging.set_verbosity(level)


def load_processor(folder: Path) -> Any:
    """The folder's tokenizer or image processor; None when it has neither."""
    from transformers import AutoImageProcessor, AutoTokenizer

    if (folder / "tokenizer.json").exists() or (folder / "tokenizer_config.json").exists():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if (folder / "preprocessor_config.json").exists():
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    return None


@lru_cache(maxsize=32)
def fingerprint(folder: Path) -> str:
    """sha256 over the folder's safetensors files in name order."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
