"""OpenAI's route of transcriptions: a form with a sound in, words or subtitles out.

    curl -F file=@a.wav -F model=italian -F response_format=srt http://host:8000/v1/audio/transcriptions

Fields: file, model, language, temperature, response_format, timestamp_granularities[] and user; what OpenAI has beside
is refused by name. It is answered as /v1/predict answers one input. Knows nothing of Ray or tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from ray_lora.errors import DataError
from ray_lora.recipe import Json
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http import form
from ray_lora.serving.http.asking import chosen, headers_of, ref_of, user_of
from ray_lora.serving.http.captions import srt, verbose, vtt
from ray_lora.serving.http.faults import fault
from ray_lora.tasks import task_of
from ray_lora.tasks.sounds import seconds_of

TRANSCRIPTIONS = "/v1/audio/transcriptions"
Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
FORMATS: tuple[Format, ...] = get_args(Format)
_GRANULARITIES = ("timestamp_granularities", "timestamp_granularities[]")
_LANGUAGE = re.compile(r"[A-Za-z][A-Za-z -]{1,39}")  # a code or a name; which ones there are, the task knows
_REFUSED = {  # OpenAI's fields that mean nothing here, and the values that ask for nothing
    "prompt": ("",),
    "stream": ("false",),
    "chunking_strategy": ("auto",),
    "include[]": (),
    "include": (),
}
FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "a wav, flac, ogg or mp3 file"},
                        "model": {"type": "string", "description": "an adapter's name"},
                        "language": {"type": "string"},
                        "temperature": {"type": "number", "minimum": 0, "maximum": 1},
                        "response_format": {"type": "string", "enum": list(FORMATS)},
                        "timestamp_granularities[]": {"type": "array", "items": {"enum": ["segment", "word"]}},
                        "user": {"type": "string"},
                    },
                }
            }
        },
    }
}


class FieldError(DataError):
    """A field of the form is wrong."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field

    def __reduce__(self) -> tuple[type[FieldError], tuple[str, str]]:
        return type(self), (str(self), self.field)


@dataclass(frozen=True)
class Transcription:
    """What a form asks.

    Attributes:
        parameters: for the task, as of /v1/predict. words: whether words' times are asked for beside sentences'.
    """

    sound: form.Sent
    model: str | None
    format: Format
    parameters: Mapping[str, Json]
    user: str | None = None
    words: bool = False

    @property
    def language(self) -> str | None:
        """The one that is asked for."""
        return self.parameters.get("language")


def asked(parts: Sequence[tuple[str, form.Sent | str]]) -> Transcription:
    """A form's parts as a request.

    Raises:
        FieldError: one is missing, there twice, not taken, or has a value that is not allowed.
    """
    sounds = [value for name, value in parts if name == "file"]
    if not sounds:
        raise FieldError(
            "the form holds no file; add a sound as a part named file, as `curl -F file=@PATH` does", "file"
        )
    if len(sounds) > 1:
        raise FieldError(f"the form holds {len(sounds)} files; send one at a time", "file")
    [sound] = sounds
    if isinstance(sound, str):
        raise FieldError("file has no filename, so it is no file; `curl -F file=@PATH` gives one", "file")
    told: dict[str, str] = {}
    times: set[str] = set()
    for name, value in parts:
        if name == "file":
            continue
        if not isinstance(value, str):
            raise FieldError(f"{name[:80]} is a file; the sound is the part named file", name)
        if name in _GRANULARITIES:
            times.add(_granularity(value))
        elif name in _REFUSED:
            if value not in _REFUSED[name]:
                raise FieldError(f"{name} is not supported; leave it out", name)
        elif name not in ("model", "language", "temperature", "response_format", "user"):
            raise FieldError(
                f"{name[:80]!r} is not taken; a form may hold file, model, language, temperature, response_format, "
                "timestamp_granularities[] and user",
                name,
            )
        elif told.setdefault(name, value) != value:
            raise FieldError(f"{name} is said twice; say it once", name)
    kind = told.get("response_format", "json")
    if kind not in FORMATS:
        raise FieldError(f"response_format is {kind[:80]!r}; it must be one of {', '.join(FORMATS)}", "response_format")
    if kind != "verbose_json" and times:
        raise FieldError(
            "timestamp_granularities go with response_format verbose_json; leave them out", _GRANULARITIES[1]
        )
    parameters: dict[str, Json] = {}
    if told.get("language"):
        parameters["language"] = _language(told["language"])
    if (temperature := _temperature(told.get("temperature", "0"))) > 0:
        parameters["temperature"] = temperature
    if kind in ("srt", "vtt", "verbose_json"):
        parameters["return_timestamps"] = "word" if times == {"word"} else True
    return Transcription(sound, told.get("model"), kind, parameters, told.get("user"), times == {"word", "segment"})


