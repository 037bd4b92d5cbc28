"""Speech by words and by letters, a recommender and 1,024 people's adapters, together behind one address of Serve."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from ray_lora import BaseSpec, Card, load_base
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import Json, LoraSpec, TaskSpec
from ray_lora.serving import AppArgs, run
from ray_lora.store import open_store
from ray_lora.store.people import group_name, person_name
from ray_lora.tasks import Row, build_task
from ray_lora.tasks.sequential_recommendation import SequentialRecommendationSpec
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.conformance.rules import near
from tests.unit import histories
from tests.unit.serving_world import WORDS, make_base, peft_probabilities
from tests.unit.speech import rows, save_wav2vec2, save_whisper, tone, wav

PEOPLE = 1024
SLOTS = 16  # of each base, so that people's adapters come and go all the time
AT_ONCE = 48  # requests in flight
LABELS = ("bad", "fair", "good", "great")
CITIES = ("north", "south")
TEXTS = tuple(" ".join(random.Random(row).sample(WORDS, 2 + row % 5)) for row in range(16))
SOUNDS = (*(row["audio"] for row in rows(3)), wav(tone(2.3, 9)))  # the last is longer than Whisper's window
ITEMS = ([900, 905, 911], [922], list(histories.NUMBERS[:15]))


@dataclass(frozen=True)
class Kind:
    """A base and its adapters: the name of each, and what each is asked."""

    spec: TaskSpec
    targets: tuple[str, ...]
    names: tuple[str, ...]
    given: tuple[Row, ...]
    parameters: dict[str, Json]


SHOPS = ("shops", *(group_name("shops", city) for city in CITIES))
SHOPS += tuple(person_name("shops", f"Shop {number}") for number in range(PEOPLE))
KINDS = {
    "shops": Kind(
        TextClassificationSpec(labels=LABELS, max_length=16),
        ("query", "value"),
        SHOPS,
        tuple({"text": text} for text in TEXTS),
        {"top_k": len(LABELS)},
    ),
    "words": Kind(
        SpeechRecognitionSpec(),
        ("q_proj", "v_proj", "fc1"),
        ("words-it", "words-es"),
        tuple({"audio": sound} for sound in SOUNDS),
        {},
    ),
    "letters": Kind(
        SpeechRecognitionSpec(), ("q_proj", "v_proj"), ("letters-it",), tuple({"audio": sound} for sound in SOUNDS), {}
    ),
    "items": Kind(
        SequentialRecommendationSpec(),
        ("query", "value"),
        ("group-a", "group-b"),
        tuple({"items": items} for items in ITEMS),
        {"top_k": 5},
    ),
}


@dataclass(frozen=True)
class World:
    """The folder with a base of each kind and the store, and what each adapter answers by itself."""

    root: Path
    alone: dict[str, list[Json]]
    sha256: dict[str, str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("everyone")
    make_base(root / "shops")
    save_whisper(root / "words")
    save_wav2vec2(root / "letters")
    histories.tiny(root / "items")
    alone: dict[str, list[Json]] = {}
    sha256: dict[str, str] = {}
    for name, kind in KINDS.items():
        _store(root, name, kind, alone, sha256)
    return World(root, alone, sha256)


def _store(root: Path, base: str, kind: Kind, alone: dict[str, list[Json]], sha256: dict[str, str]) -> None:
    """Each of a kind's adapters, drawn at random, in the store, and its answers from an engine that holds no other."""
    engine = AdapterEngine(load_base(BaseSpec(model=str(root / base), dtype="float32")), slots=1, max_rank=2)
    task = build_task(kind.spec, engine.base.processor)
    features = task.encode(list(kind.given))
    slot = engine.init(LoraSpec(r=2, target_modules=kind.targets), task.head, seed=0)
    shapes = {key: value.shape for key, value in engine.read(slot).items()}
    for number, name in enumerate(kind.names):
        draw = torch.Generator().manual_seed(number)
        engine.write(slot, {key: torch.randn(shape, generator=draw) * 0.3 for key, shape in shapes.items()})
        engine.refresh([slot])
        card = Card(task=kind.spec, base=str(root / base))
        sha256[name] = engine.export(slot, card).save(root / "store" / name)  # a plain PEFT folder is version 1
        mine = _asked_of(kind, number)
        given = [features[row] for row in mine]
        alone[name] = predict(engine, {slot: task}, given, [slot] * len(given), [kind.parameters] * len(given))
    engine.close()


def _asked_of(kind: Kind, number: int) -> Sequence[int]:
    """The inputs that an adapter is asked: a person one, others all."""
    few = len(kind.names) > PEOPLE and number >= len(CITIES) + 1
    return [number % len(kind.given)] if few else range(len(kind.given))


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    from ray import serve

    tree: dict[str, Any] = {
        "store": str(world.root / "store"),
        "results": str(world.root / "results"),
        "dtype": "float32",
        "max_rank": 2,
        "slots": SLOTS,
        "port": 0,
        "num_cpus": 0.5,
        "deadline_s": 600,  # of a machine that others use
        "bases": [{"model": str(world.root / name)} for name in KINDS],
    }
    yield run(AppArgs.model_validate(tree), block=False)
    serve.shutdown()


def _body(kind: Kind, row: int) -> dict[str, Any]:
    (given,) = kind.given[row].values()
    sent = base64.b64encode(given).decode() if isinstance(given, bytes) else given
    return {"inputs": [sent], "parameters": kind.parameters}


