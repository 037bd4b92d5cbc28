"""An adapter that comes from elsewhere, tried on the base and with the task that a person says are its own.

    adopted = adopt(Adapter.load(folder), base="minilm", task={"type": "text-classification", "labels": [...]})

What a person says is compared with what the files say; then the card keeps it, and everything else follows the card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError

from ray_lora.adapters.adapter import Adapter
from ray_lora.allowed import is_name
from ray_lora.atomic import expanded
from ray_lora.bases.base import Base
from ray_lora.bases.load import load_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.bounds import reason
from ray_lora.engine import AdapterEngine
from ray_lora.engine.brought import check_base
from ray_lora.errors import AdapterError, BaseModelError, RecipeError
from ray_lora.recipe import BaseSpec, Json, TaskSpec
from ray_lora.tasks import build_task, complete, plain_spec


def adopt(
    adapter: Adapter, *, base: str | None = None, rebase: bool = False, task: Mapping[str, Json] | None = None
) -> Adapter:
    """The adapter with this base and this task in its card.

    Args:
        base: its base, on which it is tried; None keeps what it names.
        rebase: `base` is right although the adapter names another one.
        task: the task's options; labels that are left open are the base's own, or LABEL_0, LABEL_1, …

    Raises:
        BaseModelError: the adapter names another base and `rebase` is not said, or the base cannot be loaded.
        AdapterError: it does not fit the base, or answers what is no number.
        RecipeError: the task's options are wrong, or need a base that is not named.
    """
    spec = None if task is None else _spec(task)
    if spec is not None:
        told = {"task": spec, "attention": spec.reads or adapter.card.attention, "sha256": None}
        adapter = replace(adapter, card=adapter.card.model_copy(update=told))
    if base is None and (spec is None or spec.outputs is not None):
        return adapter
    model = base or adapter.card.base
    if model is None or (base is None and is_name(model)):
        raise RecipeError("which labels the task has is not said, and no base that has names for them; give --base")
    loaded = load_base(BaseSpec(model=model, dtype="float32"))
    if base is None or not rebase:
        _check_claim(adapter, loaded, base is not None)
    tried, head = _try_on(adapter, loaded)
    card = adapter.card
    known = complete(card.task, head, tried.labels) if card.task is not None else _plain(head, tried.labels)
    if known is not None:
        check_answers(known, head)
        build_task(known, tried.processor)  # a task that this base cannot do says so here
    update: dict[str, Json] = {"task": known, "sha256": None}
    if base is not None:
        where = expanded(base)
        name = str(where.absolute()) if where.exists() and loaded.folder != Path() else base
        update |= {"base": name, "base_fingerprint": tried.fingerprint, "base_revision": None}
    return replace(adapter, card=card.model_copy(update=update))


def _spec(task: Mapping[str, Json]) -> TaskSpec:
    try:
        spec = TaskSpec.model_validate(task)
    except ValidationError as error:
        raise RecipeError(f"--task: {reason(error)}") from None
    if "max_length" in type(spec).model_fields and "max_length" not in task:
        return spec.model_copy(update={"max_length": None})  # elsewhere texts are as long as the base takes
    return spec


def _check_claim(adapter: Adapter, base: Base, asked: bool) -> None:
    """BaseModelError when the adapter names another base."""
    try:
        check_base(adapter, base)
    except BaseModelError as error:
        if not asked or "--rebase" in str(error):
            raise
        raise BaseModelError(f"{error}; if it is to answer on {base.id!r} all the same, say so: --rebase") from None


def _try_on(adapter: Adapter, base: Base) -> tuple[Base, HeadSpec | None]:
    """Mount the adapter, whatever base it names, and let it answer two rows."""
    if not adapter.layers:
        raise RecipeError("the adapter has no low-rank layers; there is nothing to try on a base")
    free = {"base": None, "base_fingerprint": None, "base_revision": None}
    engine, slot = mounted(replace(adapter, card=adapter.card.model_copy(update=free)), base)
    try:
        for size in (5, 9):
            with torch.inference_mode():
                ((_, outputs),) = engine.forward(base.batch(base.examples([size])), torch.tensor([slot]))
            for answer in outputs.values():
                if isinstance(answer, torch.Tensor) and not bool(torch.isfinite(answer).all()):
                    raise AdapterError(f"on base {base.id!r} the adapter answers what is no finite number")
        return base, engine.residents[slot].head
    finally:
        engine.close()


def _plain(head: HeadSpec | None, labels: tuple[str, ...] | None) -> TaskSpec | None:
    """What an adapter without a task keeps: the base's own labels; without them nothing need be kept."""
    fits = head is not None and labels is not None and len(labels) == head.num_labels
    return plain_spec(head, labels) if fits else None


def mounted(adapter: Adapter, base: Base) -> tuple[AdapterEngine, int]:
    """An engine that holds this adapter alone, and its slot."""
    engine = AdapterEngine(
        base,
        slots=1,
        max_rank=max((pair.rank for pair in adapter.layers.values()), default=1),
        embeddings=any(pair.embedding for pair in adapter.layers.values()),
    )
    return engine, engine.load(adapter)


def check_answers(spec: TaskSpec, head: HeadSpec | None) -> None:
    """AdapterError for a task whose answers come from a head, where there is none."""
    if head is None and spec.outputs is not None:
        raise AdapterError(
            f"the adapter does {spec.type} and brings no head, and its base has no trained one of that class; plain "
            "PEFT would answer with a random one: save the adapter with its head (modules_to_save)"
        )