def answered(told: Transcription, answer: Json, language: str | None, words: Json = None) -> Json | str:
    """An answer of the task's in the format that was asked for: an object of JSON, or a text.

    Args:
        words: the answer with words' times, where they are asked for beside sentences'.

    Raises:
        DataError: it holds no words, or none with times where these are asked for.
    """
    if not isinstance(answer, Mapping) or not isinstance(answer.get("text"), str):
        raise DataError("this adapter does not write what is said; ask /v1/predict")
    kind, text, chunks = told.format, answer["text"].strip(), answer.get("chunks")
    if kind == "json":
        return {"text": text}
    if kind == "text":
        return f"{text}\n"
    if chunks is None:
        raise DataError(f"this adapter gives no times, which {kind} has; ask for json or text")
    if kind == "verbose_json":
        by_word = told.parameters.get("return_timestamps") == "word"
        said = chunks if by_word else words and words.get("chunks")
        return verbose(text, None if by_word else chunks, language, seconds_of(told.sound.data), said)
    return srt(chunks) if kind == "srt" else vtt(chunks)


def add_speech(app: FastAPI, endpoint: Endpoint) -> None:
    """Add `POST /v1/audio/transcriptions`."""

    @app.post(TRANSCRIPTIONS, openapi_extra=FORM)
    async def transcriptions(request: Request) -> Response:
        endpoint.keys.of(request.headers)
        kind = request.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != form.KIND:
            return fault(415, f"send a form as {form.KIND}, with the sound as its part named file", "wrong_type")
        try:
            told = asked(await form.parts(await request.body(), kind, 1))
        except FieldError as error:
            return fault(400, str(error), "invalid_value", error.field)
        ref = ref_of(endpoint, told.model, request)
        choice = await endpoint.names.choose(ref, user_of(told.user, request), chosen(request))
        task = choice.entry.task and task_of(choice.entry.task)
        if task and "audio" not in task.columns[task.input].kinds:
            raise DataError(f"{choice.entry.ref} does {task.pipeline}, which hears no sounds; ask /v1/predict")
        sound: dict[str, Json] = form.as_input(told.sound.data)
        if told.sound.name:
            sound["path"] = told.sound.name
        answer = await endpoint.predict(choice, [sound], told.parameters, request.state.request_id)
        words = None
        if told.words:  # heard a second time: sentences end where the decoder says so, words where its heads look
            asked_of = {**told.parameters, "return_timestamps": "word"}
            (words,) = (await endpoint.predict(choice, [sound], asked_of, request.state.request_id)).predictions
        own = getattr(answer.task.spec, "language", None)
        found = answered(told, answer.predictions[0], told.language or own, words)
        headers = headers_of(answer.entry)
        if isinstance(found, str):
            return PlainTextResponse(found, headers=headers)
        return JSONResponse(found, headers=headers)


def _granularity(value: str) -> str:
    if value not in ("segment", "word"):
        raise FieldError(
            f"timestamp_granularities is {value[:80]!r}; it must be segment, which is the default, or word",
            _GRANULARITIES[1],
        )
    return value


def _language(value: str) -> str:
    if not _LANGUAGE.fullmatch(value):
        raise FieldError(f"language is {value[:80]!r}; give a code such as 'it', or leave it out", "language")
    return value


def _temperature(value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = -1
    if not 0 <= found <= 1:  # also what is no number
        raise FieldError(f"temperature is {value[:80]!r}; give a number from 0 to 1, or leave it out", "temperature")
    return found
