"""Bases by a builder: `package.module:callable` of a package that the user allowed, or one of ours by its name.

    load_built("shop.models:build")      # after allow("shop.models")

A base's name is imported only when the user asked for that base himself: what an adapter's card names is not.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from ray_lora import allowed
from ray_lora.bases.built import BuildContext, Built
from ray_lora.errors import BaseModelError, RecipeError

Builder = Callable[[BuildContext], Built]

BUILDERS: dict[str, str] = {}  # ours: name -> module:callable


def is_builder(model: str) -> bool:
    """Whether `base.model` names a builder."""
    return model in BUILDERS or allowed.is_name(model)


def find(model: str) -> Builder:
    """The builder of this name.

    Raises:
        BaseModelError: the user has not allowed it, or it is not installed.
    """
    if model in BUILDERS:
        module, _, name = BUILDERS[model].partition(":")
        ours: Builder = getattr(importlib.import_module(module), name)
        return ours
    try:
        theirs: Builder = allowed.load(model)
    except RecipeError as error:
        raise BaseModelError(f"base {model!r}: {error}") from None
    return theirs


def build(model: str, device: str) -> Built:
    """What the builder gives on `cpu` or `meta`, its backbone frozen and in eval mode.

    Raises:
        BaseModelError: as `find`; or it gives something else than a float32 module on that device.
    """
    context = BuildContext(torch.device(device))
    with torch.random.fork_rng(devices=[]), torch.device(context.device):
        built = find(model)(context)
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
