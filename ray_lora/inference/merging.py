"""Adapters of a store merged into a new version, and scored beside those it came from.

    merge(["news", "movies"], "both", weights=[0.5, 0.5], data="test.parquet")["ref"]      # "both@1"

The pairs are combined by `adapters/merge.py`; the head is the weighted mean of the heads, its outputs aligned by the
names of their labels. What cannot be combined is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ray_lora.adapters.adapter import Adapter, Card, Merged, Parent
from ray_lora.adapters.card import Combination
from ray_lora.adapters.merge import combination, merge_layers
from ray_lora.bases.base import Base
from ray_lora.bases.load import describe_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine.brought import check_base
from ray_lora.engine.head_parts import reordered
from ray_lora.engine.heads import Head
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.inference.comparing import compare
from ray_lora.inference.stored import named_base
from ray_lora.recipe import Json, LoraSpec, TaskSpec
from ray_lora.store import Store, open_store
from ray_lora.store.refs import check_name

_LABELS = "labels"
_TRAINING = {"class_weights"}  # of a task's options, those that no answer depends on
_SMALL = 1e-9


def merge(
    refs: Sequence[str],
    name: str,
    store: str = "./store",
    *,
    weights: Sequence[float] | None = None,
    method: str = "cat",
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    data: str | Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    base: str | None = None,
    tracking_uri: str | None = None,
) -> dict[str, Json]:
    """Put a new version into the store that is the combination of others.

    Args:
        name: of the new adapter. weights, method, rank, density, seed: as `adapters.merge.combination`.
        data: rows on which parents and merged are scored, as `compare` takes them, before anything is stored.
        base: where their base is, when not where each says.

    Returns:
        `{"ref", "sha256", "method", "weights", "parents", "rank", "parameters", "compared"}`; `compared` is what
        `compare` gives, None without `data`.

    Raises:
        RayLoraError: a ref, an option, the base, a file or a row is wrong, or the adapters cannot be merged.
    """
    check_name(name)
    how = combination(method, weights, parents=len(refs), rank=rank, density=density, seed=seed)
    if len(set(refs)) < len(refs):
        raise RecipeError(f"an adapter is named twice among {', '.join(refs)}; name each once, with its weight")
    opened = open_store(store, tracking_uri)
    parents = _load(opened, refs)
    merged = merged_from(parents, how, base)
    compared = None
    if data is not None:
        compared = compare(
            list(parents), data, store, columns, base=base, tracking_uri=tracking_uri, added={name: merged}
        )
        mine = next(line for line in compared["scores"] if line["ref"] == name)
        metrics = {key: scored["value"] for key, scored in mine["metrics"].items() if math.isfinite(scored["value"])}
        merged = replace(merged, card=merged.card.model_copy(update={"metrics": metrics}))
    entry = opened.put(merged, name)
    if compared is not None:
        mine["ref"] = entry.ref
    return {
        "ref": entry.ref,
        "sha256": entry.sha256,
        "method": how.method,
        "weights": list(how.weights),
        "parents": [{"ref": ref, "sha256": adapter.sha256} for ref, adapter in parents.items()],
        "rank": max((pair.rank for pair in merged.layers.values()), default=0),
        "parameters": merged.num_parameters,
        "compared": compared,
    }


def _load(store: Store, refs: Sequence[str]) -> dict[str, Adapter]:
    """The adapters by `name@version`; RecipeError where two refs mean one."""
    found: dict[str, Adapter] = {}
    for ref in refs:
        entry, adapter = store.load(ref)
        if entry.ref in found:
            raise RecipeError(f"{ref} is {entry.ref}, which is named already; name each adapter once, with its weight")
        found[entry.ref] = adapter
    return found


def merged_from(parents: Mapping[str, Adapter], how: Combination, base: str | None = None) -> Adapter:
    """The combination of adapters of one base and one task, with a card that names them.

    Args:
        parents: by what the card is to call them. base: where the base is, when not where the first one says.

    Raises:
        BaseModelError: they have different bases. AdapterError: their tasks, labels, heads or layers do not fit.
    """
    if len(parents) != len(how.weights):
        raise RecipeError(f"{len(how.weights)} weights were given for {len(parents)} adapters; give one for each")
    first = next(iter(parents.values()))
    described = _one_base(parents, base)
    _alike(parents)
    scaled = [
        {name: (pair, adapter.scaling(name)) for name, pair in adapter.layers.items()} for adapter in parents.values()
    ]
    layers = merge_layers(scaled, how)
    head = _head(parents, how.weights, described, base)
    card = first.card.model_copy(
        update={
            "merged": Merged(
                parents=tuple(Parent(ref=ref, sha256=adapter.sha256) for ref, adapter in parents.items()), how=how
            ),
            "metrics": {},
            "temperature": None,  # a mean of calibrated heads is not calibrated
            "recipe": None,
            "sha256": None,
            "beyond_peft": tuple(dict.fromkeys(told for one in parents.values() for told in one.card.beyond_peft)),
        }
    )
    ranks = {name: pair.rank for name, pair in layers.items()}
    return Adapter(_config(ranks), layers, head, card, first.peft_type, first.head_modules)


def _config(ranks: Mapping[str, int]) -> LoraSpec:
    """LoRA's options of layers of these ranks, whose alpha/r is 1."""
    largest = max(ranks.values(), default=1)
    others = {re.escape(name): rank for name, rank in ranks.items() if rank != largest}
    alphas = {name: float(rank) for name, rank in others.items()}
    return LoraSpec(
        r=largest, lora_alpha=largest, target_modules=tuple(ranks), rank_pattern=others, alpha_pattern=alphas
    )


