"""Bases by a builder: `package.module:callable` of a package that the user allowed, or one of ours, by its name or by
the `model_type` of a folder.

    load_built("shop.models:build")      # after allow("shop.models")
    of_folder(Path("bases/yolox"))       # ours, for a folder whose config.json says so

A base's name is imported only when the user asked for that base himself: what an adapter's card names is not.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ray_lora import allowed
from ray_lora.bases.built import BuildContext, Built
from ray_lora.errors import BaseModelError, RecipeError

Builder = Callable[[BuildContext], Built]

BUILDERS: dict[str, str] = {}  # ours: name -> module:callable
FOLDERS: dict[str, str] = {  # ours, of folders: config.json's model_type -> module:callable, which takes the folder too
    "efficientnet-lite": "ray_lora.bases.efficientnet.folder:open_folder",
    "segmenter": "ray_lora.bases.segmenters.folder:open_folder",
    "yolox": "ray_lora.bases.yolox.folder:open_folder",
    "sasrec": "ray_lora.bases.sasrec.folder:open_folder",
}


def is_builder(model: str) -> bool:
    """Whether `base.model` names a builder."""
    return model in BUILDERS or allowed.is_name(model)


def find(model: str) -> Builder:
    """The builder of this name.

    Raises:
        BaseModelError: the user has not allowed it, or it is not installed.
    """
    if model in BUILDERS:
        ours: Builder = _import(BUILDERS[model])
        return ours
    try:
        theirs: Builder = allowed.load(model)
    except RecipeError as error:
        raise BaseModelError(f"base {model!r}: {error}") from None
    return theirs


def of_folder(path: Path) -> Builder | None:
    """The builder of ours for a folder whose config.json names its kind; None where it is transformers'."""
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    kind = config.get("model_type") if isinstance(config, dict) else None
    return partial(_import(FOLDERS[kind]), path) if isinstance(kind, str) and kind in FOLDERS else None


def build(model: str, device: str, builder: Builder | None = None) -> Built:
    """What the builder gives on `cpu` or `meta`, its backbone frozen and in eval mode.

    Args:
        builder: the one to ask, where it is not that of the name.

    Raises:
        BaseModelError: as `find`; or it gives something else than a float32 module on that device.
    """
    context = BuildContext(torch.device(device))
    with torch.random.fork_rng(devices=[]), torch.device(context.device):
        built = (builder or find(model))(context)
    if not isinstance(built, Built):
        raise BaseModelError(f"base {model!r} gave a {type(built).__name__}; a builder returns ray_lora.Built")
    built.backbone.requires_grad_(False).eval()
    for name, tensor in built.backbone.state_dict().items():
        odd = tensor.is_floating_point() and tensor.dtype != context.dtype
        if odd or tensor.device.type != device:
            raise BaseModelError(
                f"base {model!r} has {name!r} in {tensor.dtype} on {tensor.device}; it was asked for {context.dtype} "
                f"on {device}: build on context.device in context.dtype"
            )
    return built


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
