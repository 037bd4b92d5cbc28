"""What OpenAI's /v1/completions and /v1/chat/completions are asked. A field that is not named here is refused: one that
would be passed over might be what the answer hangs on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool, StrictInt, StrictStr

from ray_lora.errors import DataError
from ray_lora.inference.sampling import Sampling
from ray_lora.recipe import Json
from ray_lora.serving.http.schemas import Name, Strict
from ray_lora.serving.writing.speaker import Wanted

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]

_COMPLETION_TOKENS = 16  # OpenAI's
_CHAT_TOKENS = 512  # OpenAI has no limit but the model's


class StreamOptions(Strict):
    """`include_usage`: a last event with the counts of tokens."""

    include_usage: StrictBool = False


class _Request(Strict):
    """What both take. `top_k` and `repetition_penalty` are vLLM's."""

    model: Name | None = None
    max_tokens: StrictInt | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: StrictInt | None = None
    repetition_penalty: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    seed: StrictInt | None = None
    stop: StrictStr | list[StrictStr] | None = None
    n: StrictInt | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None

    @property
    def with_usage(self) -> bool:
        """Whether the stream ends with the counts of tokens; DataError where there is no stream."""
        if self.stream_options is not None and not self.stream:
            raise DataError("stream_options go with stream: true; leave them out")
        return self.stream_options is not None and self.stream_options.include_usage

    def _sampling(self, most: int, max_tokens: int | None, logprobs: int | None) -> Sampling:
        told: dict[str, Json] = {
            "max_tokens": most if max_tokens is None else max_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "logprobs": logprobs,
        }
        for name in ("top_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "n"):
            told[name] = getattr(self, name)
        return Sampling.of(told | {"stop": self.stop})


class CompletionRequest(_Request):
    """`logprobs`: of so many tokens beside each."""

    prompt: StrictStr | list[StrictStr]
    logprobs: StrictInt | None = None

    @property
    def wanted(self) -> Wanted:
        return Wanted(texts=(self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt))

    @property
    def sampling(self) -> Sampling:
        """RecipeError: a parameter is out of bounds."""
        return self._sampling(_COMPLETION_TOKENS, self.max_tokens, self.logprobs)


class ChatRequest(_Request):
    """A message's `content` is a text, or a list of parts `{"type": "text", "text": ...}`."""

    messages: list[dict[str, Json]]
    max_completion_tokens: StrictInt | None = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = None

    @property
    def wanted(self) -> Wanted:
        return Wanted(messages=[_flat(message) for message in self.messages])

    @property
    def sampling(self) -> Sampling:
        """RecipeError: a parameter is out of bounds. DataError: two do not go together."""
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise DataError("max_tokens and max_completion_tokens are two names of one number; give one")
        if self.top_logprobs is not None and not self.logprobs:
            raise DataError("top_logprobs goes with logprobs: true; set it, or leave top_logprobs out")
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._sampling(_CHAT_TOKENS, most, (self.top_logprobs or 0) if self.logprobs else None)


def _flat(message: dict[str, Json]) -> dict[str, Json]:
    """A message whose content is one text."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    for part in content:
        if not isinstance(part, dict) or part.keys() != {"type", "text"} or part["type"] != "text":
            raise DataError("a message's content is a text, or a list of parts {'type': 'text', 'text': ...}")
    return {**message, "content": "".join(str(part["text"]) for part in content)}
