"""Histories, rows {"items": [ids, the oldest first]}, and what comes next, best first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class Rows:
    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self.items = card["items"]
        self.numbers = {item: at for at, item in enumerate(self.items, 1)}

    def encode(self, value: Any, facts: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        items = value["items"] if isinstance(value, dict) else value
        if not isinstance(items, list) or not items:
            raise SystemExit(f"{items!r} is no history; give a list of ids, the oldest first")
        for item in items:
            if type(item) is not type(self.items[0]) or item not in self.numbers:
                raise SystemExit(f"{item!r} is none of the {len(self.items)} items that this graph knows")
        numbers = [self.numbers[item] for item in items]
        read = np.array(numbers[-facts["max_length"] :])
        return {"input_ids": read, "attention_mask": np.ones_like(read)}, (len(read), set(numbers))

    def decode(self, outputs: dict[str, Any], row: Any, facts: dict[str, Any]) -> Any:
        length, had = row
        logits = outputs["logits"][length - 1]
        shares = np.exp(logits - logits.max())
        shares = shares / shares.sum()
        seen = had if facts["exclude_seen"] else set()
        order = [at for at in np.argsort(-shares, kind="stable").tolist() if at + 1 not in seen]
        return [{"item": self.items[at], "score": float(shares[at])} for at in order[: facts["top_k"]]]