def _one_base(parents: Mapping[str, Adapter], base: str | None) -> Base | None:
    """What is known of the base, where fingerprints alone did not say that it is one."""
    marks = {adapter.card.base_fingerprint for adapter in parents.values()}
    if len(marks) == 1 and None not in marks:
        return None
    ref, first = next(iter(parents.items()))
    described = _describe(first.card, ref, base)
    for adapter in parents.values():
        check_base(adapter, described)
    return described


def _describe(card: Card, ref: str, base: str | None) -> Base:
    return describe_base(card.spec_of(base or named_base(card.base, ref)))


def _alike(parents: Mapping[str, Adapter]) -> None:
    """AdapterError where adapters do different things."""
    (ref, first), *others = parents.items()
    told = _options(first.card.task)
    for other, adapter in others:
        mine = _options(adapter.card.task)
        odd = sorted(key for key in told.keys() | mine.keys() if told.get(key) != mine.get(key))
        if odd:
            key = "type" if "type" in odd else odd[0]
            raise AdapterError(
                f"{ref} has task.{key} {told.get(key)!r} and {other} {mine.get(key)!r}; adapters are merged that do "
                "the same"
            )
        if (adapter.card.architecture, adapter.card.reads) != (first.card.architecture, first.card.reads):
            raise AdapterError(
                f"{ref} belongs to class {first.card.architecture}, {other} to {adapter.card.architecture}; adapters "
                "are merged that belong to one class and are read in one way"
            )
        if set(adapter.head) != set(first.head):
            raise AdapterError(
                f"{ref} has a head of {', '.join(sorted(first.head)) or 'nothing'}, {other} of "
                f"{', '.join(sorted(adapter.head)) or 'nothing'}; adapters are merged that have one kind of head"
            )


def _options(task: TaskSpec | None) -> dict[str, Json]:
    """A task's options by which answers differ, its labels in any order."""
    told = {} if task is None else {key: value for key, value in task.recorded().items() if key not in _TRAINING}
    if isinstance(told.get(_LABELS), (list, tuple)):
        told[_LABELS] = sorted(told[_LABELS])
    return told


def _head(
    parents: Mapping[str, Adapter], weights: Sequence[float], described: Base | None, base: str | None
) -> dict[str, Tensor]:
    """The weighted mean of the heads, their outputs in the first one's order."""
    (ref, first), *_ = parents.items()
    if not first.head:
        return {}
    total = sum(weights)
    if abs(total) < _SMALL:
        raise RecipeError("the weights are 0 in all, of which no mean of the heads can be taken; change one of them")
    aligned = [_aligned(other, adapter, first, described, base, ref) for other, adapter in parents.items()]
    shares = [weight / total for weight in weights]
    mean = {
        name: torch.stack([head[name] * share for head, share in zip(aligned, shares, strict=True)]).sum(0)
        for name in first.head
    }
    bad = [name for name, tensor in mean.items() if name.endswith("running_var") and bool((tensor < 0).any())]
    if bad:
        raise RecipeError(f"these weights make {bad[0]!r}, a variance, less than 0; give weights of one sign")
    return mean


def _aligned(
    ref: str, adapter: Adapter, first: Adapter, described: Base | None, base: str | None, first_ref: str
) -> Mapping[str, Tensor]:
    """A head's tensors, its outputs in the order of the first one's labels."""
    ours, theirs = _labels(first, first_ref), _labels(adapter, ref)
    head: Mapping[str, Tensor] = adapter.head
    if ours != theirs:
        known = described or _describe(first.card, first_ref, base)
        architecture = first.card.architecture
        if architecture is None:
            raise AdapterError(f"{ref} names no head class, so its labels {', '.join(theirs)} cannot be put in order")
        parts = Head(known, HeadSpec(architecture, len(ours), attention=first.card.reads)).parts
        head = reordered(parts, adapter.head, len(ours), [theirs.index(label) for label in ours])
        lost = sorted(set(adapter.head) - set(head))
        if lost:
            raise AdapterError(
                f"{ref} has its labels in another order than {first_ref}, and which entries of {lost[0]!r} are which "
                "label's is not known; merge adapters whose labels are in one order"
            )
    for name, tensor in head.items():
        if tensor.shape != first.head[name].shape:
            raise AdapterError(
                f"{ref} has {name!r} of shape {tuple(tensor.shape)}, {first_ref} of {tuple(first.head[name].shape)}; "
                "adapters are merged whose heads are alike"
            )
    return head


def _labels(adapter: Adapter, ref: str) -> tuple[str, ...]:
    """The names of its head's outputs; none where the task has no labels."""
    if adapter.card.task is None:
        raise AdapterError(
            f"{ref} has a head and no task in its card, so nobody knows which output is which label; say it once: "
            "ray-lora adapters import FOLDER NAME --task TYPE"
        )
    return tuple(getattr(adapter.card.task, _LABELS, None) or ())
