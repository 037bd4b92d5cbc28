"""Prompts, or rows {"prompt": ..., "max_new_tokens": ...}, and what follows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

MOST = 4096  # tokens of an answer


class Rows:
    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self.tokenizer, self.card = Tokenizer.from_file(str(folder / "tokenizer.json")), card
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def encode(self, value: Any, facts: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        asked = value if isinstance(value, dict) else {facts["column"]: value}
        text, most = asked.get(facts["column"]), asked.get("max_new_tokens", facts["most"])
        if not isinstance(text, str) or not text.strip():
            raise SystemExit(f"{value!r} is no prompt; give a text, or a row with {facts['column']!r}")
        if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MOST:
            raise SystemExit(f"max_new_tokens is {most!r}; it must be a whole number from 1 to {MOST}")
        tokens = [*facts["lead"], *self.tokenizer.encode(text, add_special_tokens=False).ids]
        room = most if self.card["positions"] is None else min(most, self.card["positions"] - len(tokens))
        if not tokens or room < 1:
            raise SystemExit(f"a prompt has {len(tokens)} tokens, of {self.card['positions']} with its answer")
        return {}, {"tokens": tokens, "most": room}

    def decode(self, tokens: list[int], row: Any, facts: dict[str, Any]) -> Any:
        return {"generated_text": self.tokenizer.decode(tokens, skip_special_tokens=True)}
