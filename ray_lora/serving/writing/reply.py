"""One request's answers as texts: tokens of its stream, said as far as they can be. Knows no limits and no engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from ray_lora.inference.decoder import Reason
from ray_lora.inference.prompts import Prompts
from ray_lora.inference.sampling import Choice as Token
from ray_lora.inference.spoken import Spoken
from ray_lora.serving.writing.streams import Stream
from ray_lora.store import Entry


@dataclass(frozen=True)
class Said:
    """What a token adds to an answer.

    Attributes:
        number: of the answer, in the order of prompts and their `n`.
        text: that can be said now, which may be none yet, or several tokens'.
        reason: why the answer has ended, where it has; by_text: whether one of the stop texts ended it.
    """

    number: int
    text: str
    token: Token
    reason: Reason | None
    by_text: bool = False


class Reply:
    """The answers to one request as they come.

    Attributes:
        entry: the version that answers; None for the bare base.
        prompt_tokens: read, of all prompts; tokens: written up to now, of all answers.
        counts: prompts' tokens, by prompt.
        stream: of tokens.
    """

    def __init__(self, entry: Entry | None, prompts: Prompts, counts: Sequence[int], stream: Stream) -> None:
        self.entry, self.prompts, self.counts, self.tokens = entry, prompts, counts, 0
        self.stream = stream
        stops = [part.ask.sampling.stop for part in stream.parts for _ in part.numbers]
        self._spoken = [prompts.spoken(stop) for stop in stops]

    @property
    def texts(self) -> list[str]:
        """What was said up to now, of each answer."""
        return [spoken.text for spoken in self._spoken]

    @property
    def prompt_tokens(self) -> int:
        return sum(self.counts)

    def __aiter__(self) -> AsyncIterator[Said]:
        return self

    async def __anext__(self) -> Said:
        number, written = await self.stream.__anext__()
        self.tokens += 1
        spoken: Spoken = self._spoken[number]
        text = "" if written.reason == "stop" else spoken.add(written.token)
        if written.reason is not None:
            text += spoken.rest()
        if spoken.stopped and number in self.stream.open:
            self.stream.stop(number)
        reason: Reason | None = "stop" if spoken.stopped else written.reason
        return Said(number, text, written.choice, reason, spoken.stopped)