def test_everyone_is_answered_as_alone(world: World, address: str) -> None:
    """In one crowd: all people, both ways to hear and to be recommended, each by the right version's numbers."""
    asked: list[tuple[str, Json, dict[str, Any]]] = []
    for kind in KINDS.values():
        for number, name in enumerate(kind.names):
            for at, row in enumerate(_asked_of(kind, number)):
                body = _body(kind, row) | {"model": name}
                if number > len(CITIES):
                    body |= {"model": "shops", "person": f"Shop {number - 3}", "group": CITIES[number % 2]}
                asked += [(name, world.alone[name][at], body)] * (1 if number > len(CITIES) else 4)
    random.Random(0).shuffle(asked)
    assert sum(name.startswith("shops.person.") for name, _, _ in asked) == PEOPLE

    async def main() -> None:
        free = asyncio.Semaphore(AT_ONCE)
        async with httpx.AsyncClient(base_url=address, timeout=None) as client:

            async def ask(name: str, due: Json, body: dict[str, Any]) -> None:
                async with free:
                    said = await client.post("/v1/predict", json=body)
                assert said.status_code == 200, said.text
                assert (said.headers["x-adapter"], said.headers["x-adapter-sha256"]) == (
                    f"{name}@1",
                    world.sha256[name],
                )
                assert near(said.json()["predictions"], [due]), name
                assert said.json().get("served_by") == ("person" if "person" in body else None)

            await asyncio.gather(*(ask(*one) for one in asked))
            status = (await client.get("/v1/status")).json()
            assert len(status["residents"]) <= SLOTS
            listed = {model["id"]: model["task"] for model in (await client.get("/v1/models")).json()["data"]}
            assert {name for name in listed if name.startswith("shops")} == {"shops", *SHOPS[1:3]}
            assert listed["group-a"] == "sequential-recommendation"
            assert listed["letters-it"] == listed["words-it"] == "automatic-speech-recognition"

    asyncio.run(main())
    answers = [str(world.alone[name]) for name in SHOPS[3:]]
    assert len(set(answers)) == PEOPLE


def test_people_s_answers_are_peft_s(world: World) -> None:
    """What was compared above is what plain PEFT computes of a person's folder."""
    store = open_store(str(world.root / "store"))
    for number in (0, 511, PEOPLE - 1):
        name = person_name("shops", f"Shop {number}")
        text = TEXTS[_asked_of(KINDS["shops"], number + 3)[0]]
        (expected,) = peft_probabilities(world.root / "shops", store.get(name)[1], [text])
        (answer,) = world.alone[name]
        scores = {one["label"]: one["score"] for one in answer}
        assert [scores[label] for label in LABELS] == pytest.approx(list(expected), abs=1e-5)


def test_person_then_group_then_parent(world: World, address: str) -> None:
    """Said in the answer, and the group's and the parent's own answers."""
    kind = KINDS["shops"]
    with httpx.Client(base_url=address, timeout=None) as client:
        for told, name, served in (
            ({"person": "Shop 7", "group": "south"}, person_name("shops", "Shop 7"), "person"),
            ({"person": f"Shop {PEOPLE}", "group": "south"}, group_name("shops", "south"), "group"),
            ({"person": "shop 7", "group": "north"}, group_name("shops", "north"), "group"),
            ({"person": "Shop 7/../Shop 8", "group": "west"}, "shops", "parent"),
            ({"person": f"Shop {PEOPLE}"}, "shops", "parent"),
        ):
            row = (7 + 3) % len(TEXTS)
            said = client.post("/v1/predict", json=_body(kind, row) | {"model": "shops"} | told)
            assert said.status_code == 200, said.text
            assert (said.json()["model"], said.json()["served_by"]) == (name, served)
            assert said.headers["x-adapter"] == f"{name}@1"
            due = world.alone[name][0] if served == "person" else world.alone[name][row]
            assert near(said.json()["predictions"], [due])
        assert not near(world.alone["shops"], world.alone[SHOPS[1]])
        on_base = client.post("/v1/predict", json=_body(kind, 0) | {"model": "base", "person": "Shop 7"})
        assert (on_base.status_code, "name the adapter" in on_base.text) == (400, True)


def test_speech_is_transcribed_as_openai_has_it_beside_all_others(world: World, address: str) -> None:
    with httpx.Client(base_url=address, timeout=None) as client:
        for name in ("words-it", "words-es", "letters-it"):
            for sound, due in zip(SOUNDS, world.alone[name], strict=True):
                form: dict[str, Any] = {"files": {"file": ("a.wav", sound)}, "data": {"model": name}}
                said = client.post("/v1/audio/transcriptions", **form)
                assert said.status_code == 200, said.text
                assert said.headers["x-adapter"] == f"{name}@1"
                assert said.json() == {"text": due["text"].strip()}
        wrong = client.post("/v1/audio/transcriptions", files={"file": ("a.wav", SOUNDS[0])}, data={"model": "group-a"})
        assert (wrong.status_code, "hears no sounds" in wrong.text) == (400, True)
        unknown = client.post("/v1/predict", json={"model": "group-b", "inputs": [[900, 7]]})
        assert (unknown.status_code, "item 7 is not among" in unknown.text) == (400, True)
