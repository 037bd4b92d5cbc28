"""How OpenAI's two interfaces write an answer, whole and in parts: `choices` and their log probabilities. Knows no
routes and no endpoint.

https://platform.openai.com/docs/api-reference/completions and .../chat
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from ray_lora.inference.prompts import Prompts
from ray_lora.inference.sampling import Choice as Token
from ray_lora.recipe import Json
from ray_lora.serving.writing.reply import Said


@dataclass
class Answer:
    """One answer as it grows; `told` are the tokens whose log probabilities were sent."""

    number: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    reason: str | None = None
    sent: int = 0  # characters of its tokens that earlier events had

    def add(self, said: Said) -> None:
        self.text += said.text
        self.tokens.append(said.token)
        self.reason = said.reason


class Shape(Protocol):
    """One interface's answers."""

    prefix: str  # of an answer's id
    whole: str  # what an answer calls itself
    part: str

    def choice(self, answer: Answer, prompts: Prompts, logprobs: bool) -> dict[str, Json]:
        """A whole answer."""
        ...

    def begin(self, number: int) -> dict[str, Json] | None:
        """What comes before an answer's first token."""
        ...

    def delta(self, said: Said, answer: Answer, prompts: Prompts, logprobs: bool) -> dict[str, Json]:
        """What a token adds to an answer, which has it already."""
        ...


class Completions:
    """Texts that go on."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def choice(self, answer: Answer, prompts: Prompts, logprobs: bool) -> dict[str, Json]:
        told = _text_logprobs(answer.tokens, prompts, 0) if logprobs else None
        return {"index": answer.number, "text": answer.text, "logprobs": told, "finish_reason": answer.reason}

    def begin(self, number: int) -> None:
        return None

    def delta(self, said: Said, answer: Answer, prompts: Prompts, logprobs: bool) -> dict[str, Json]:
        told = _text_logprobs([said.token], prompts, answer.sent) if logprobs else None
        answer.sent += len(prompts.piece(said.token.token)) if logprobs else 0
        return {"index": said.number, "text": said.text, "logprobs": told, "finish_reason": said.reason}


class Chat:
    """Messages of an assistant."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, answer: Answer, prompts: Prompts, logprobs: bool) -> dict[str, Json]:
        told = _chat_logprobs(answer.tokens, prompts) if logprobs else None
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {"index": answer.number, "message": message, "logprobs": told, "finish_reason": answer.reason}

    def begin(self, number: int) -> dict[str, Json]:
        delta = {"role": "assistant", "content": ""}
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, said: Said, answer: Answer, prompts: Prompts, logprobs: bool) -> dict[str, Json]:
        told = _chat_logprobs([said.token], prompts) if logprobs else None
        delta = {"content": said.text} if said.text else {}
        return {"index": said.number, "delta": delta, "logprobs": told, "finish_reason": said.reason}


def _text_logprobs(tokens: Sequence[Token], prompts: Prompts, sent: int) -> dict[str, Json]:
    """Of /v1/completions; `sent` characters of tokens came before."""
    pieces = [prompts.piece(token.token) for token in tokens]
    starts = list(accumulate(map(len, pieces[:-1]), initial=sent))
    return {
        "tokens": pieces,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{prompts.piece(one): told for one, told in token.best} for token in tokens],
        "text_offset": starts,
    }


def _chat_logprobs(tokens: Sequence[Token], prompts: Prompts) -> dict[str, Json]:
    """Of /v1/chat/completions."""

    def one(token: int, logprob: float | None) -> dict[str, Json]:
        piece = prompts.piece(token)
        return {"token": piece, "logprob": logprob, "bytes": None if "\ufffd" in piece else list(piece.encode())}

    content = [
        {**one(token.token, token.logprob), "top_logprobs": [one(*best) for best in token.best]} for token in tokens
    ]
    return {"content": content, "refusal": None}
