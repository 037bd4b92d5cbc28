"""Rows {"question": ..., "context": ...} and the likeliest span of the context, as transformers' pipeline gives it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

WANTED = 12  # spans that are looked at: some come to the same words


class Rows:
    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self.tokenizer, self.card = Tokenizer.from_file(str(folder / "tokenizer.json")), card
        self.tokenizer.no_padding()

    def encode(self, value: Any, facts: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        question, context = value["question"], value["context"]
        self.tokenizer.enable_truncation(facts["max_question_len"])
        asked = self.tokenizer.encode(question, add_special_tokens=False)
        question = question[: asked.offsets[-1][1]] if asked.overflowing else question
        self.tokenizer.no_truncation()
        found = self.tokenizer.encode(question, context)
        if len(found.ids) > facts["max_length"] or 1 not in found.sequence_ids:
            raise SystemExit(f"a question and its context are empty or longer than {facts['max_length']} tokens")
        feed = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
        return {name: np.array(feed[name]) for name in self.card["inputs"]}, (context, found)

    def decode(self, outputs: dict[str, Any], row: Any, facts: dict[str, Any]) -> Any:
        context, found = row
        inside = np.array([at == 0 or of == 1 for at, of in enumerate(found.sequence_ids)])  # the first is "no answer"
        count = len(inside)
        start, end = (self.shares(outputs[name][:count], inside) for name in ("start_logits", "end_logits"))
        null = float(start[0] * end[0])
        start[0] = end[0] = 0
        scores = np.tril(np.triu(np.outer(start, end)), facts["max_answer_len"] - 1)
        order = np.argsort(-scores, axis=None)[:WANTED]
        answers: dict[str, dict[str, Any]] = {}
        for first, last in zip(*np.unravel_index(order, scores.shape), strict=True):
            if first and inside[first] and inside[last]:
                begin, stop = self.characters(context, found, int(first), int(last))
                text = context[begin:stop].strip(self.card["blanks"])
                if text:
                    start = context.index(text, begin)
                    told = {"score": 0.0, "start": start, "end": start + len(text), "answer": text}
                    answers.setdefault(text.lower(), told)["score"] += float(scores[first, last])
        if facts["handle_impossible_answer"] or not answers:
            answers["\0"] = {"score": null, "start": 0, "end": 0, "answer": ""}
        return max(answers.values(), key=lambda answer: float(answer["score"]))

    def shares(self, logits: Any, inside: Any) -> Any:
        powers = np.exp(np.where(inside, logits, -10000.0) - np.where(inside, logits, -10000.0).max())
        return powers / powers.sum()

    def characters(self, context: str, found: Any, first: int, last: int) -> tuple[int, int]:
        """From the first letter of the first piece's word to the last of the last one's; where words have no blanks
        between them, each character is one."""
        unspaced, inside = re.compile(self.card["unspaced"]), found.sequence_ids
        words = [
            -1 - begin if of == 1 and unspaced.search(context, begin, end) else word
            for word, of, (begin, end) in zip(found.word_ids, inside, found.offsets, strict=True)
        ]
        if words[first] is not None and words[last] is not None:
            while inside[first - 1] == 1 and words[first - 1] == words[first]:
                first -= 1
            while last + 1 < len(words) and inside[last + 1] == 1 and words[last + 1] == words[last]:
                last += 1
        return found.offsets[first][0], found.offsets[last][1]
