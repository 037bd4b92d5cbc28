"""Transcriptions as OpenAI has them: the form, the formats, the errors. What is heard is a tiny task's of the test."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.recipe import Json
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http.captions import srt, verbose, vtt
from ray_lora.serving.http.form import Sent
from ray_lora.serving.http.routes import create_app
from ray_lora.serving.http.speech import FORMATS, FieldError, Transcription, answered, asked
from tests.boxes.rows import BASE
from tests.unit.speech_world import make_world
from tests.unit.test_sounds import tone, written

CHUNKS: list[dict[str, Json]] = [
    {"timestamp": [0.0, 2.5], "text": " Good\n\nmorning."},
    {"timestamp": [3725.0006, 3726.9999], "text": " a < b & c --> d"},
]


def test_srt() -> None:
    assert srt(CHUNKS) == (
        "1\n00:00:00,000 --> 00:00:02,500\nGood morning.\n\n2\n01:02:05,001 --> 01:02:07,000\na < b & c -> d\n"
    )
    assert srt([]) == ""


def test_vtt() -> None:
    assert vtt(CHUNKS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nGood morning.\n\n"
        "01:02:05.001 --> 01:02:07.000\na &lt; b &amp; c -&gt; d\n"
    )
    assert vtt([]) == "WEBVTT\n"


def test_verbose() -> None:
    found = verbose("Good morning.", CHUNKS[:1], "en", 2.50004)
    assert found == {
        "task": "transcribe",
        "language": "en",
        "duration": 2.5,
        "text": "Good morning.",
        "segments": [{"id": 0, "start": 0.0, "end": 2.5, "text": " Good\n\nmorning."}],
    }
    words = verbose("Good.", None, None, 1.0, [{"timestamp": [0.0, 0.5], "text": " Good."}])
    assert words["words"] == [{"word": "Good.", "start": 0.0, "end": 0.5}]
    assert "segments" not in words


GRANULARITY = "timestamp_granularities[]"
SOUND = Sent("a.wav", written(tone()))


def test_a_form_is_a_request() -> None:
    found = asked([("file", SOUND), ("model", "m"), ("language", "it"), ("temperature", "0.2"), ("prompt", "")])
    assert found == Transcription(SOUND, "m", "json", {"language": "it", "temperature": 0.2})
    found = asked([("timestamp_granularities[]", "segment"), ("response_format", "verbose_json"), ("file", SOUND)])
    assert found == Transcription(SOUND, None, "verbose_json", {"return_timestamps": True})
    for kinds, due, both in ((["word"], "word", False), (["word", "segment"], True, True)):
        found = asked([("file", SOUND), ("response_format", "verbose_json"), *((GRANULARITY, one) for one in kinds)])
        assert found == Transcription(SOUND, None, "verbose_json", {"return_timestamps": due}, words=both)
    timed = {kind: asked([("file", SOUND), ("response_format", kind)]).parameters for kind in FORMATS}
    assert [kind for kind in FORMATS if timed[kind]] == ["srt", "verbose_json", "vtt"]


@pytest.mark.parametrize(
    ("parts", "field", "said"),
    [
        ([("model", "m")], "file", "holds no file"),
        ([("file", SOUND), ("file", SOUND)], "file", "holds 2 files"),
        ([("file", "text")], "file", "has no filename"),
        ([("file", SOUND), ("model", SOUND)], "model", "is a file"),
        ([("file", SOUND), ("model", "a"), ("model", "b")], "model", "is said twice"),
        ([("file", SOUND), ("response_format", "xml")], "response_format", "one of json, text, srt, verbose_json, vtt"),
        ([("file", SOUND), ("temperature", "2")], "temperature", "from 0 to 1"),
        ([("file", SOUND), ("temperature", "nan")], "temperature", "from 0 to 1"),
        ([("file", SOUND), ("temperature", "warm")], "temperature", "from 0 to 1"),
        ([("file", SOUND), ("language", "it; drop")], "language", "give a code such as 'it'"),
        ([("file", SOUND), ("prompt", "names")], "prompt", "is not supported"),
        ([("file", SOUND), ("stream", "true")], "stream", "is not supported"),
        ([("file", SOUND), ("include[]", "logprobs")], "include[]", "is not supported"),
        (
            [("file", SOUND), ("timestamp_granularities[]", "char")],
            "timestamp_granularities[]",
            "segment, which is the",
        ),
        ([("file", SOUND), ("timestamp_granularities[]", "segment")], "timestamp_granularities[]", "verbose_json"),
        ([("file", SOUND), ("beams", "2")], "beams", "is not taken"),
    ],
)
def test_wrong_fields_are_named(parts: list[tuple[str, Sent | str]], field: str, said: str) -> None:
    with pytest.raises(FieldError, match=said) as error:
        asked(parts)
    assert error.value.field == field
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.field) == (str(error.value), field)


def test_answers_without_what_a_format_has_are_refused() -> None:
    with pytest.raises(ValueError, match="does not write what is said"):
        answered(Transcription(SOUND, None, "json", {}), [{"label": "a"}], None)
    with pytest.raises(ValueError, match="gives no times, which srt has"):
        answered(Transcription(SOUND, None, "srt", {}), {"text": "a"}, None)


# ------------------------------------------------------------------ over HTTP


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("speech")
    with make_world(root):
        yield root


@pytest.fixture(scope="module")
def ask(world: Path) -> Iterator[Callable[..., httpx.Response]]:
    """Sends one request to an endpoint that lives as long as the module."""
    (world / "keys.yaml").write_text("[{key: k, adapters: ['*']}, {key: other, adapters: [boxes]}]")
    loop = asyncio.new_event_loop()
    args = AppArgs(
        store=str(world / "store"),
        base=BASE,
        results=str(world / "results"),
        dtype="float32",
        keys=str(world / "keys.yaml"),
    )

    async def start() -> Any:
        return start_endpoint(args)

    endpoint = loop.run_until_complete(start())
    app = create_app(endpoint)

    def send(path: str = "/v1/audio/transcriptions", key: str = "k", **options: Any) -> httpx.Response:
        async def main() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
                return await client.post(path, headers={"authorization": f"Bearer {key}"}, **options)

        return loop.run_until_complete(main())

    yield send
    loop.run_until_complete(endpoint.close())
    loop.close()


def test_every_format_over_http(ask: Callable[..., httpx.Response]) -> None:
    files = {"file": ("a.flac", written(tone(8_000, 1.1), "FLAC", rate=8_000))}
    found = {}
    for kind in FORMATS:
        response = ask(files=files, data={"model": "heard", "response_format": kind})
        assert response.status_code == 200, response.text
        assert response.headers["x-adapter"] == "heard@1"
        found[kind] = response.text
    assert json.loads(found["json"]) == {"text": "word word"}
    assert found["text"] == "word word\n"
    assert found["srt"].startswith("1\n00:00:00,000 --> 00:00:00,500\nword\n\n2\n00:00:00,500")
    assert found["vtt"].startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.500\nword\n")
    told = json.loads(found["verbose_json"])
    assert (told["language"], told["duration"], len(told["segments"])) == ("it", 1.1, 2)


@pytest.mark.parametrize(
    ("data", "content", "status", "param", "said"),
    [
        ({"model": "heard", "response_format": "xml"}, None, 400, "response_format", "one of json"),
        ({"model": "nobody"}, None, 404, "model", "nobody"),
        ({}, None, 400, None, "no adapter is named"),
        ({"model": "boxes"}, None, 400, None, "does object-detection, which hears no sounds"),
        ({"model": "heard"}, b"no sound", 400, None, r"a sound \('a.wav'\) cannot be read \(it is no sound"),
        ({"model": "heard"}, written(tone())[:-50], 400, None, r"a sound \('a.wav'\) .*it is cut short"),
        ({"model": "base"}, None, 400, None, "is a bare base"),
    ],
)
def test_errors_have_openais_shape(
    ask: Callable[..., httpx.Response], data: Any, content: bytes | None, status: int, param: str | None, said: str
) -> None:
    response = ask(files={"file": ("a.wav", content or written(tone()))}, data=data)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert re.search(said, error["message"]), error["message"]


def test_what_is_no_form_and_translations_are_refused(ask: Callable[..., httpx.Response]) -> None:
    assert ask(json={"model": "heard"}).status_code == 415
    assert ask(content=b"--x\r\n", key="wrong").status_code == 401
    assert ask(files={"file": ("a.wav", written(tone()))}, data={"model": "heard"}, key="other").status_code == 403
    response = ask("/v1/audio/translations", files={"file": ("a.wav", b"x")})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "route_not_found")


def test_hugging_faces_route_takes_the_sound_as_it_is(ask: Callable[..., httpx.Response]) -> None:
    sound = written(tone(seconds=1.1))
    assert ask("/models/heard", content=sound).json() == {"text": " word word"}
    form = {"files": {"file": ("a.wav", sound)}, "data": {"model": "heard"}}
    assert ask("/v1/predict", **form).json()["predictions"] == [{"text": " word word"}]
