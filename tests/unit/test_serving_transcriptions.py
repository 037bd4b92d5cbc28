"""Clients as people have them, OpenAI's and Hugging Face's, hear of a served Whisper what it writes itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from huggingface_hub import InferenceClient, constants

from ray_lora import Card
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import LoraSpec
from ray_lora.store import open_store
from ray_lora.tasks import build_task
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from tests.unit.bases import open_base
from tests.unit.http_server import serving
from tests.unit.speech import save_whisper
from tests.unit.test_sounds import tone, written

NAMES = ("one", "two")
SOUND = written(tone(8_000, 2.4), "FLAC", rate=8_000)  # longer than the base's window
TIMES = {"return_timestamps": True}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("transcriptions")
    save_whisper(root / "base")
    return root


@pytest.fixture(scope="module")
def due(world: Path) -> dict[str, tuple[Any, Any]]:
    """What each adapter of the store writes of the sound, without and with times, by itself."""
    spec, store = SpeechRecognitionSpec(), open_store(str(world / "store"))
    base = open_base(world / "base")
    engine, task, found = AdapterEngine(base, slots=2, max_rank=4), build_task(spec, base.processor), {}
    for seed, name in enumerate(NAMES):
        slot = engine.init(LoraSpec(r=2, target_modules=("q_proj", "fc1")), task.head, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        engine.write(
            slot, {key: torch.randn(value.shape, generator=draw) * 0.2 for key, value in engine.read(slot).items()}
        )
        engine.refresh([slot])
        store.put(engine.export(slot, Card(task=spec)), name)
        features = task.encode([{"audio": SOUND}])
        found[name] = tuple(predict(engine, {slot: task}, features, [slot], [asked])[0] for asked in ({}, TIMES))
    engine.close()
    return found


@pytest.fixture(scope="module")
def address(world: Path, due: Any) -> Iterator[str]:
    with serving(world) as address:
        yield address


def test_openais_client(address: str, due: dict[str, tuple[Any, Any]]) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    ask = client.audio.transcriptions.create
    assert due["one"][0] != due["two"][0]
    for name, (plain, timed) in due.items():
        assert ask(model=name, file=("a.flac", SOUND)).text == plain["text"].strip()
        assert ask(model=name, file=("a.flac", SOUND), response_format="text") == plain["text"].strip() + "\n"
        told = ask(
            model=name, file=("a.flac", SOUND), response_format="verbose_json", timestamp_granularities=["segment"]
        )
        assert (told.text, told.duration) == (timed["text"].strip(), 2.4)
        assert [([one.start, one.end], one.text) for one in told.segments or ()] == [
            (chunk["timestamp"], chunk["text"]) for chunk in timed["chunks"]
        ]
        srt = ask(model=name, file=("a.flac", SOUND), response_format="srt", temperature=0)
        assert str(srt).count(" --> ") == len(timed["chunks"])
    with pytest.raises(openai.BadRequestError, match="it must be segment, which is the default, or word") as error:
        ask(model="one", file=SOUND, response_format="verbose_json", timestamp_granularities=["letter"])  # type: ignore[list-item]
    assert error.value.param == "timestamp_granularities[]"
    with pytest.raises(openai.BadRequestError, match=r"temperature is 0\.5"):
        ask(model="one", file=SOUND, temperature=0.5)
    with pytest.raises(openai.NotFoundError):
        ask(model="nobody", file=SOUND)


def test_hugging_faces_client(
    address: str, due: dict[str, tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the client asks this machine, and nothing else
    client = InferenceClient(model=f"{address}/models/one")
    assert client.automatic_speech_recognition(SOUND).text == due["one"][0]["text"]
    (tmp_path / "a.flac").write_bytes(SOUND)
    assert client.automatic_speech_recognition(str(tmp_path / "a.flac")).text == due["one"][0]["text"]
    timed = client.automatic_speech_recognition(SOUND, extra_body=TIMES)
    assert [list(chunk.timestamp) for chunk in timed.chunks or ()] == [
        chunk["timestamp"] for chunk in due["one"][1]["chunks"]
    ]


def test_two_adapters_hear_one_sound(address: str, due: dict[str, tuple[Any, Any]]) -> None:
    form: dict[str, Any] = {"files": {"file": ("a.flac", SOUND)}, "data": {"model": list(NAMES)}}
    answers = httpx.post(f"{address}/v1/predict", **form, timeout=None).json()["answers"]
    assert {name: answers[name]["predictions"][0] for name in NAMES} == {name: due[name][0] for name in NAMES}
