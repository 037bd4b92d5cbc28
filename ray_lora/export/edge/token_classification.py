"""Texts, or rows {"tokens": [...]}, and a label for each piece of a word, as transformers' pipeline gives them."""

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
        words = value["tokens"] if isinstance(value, dict) else value
        text = words if isinstance(words, str) else " ".join(words)
        if not text.strip():
            raise SystemExit(f"{value!r} holds no words")
        self.tokenizer.enable_truncation(facts["max_length"], direction=self.card["truncation_side"])
        found = self.tokenizer.encode(text)
        if facts["windows"] and found.overflowing:
            raise SystemExit(f"a text is longer than {facts['max_length']} tokens and would be cut; give parts of it")
        feed = {"input_ids": found.ids, "attention_mask": found.attention_mask}
        return {name: np.array(feed[name]) for name in self.card["inputs"]}, (text, found)

    def decode(self, outputs: dict[str, Any], row: Any, facts: dict[str, Any]) -> Any:
        text, found = row
        logits = outputs["logits"][: len(found.ids), : len(facts["labels"])]
        scores = np.exp(logits - logits.max(-1, keepdims=True))
        scores = scores / scores.sum(-1, keepdims=True)
        answer = []
        for index, (begin, end) in enumerate(found.offsets):
            label = facts["labels"][int(scores[index].argmax())]
            if label == "O" or found.special_tokens_mask[index]:
                continue
            word = text[begin:end] if found.ids[index] == self.card["unknown"] else found.tokens[index]
            score = float(scores[index].max())
            answer.append({"entity": label, "score": score, "index": index, "word": word, "start": begin, "end": end})
        return answer
