"""An adapter's README.md, a model card in Hugging Face's form: what it is, what it learnt from, how to use it.

    ---
    library_name: peft
    pipeline_tag: text-classification
    tags: [lora, ray_lora]
    ---
    # LoRA adapter: text-classification on minilm

It follows from the adapter alone, so the same adapter has the same card. It knows no names, stores or paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ray_lora.adapters.card import Card
from ray_lora.adapters.peft_folder import LowRank
from ray_lora.recipe import LoraSpec

README = "README.md"

_MOST_LABELS, _MOST_LETTERS = 12, 120
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def readme(card: Card, config: LoraSpec, layers: Mapping[str, LowRank], numbers: int) -> str:
    """The text of the file: metadata for the hub between two lines of dashes, then a page of Markdown.

    Args:
        card: with the content hash.
        numbers: of all tensors, the head's included.
    """
    ranks = sorted({layer.rank for layer in layers.values()}) or [config.r]
    rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    size = f"rank {rank}, alpha {config.lora_alpha:g}, {len(layers)} layers, {numbers:,} numbers"
    on = f" on {_plain(card.base)}" if card.base else ""
    title = f"# LoRA adapter: {_plain(card.task.type)}{on}" if card.task is not None else f"# LoRA adapter{on}"
    facts = [*_facts(card), ("size", size), ("content hash", f"`{card.sha256}`")]
    table = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts)]
    return "\n".join(["---", _metadata(card), "---", "", title, "", *table, "", "## Use", "", *_use(card), ""])


def _metadata(card: Card) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = card.task.type if card.task is not None else None
    learnt = _learnt(card)
    results = [
        EvalResult(
            task_type=str(task),
            dataset_type="rows",
            dataset_name=_scored_on(card),
            dataset_revision=learnt.get("validation.sha256"),
            metric_type=name,
            metric_value=value,
        )
        for name, value in card.metrics.items()
        if task is not None
    ]
    on_hub = card.base is not None and _HUB_ID.fullmatch(card.base)
    data = ModelCardData(
        base_model=card.base if on_hub else None,
        library_name="peft",
        pipeline_tag=task,
        tags=["lora", "ray_lora", *([f"base_model:adapter:{card.base}"] if on_hub else [])],
        model_name="adapter" if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _facts(card: Card) -> list[tuple[str, str]]:
    learnt = _learnt(card)
    facts = []
    if card.base is not None:
        mark = f", weights sha256 `{card.base_fingerprint}`" if card.base_fingerprint else ""
        facts.append(("base", f"{_plain(card.base)}{mark}"))
    told = getattr(card.task, "labels", None)  # of tasks that have some
    if told:
        labels = [_plain(str(label)) for label in told]
        more = f" and {len(labels) - _MOST_LABELS:,} more" if len(labels) > _MOST_LABELS else ""
        facts.append(("labels", ", ".join(labels[:_MOST_LABELS]) + more))
    for split, name in (("train", "trained on"), ("validation", "scored on")):
        if f"{split}.sha256" in learnt:
            facts.append((name, f"{int(learnt[f'{split}.rows']):,} rows, sha256 `{learnt[f'{split}.sha256']}`"))
    taught: Any = (card.recipe or {}).get("distillation")
    if isinstance(taught, dict):
        mark = f", sha256 `{_plain(str(taught['sha256']))}`" if taught.get("sha256") else ""
        facts.append(("teacher", f"{_plain(str(taught.get('teacher')))}{mark}"))
    if card.metrics:
        facts.append(("scores", ", ".join(f"{_plain(name)} {value:.4f}" for name, value in card.metrics.items())))
    if card.merged is not None:
        facts.append(
            ("merged from", f"{', '.join(_plain(one.ref) for one in card.merged.parents)} by {card.merged.how.method}")
        )
    if card.temperature is not None:
        facts.append(("calibration", f"the head's outputs are divided by {card.temperature:.3g}"))
    return facts


def _use(card: Card) -> list[str]:
    base = card.base or "BASE"
    lines = ["```", f"ray-lora adapters import FOLDER NAME --base {base}", "ray-lora predict NAME INPUT", "```", ""]
    if card.beyond_peft:
        why = card.beyond_peft[0]
        return [*lines, f"Plain PEFT refuses this folder: {_plain(why)}."]
    return [*lines, "The folder is a PEFT adapter too: `PeftModel.from_pretrained(base, FOLDER)`."]


def _learnt(card: Card) -> Mapping[str, str]:
    """Rows and digests of the splits: `{"train.rows": "649", "train.sha256": ...}`."""
    told: Any = (card.recipe or {}).get("data")
    known = {str(key): str(value) for key, value in told.items()} if isinstance(told, dict) else {}
    whole = all(known.get(f"{split}.rows", "0").isdecimal() for split in ("train", "validation"))
    return known if whole else {}


def _scored_on(card: Card) -> str:
    """What the card's metrics were taken on: all validation rows, or those of a rung of a search."""
    whole = _learnt(card).get("validation.rows", "")
    rung: Any = (card.recipe or {}).get("evaluated")
    part = rung.get("validation_rows") if isinstance(rung, dict) else None
    return f"{part} of {whole} validation rows" if isinstance(part, int) else f"{whole} validation rows".strip()


def _plain(text: str) -> str:
    """A text that comes from outside as one cell of a Markdown table: without lines, marks or length of its own."""
    flat = re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(text.split()))
    return flat if len(flat) <= _MOST_LETTERS else flat[:_MOST_LETTERS] + "…"
