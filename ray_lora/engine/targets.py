"""Targets: which layers of a base hold adapters, and whether a given adapter fits them. PEFT's naming rules live here.

It compares names and shapes; it computes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from torch import nn

from ray_lora.adapters.adapter import Adapter, layer_rank
from ray_lora.adapters.peft_folder import LowRank
from ray_lora.bases.base import Base
from ray_lora.bases.fingerprint import fingerprint_of
from ray_lora.bases.identity import at_revision, means, not_its_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.quantised import use_own
from ray_lora.engine.heads import Head
from ray_lora.engine.layers import TargetLayer, is_convolution, is_linear, refusal
from ray_lora.engine.own_norms import norms_in
from ray_lora.errors import AdapterError, BaseModelError, RecipeError, did_you_mean
from ray_lora.expressions import check_quick
from ray_lora.recipe import LoraSpec

_ARCHITECTURES = {  # PEFT's task_type -> the plain class, for folders that plain PEFT wrote
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
}

_CLASSES = {*_ARCHITECTURES.values(), "AutoModelForImageClassification"}  # whose head may be the base's own


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


# -------------------------------------------------------------------- what a saved adapter brings


def check_base(adapter: Adapter, base: Base) -> None:
    """BaseModelError when the adapter's card names another base: by its fingerprint, else by its name. A quantised
    base takes adapters of its float weights too: whoever asks for it in few bits asks for that."""
    card = adapter.card
    if card.base_fingerprint is not None:
        if card.base_fingerprint not in (base.fingerprint, base.origin):
            raise BaseModelError(
                f"the adapter was trained on base {card.base!r} ({card.base_fingerprint[:12]}…), this engine holds "
                f"{base.id!r} ({base.fingerprint[:12]}…); "
                + use_own(card.base_fingerprint, base.origin or base.fingerprint)
            )
        return
    if card.base is None:
        return
    named = means(card.base, base.id, base.folder)
    if named and not at_revision(base.folder, card.base_revision):
        raise BaseModelError(not_its_base("the adapter", card.base, base.id, card.base_revision))
    if not named and fingerprint_of(card.base) not in (base.fingerprint, base.origin or base.fingerprint):
        raise BaseModelError(not_its_base("the adapter", card.base, base.id))


def prefix_of(adapter: Adapter, base: Base) -> str:
    """What its layer names begin with: the plain class holds the backbone under a name, or is the backbone."""
    prefix = f"{base.prefix}."
    return prefix if adapter.head or any(name.startswith(prefix) for name in adapter.layers) else ""


def check_pairs(
    pairs: Mapping[str, LowRank], prefix: str, base: Base, layers: Mapping[str, TargetLayer], max_rank: int
) -> None:
    """AdapterError when a pair, named as in the plain class, matches no layer, or has another shape or a larger rank
    than fits."""
    for full, pair in pairs.items():
        name = full.removeprefix(prefix)
        layer = layers.get(name) if full.startswith(prefix) else None
        if layer is None:
            raise AdapterError(
                f"adapter layer {full!r} matches no layer of base {base.id!r} that can hold an adapter"
                f"{did_you_mean(full, [prefix + known for known in layers])}"
            )
        given, needed = (tuple(pair.A.shape), tuple(pair.B.shape)), layer.shape.pair(pair.rank)
        if given != needed or pair.embedding != layer.embedding:
            raise AdapterError(
                f"adapter layer {full!r} has A {given[0]} and B {given[1]}; "
                f"base {base.id!r} needs A {needed[0]} and B {needed[1]}"
                + (f"; it is {layer.beyond}: train the adapter here" if layer.beyond else "")
            )
        if pair.rank > max_rank:
            raise AdapterError(f"rank {pair.rank} exceeds this engine's max_rank {max_rank}; raise max_rank")


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


def head_of(adapter: Adapter, base: Base, heads: Mapping[str, Head]) -> HeadSpec | None:
    """Which head class the adapter's head belongs to, and its labels. For an adapter without a head: its base's own,
    which plain PEFT answers with; None where the base has none, or the adapter is the backbone's alone.

    Raises:
        AdapterError: no class is named, or the head's tensors are not those of the class.
    """
    architecture = adapter.card.architecture or _ARCHITECTURES.get(adapter.peft_type or "")
    if not adapter.head:
        return _own_head(adapter, architecture, base, heads)
    if architecture is None:
        _check_outside(adapter, base)
        raise AdapterError(
            f"the adapter has a head ({', '.join(sorted(adapter.head))}) but task_type {adapter.peft_type!r} names no "
            f"head class; set task_type to one of {', '.join(_ARCHITECTURES)}"
        )
    if base.own_outputs(architecture) is not None:
        raise AdapterError(
            f"the adapter brings {sorted(adapter.head)[0]!r}, and the head of {architecture} is the base's own, which "
            "other adapters share; train it without modules_to_save, or merge the adapter into a base of its own"
        )
    spec = HeadSpec(architecture, 2, attention=adapter.card.reads, norms=_brings_norms(adapter, base))
    head = heads.get(spec.kind) or Head(base, spec)
    if not spec.norms:
        _check_outside(adapter, base)
    labels = head.labels_in(adapter.head)
    spec = spec if labels is None else replace(spec, num_labels=labels)  # 2: of a class whose head has no labels
    _check_head(adapter, head, spec, base)
    return spec


def _brings_norms(adapter: Adapter, base: Base) -> bool:
    """Whether batch norms of the backbone are among what an adapter has of its own."""
    start, end = f"{base.prefix}.", ".running_mean"
    named = {name.removeprefix(start).removesuffix(end) for name in adapter.head if name.startswith(start)}
    return bool(named) and not named.isdisjoint(norms_in(base.backbone))


def _check_outside(adapter: Adapter, base: Base) -> None:
    """AdapterError for a tensor of the head that is the base's own."""
    if not any(name.startswith(f"{base.prefix}.") for name in adapter.head):
        return  # the backbone's names need not be listed, which takes as long as answering a row
    inside = {f"{base.prefix}.{name}" for name in base.backbone.state_dict()}
    if own := sorted(inside & adapter.head.keys()):
        raise AdapterError(
            f"the adapter brings {own[0]!r}, a layer of the base trained in full (modules_to_save), and other adapters "
            "share the base; train it without that, or merge the adapter into a base of its own"
        )


