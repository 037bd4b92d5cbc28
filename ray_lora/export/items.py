"""What a runner must know of a base and an adapter to read histories of items, and to say what comes next.

It knows vocabularies and tasks: no graphs.
"""

from __future__ import annotations

from typing import Any

from ray_lora.bases.base import Base
from ray_lora.recipe import Json
from ray_lora.tasks import Row
from ray_lora.tasks.recommendation.options import options_of


def of_items(base: Base) -> dict[str, Json]:
    """The vocabulary, in the order of the outputs."""
    return {
        "items": list(base.processor.ids),
        "padding": {"input_ids": base.processor.pad_token_id, "attention_mask": 0},
    }


def ranks(task: Any, base: Base) -> dict[str, Json]:
    """How much of a history is read, and what of the ranking is told."""
    options = options_of({}, task.spec.exclude_seen)
    return {"max_length": task.longest, "exclude_seen": options.exclude_seen, "top_k": options.top_k}


def drawn_histories(base: Base, task: Any) -> list[Row]:
    """Histories of random items, the longest of which is cut."""
    sizes = sorted({1, 2, 3, 5, max(1, task.longest - 1), task.longest})
    rows = [row["input_ids"].tolist() for row in base.examples(sizes)]
    ids = base.processor.ids
    return [{"items": [ids[number - 1] for number in row]} for row in [*rows, rows[-1] + rows[-2]]]
