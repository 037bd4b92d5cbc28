"""Targets: which layers of a base hold adapters, and which of them a config asks for. PEFT's naming rules live here.

It compares names and shapes; it computes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from torch import nn

from ray_lora.adapters.adapter import layer_rank
from ray_lora.bases.base import Base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine.heads import Head
from ray_lora.engine.layers import TargetLayer, is_convolution, is_linear, refusal
from ray_lora.errors import RecipeError, did_you_mean
from ray_lora.expressions import check_quick
from ray_lora.recipe import LoraSpec


def find_layers(backbone: nn.Module, slots: int, embeddings: bool) -> dict[str, TargetLayer]:
    """Every layer of the backbone that can hold adapters, by module name."""
    return {
        name: TargetLayer(name, module, slots)
        for name, module in backbone.named_modules()
        if refusal(module) is None
        and not bypassed(backbone, name)
        and (embeddings or not isinstance(module, nn.Embedding))
    }


def bypassed(backbone: nn.Module, name: str) -> bool:
    """Whether the parent reads this module's weight without calling it."""
    return isinstance(backbone.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)


# -------------------------------------------------------------------- what a config asks for


def match(
    config: LoraSpec, head: Head | None, base: Base, layers: Mapping[str, TargetLayer], max_rank: int
) -> tuple[str, ...]:
    """Backbone layers that `target_modules` names in the plain class, by PEFT's rules.

    Raises:
        RecipeError: nothing matches, a match cannot hold an adapter, or a rank is too large.
    """
    if config.target_modules == ():
        return ()
    prefix = f"{base.prefix}." if head is not None else ""
    modules = {
        prefix + name: module
        for name, module in base.backbone.named_modules()
        if name and (head is None or name in head.targets)
    }
    _check_expressions(config, modules)
    names = [name for name, module in modules.items() if _is_target(config, name, module)]
    _check_own_head(config, head, names, modules)
    if not names:
        leaves = sorted({name.rsplit(".", 1)[-1] for name in modules if name.removeprefix(prefix) in layers})
        targets = config.target_modules
        wanted = targets if isinstance(targets, str) else ", ".join(targets)
        raise RecipeError(
            f"target_modules {wanted!r} match no layer of base {base.id!r}; "
            f"its layers are {', '.join(leaves)}{did_you_mean(wanted, leaves)}"
        )
    _check_words(config, names, modules, base)
    for name in names:
        layer = layers.get(name.removeprefix(prefix))
        if layer is None:
            why = _why_not(modules[name])
            raise RecipeError(f"target {name!r} cannot hold an adapter: {why}; leave it out of target_modules")
        _check_rank(layer_rank(config, name), name, layer, max_rank)
    return tuple(name.removeprefix(prefix) for name in names)


def _check_words(config: LoraSpec, names: Collection[str], modules: Collection[str], base: Base) -> None:
    """RecipeError for a word of `target_modules` that names no module, or a pattern's key that names no target: PEFT
    passes over both, and whoever misspelt one trains fewer layers than they meant, or of another rank."""
    targets = config.target_modules if isinstance(config.target_modules, tuple) else ()
    lost = next((word for word in targets if not any(_names((word,), module) for module in modules)), None)
    if lost is not None:
        leaves = sorted({module.rsplit(".", 1)[-1] for module in modules})
        raise RecipeError(
            f"target_modules has {lost!r}, which matches no module of base {base.id!r}{did_you_mean(lost, leaves)}; "
            "correct it, or leave it out"
        )
    for field in ("rank_pattern", "alpha_pattern"):
        for key in getattr(config, field):
            if not any(re.match(rf"(.*\.)?({key})$", name) for name in names):
                raise RecipeError(f"{field} has {key!r}, which matches none of the target layers; correct it")


def _check_expressions(config: LoraSpec, names: Iterable[str]) -> None:
    """RecipeError for an expression that would be matched for ever."""
    found = [said for said in (config.target_modules, config.exclude_modules) if isinstance(said, str)]
    try:
        check_quick([*found, *config.rank_pattern, *config.alpha_pattern], names)
    except ValueError as error:
        raise RecipeError(f"lora: {error}") from None


def _check_own_head(
    config: LoraSpec, head: Head | None, names: Iterable[str], modules: Mapping[str, nn.Module]
) -> None:
    """RecipeError for a target that is a base's own head, or may be tied to it: neither was compared with PEFT."""
    if head is None or head.own is None:
        return
    wanted = () if config.target_modules == "all-linear" else config.target_modules
    outside = [name for name in head.outside if _names(wanted, name)]
    tables = [name for name in names if isinstance(modules[name], nn.Embedding)]
    if outside or tables:
        what = "is the base's own head" if outside else "is an embedding, which the base's own head may share"
        raise RecipeError(
            f"target {[*outside, *tables][0]!r} {what}, and adapters there are not supported; leave it out of "
            "target_modules"
        )


def _is_target(config: LoraSpec, name: str, module: nn.Module) -> bool:
    """PEFT's matching: 'all-linear', a regular expression for the whole name, or a list of name endings; and two words
    of ours, 'all-convolutions' and 'all-layers', which are both."""
    if config.exclude_modules is not None and _names(config.exclude_modules, name):
        return False
    if config.target_modules in ("all-linear", "all-convolutions", "all-layers"):
        linear, convolution = (config.target_modules != word for word in ("all-convolutions", "all-linear"))
        return (linear and is_linear(module)) or (convolution and is_convolution(module))
    return _names(config.target_modules, name)


def _names(wanted: str | tuple[str, ...], name: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == ending or name.endswith("." + ending) for ending in wanted)


def _why_not(module: nn.Module) -> str:
    """Why a module that was asked for holds no adapters."""
    if isinstance(module, nn.Embedding):
        return "this engine was built without embeddings"
    return refusal(module) or "its parent never calls it"


def _check_rank(rank: int, name: str, layer: TargetLayer, max_rank: int) -> None:
    if rank > layer.shape.width:
        raise RecipeError(
            f"rank {rank} exceeds the width {layer.shape.width} of layer {name!r}; lower lora.r, "
            "or this layer's rank in lora.rank_pattern"
        )
    if rank > max_rank:
        raise RecipeError(f"rank {rank} exceeds this engine's max_rank {max_rank}; raise max_rank or lower the rank")


def with_norms(head: HeadSpec | None, config: LoraSpec) -> HeadSpec | None:
    """The head of an adapter of this config, the base's batch norms with it where they are its own.

    Raises:
        RecipeError: it has no head of its own beside them.
    """
    if config.batch_norms == "base":
        return head
    if head is None:
        raise RecipeError("lora.batch_norms: own is for adapters with a head; leave it out")
    return replace(head, norms=True)