def _check_head(adapter: Adapter, head: Head, spec: HeadSpec, base: Base) -> None:
    """AdapterError when the head's tensors, or the labels its card names, are not those of the class."""
    needed = head.shapes(spec.num_labels)
    given = {name: tuple(tensor.shape) for name, tensor in adapter.head.items()}
    if given != needed:
        raise AdapterError(
            f"the adapter's head {given} does not fit {spec.architecture} on {base.id!r}, which has {needed}"
        )
    outputs = base.outputs(spec.architecture)
    if outputs not in (None, spec.num_labels):
        raise AdapterError(f"the adapter's head has {spec.num_labels} outputs, and base {base.id!r} knows {outputs}")
    _check_labels(adapter, spec)


def _own_head(adapter: Adapter, architecture: str | None, base: Base, heads: Mapping[str, Head]) -> HeadSpec | None:
    """The base's own head of this class, if its files hold a whole one."""
    own = base.own_outputs(architecture) if architecture is not None else None
    if architecture is not None and own is not None:
        return HeadSpec(architecture, own, attention=adapter.card.reads)
    labels = getattr(base.config, "num_labels", None)
    if architecture not in _CLASSES or base.built is not None or not isinstance(labels, int):
        return None
    spec = HeadSpec(architecture, labels, attention=adapter.card.reads)
    head = heads.get(architecture) or Head(base, spec)
    if head.trained(labels).keys() != head.shapes(labels).keys():
        return None
    _check_labels(adapter, spec)
    return spec


def _check_labels(adapter: Adapter, spec: HeadSpec) -> None:
    task = adapter.card.task
    if task is not None and task.outputs not in (None, spec.num_labels):
        raise AdapterError(f"the adapter's card names {task.outputs} labels, its head has {spec.num_labels}")
