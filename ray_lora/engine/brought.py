"""What a saved adapter brings, and whether it fits a base and an engine: its base, its pairs, its head.

    check_base(adapter, base)                               # trained on these weights, or BaseModelError
    check_pairs(adapter.layers, prefix_of(adapter, base), base, engine.layers, engine.max_rank)

It compares names and shapes; it computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ray_lora.adapters.adapter import Adapter
from ray_lora.adapters.peft_folder import LowRank
from ray_lora.bases.base import Base
from ray_lora.bases.fingerprint import fingerprint_of
from ray_lora.bases.identity import at_revision, means, not_its_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.quantised import use_own
from ray_lora.engine.heads import Head
from ray_lora.engine.layers import TargetLayer
from ray_lora.engine.own_norms import norms_in
from ray_lora.errors import AdapterError, BaseModelError, did_you_mean

_ARCHITECTURES = {  # PEFT's task_type -> the plain class, for folders that plain PEFT wrote
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
}

_CLASSES = {*_ARCHITECTURES.values(), "AutoModelForImageClassification"}  # whose head may be the base's own


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
