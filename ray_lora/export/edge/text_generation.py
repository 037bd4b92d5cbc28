"""Prompts, or rows {"prompt": ..., "max_new_tokens": ...}, or {"messages": [...]}, and what follows them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

MOST = 4096  # tokens of an answer
ROLES = ("system", "user", "assistant")


class Rows:
    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self.tokenizer, self.card, self.folder = Tokenizer.from_file(str(folder / "tokenizer.json")), card, folder
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def encode(self, value: Any, facts: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        asked = value if isinstance(value, dict) else {facts["column"]: value}
        text, most = asked.get(facts["column"]), asked.get("max_new_tokens", facts["most"])
        text = self.written(text) if facts["column"] == "messages" else text
        if not isinstance(text, str) or not text.strip():
            raise SystemExit(f"{value!r} is no prompt; give a text, or a row with {facts['column']!r}")
        if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MOST:
            raise SystemExit(f"max_new_tokens is {most!r}; it must be a whole number from 1 to {MOST}")
        tokens = [*facts["lead"], *self.tokenizer.encode(text, add_special_tokens=False).ids]
        room = most if self.card["positions"] is None else min(most, self.card["positions"] - len(tokens))
        if not tokens or room < 1:
            raise SystemExit(f"a prompt has {len(tokens)} tokens, of {self.card['positions']} with its answer")
        return {}, {"tokens": tokens, "most": room}

    def written(self, given: Any) -> str:
        """Messages, or a user's only one, as the base's chat template writes them."""
        told = [{"role": "user", "content": given}] if isinstance(given, str) else given
        for one in told if isinstance(told, list) and told else [None]:
            if not isinstance(one, dict) or one.get("role") not in ROLES or not isinstance(one.get("content"), str):
                raise SystemExit(f"{one!r} is no message; give a list of {{'role': ..., 'content': ...}}")
        if told[-1]["role"] == "assistant":
            raise SystemExit("the last message is the assistant's; end with the one that is to be answered")
        messages = [{"role": one["role"], "content": one["content"]} for one in told]
        asked = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        text: str = self.template.render(asked | self.card["special"])
        return text

    @functools.cached_property
    def template(self) -> Any:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(why: str) -> None:
            raise SystemExit(f"the base's chat template refuses these messages: {why}")

        made = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        made.globals["raise_exception"] = refuse
        made.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
        return made.from_string((self.folder / "chat_template.jinja").read_text("utf-8"))

    def decode(self, tokens: list[int], row: Any, facts: dict[str, Any]) -> Any:
        return {"generated_text": self.tokenizer.decode(tokens, skip_special_tokens=True)}
