"""Texts, or rows {"text": ..., "text_pair": ...}, and their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer


class Rows:
    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self.tokenizer, self.card = Tokenizer.from_file(str(folder / "tokenizer.json")), card
        self.tokenizer.no_padding()

    def encode(self, value: Any, facts: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        row = value if isinstance(value, dict) else {"text": value}
        texts = [row[name] for name in ("text", "text_pair") if name in row]
        if not all(isinstance(text, str) and text.strip() for text in texts) or len(texts) > self.card["texts"]:
            raise SystemExit(f"{value!r} is no text, or has more texts than this base reads")
        self.tokenizer.enable_truncation(facts["max_length"], direction=self.card["truncation_side"])
        found = self.tokenizer.encode(*texts)
        feed = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
        return {name: np.array(feed[name]) for name in self.card["inputs"]}, None

    def decode(self, outputs: dict[str, Any], row: Any, facts: dict[str, Any]) -> Any:
        labels, function = facts["labels"], facts["function"]
        scores = outputs["logits"][: len(labels)]
        if function != "none":
            scores = np.exp(scores - scores.max()) if function == "softmax" else 1 / (1 + np.exp(-scores))
        if function == "softmax":
            scores = scores / scores.sum()
        best = int(scores.argmax())
        return {"label": labels[best], "score": float(scores[best])}
