"""Detectors behind the endpoint: rows of several adapters and sizes in one pass, and Hugging Face's client as it is."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import InferenceClient, constants

from ray_lora import BaseSpec, Card, load_base
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import LoraSpec
from ray_lora.store import open_store
from ray_lora.tasks.object_detection import ObjectDetection, ObjectDetectionSpec
from tests.conformance.rules import near
from tests.unit.detection import COLOURS, rows, tiny
from tests.unit.http_server import serving

LABELS = tuple(sorted(COLOURS))
NAMES = ("one", "two")
ASK = {"threshold": 0.2, "top_k": 5}
PICTURES = [row["image"] for row in rows(6)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, a tiny YOLOX, and store/ with two adapters of random numbers that are sure of something."""
    root = tmp_path_factory.mktemp("detectors")
    base = load_base(BaseSpec(model=str(tiny(root / "base")), dtype="float32"))
    task = ObjectDetection(ObjectDetectionSpec(labels=LABELS), base.processor)
    engine = AdapterEngine(base, slots=2, max_rank=4)
    for seed, name in enumerate(NAMES):
        lora = LoraSpec(r=2 + 2 * seed, target_modules="all-convolutions")
        slot = engine.init(lora, task.head, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        spread = {key: 0.03 if "lora" in key else 0.3 for key in engine.read(slot)}
        fresh = {
            key: torch.randn(value.shape, generator=draw) * spread[key] for key, value in engine.read(slot).items()
        }
        sure = {key: value + 2 for key, value in fresh.items() if "obj_preds" in key and key.endswith("bias")}
        engine.write(slot, fresh | sure)
        engine.refresh([slot])
        open_store(str(root / "store")).put(engine.export(slot, Card(task=task.spec, base=str(root / "base"))), name)
    engine.close()
    return root


@pytest.fixture(scope="module")
def alone(world: Path) -> dict[str, list[Any]]:
    """What each adapter answers by itself, to each picture."""
    found = {}
    for name in NAMES:
        base = load_base(BaseSpec(model=str(world / "base"), dtype="float32"))
        task = ObjectDetection(ObjectDetectionSpec(labels=LABELS), base.processor)
        engine = AdapterEngine(base, slots=1, max_rank=4)
        slot = engine.load(open_store(str(world / "store")).load(name)[1])
        features = task.encode([{"image": picture} for picture in PICTURES])
        found[name] = [predict(engine, {slot: task}, features, [slot] * 6, [options] * 6) for options in (ASK, {})]
        engine.close()
    return found


@pytest.fixture(scope="module")
def address(world: Path) -> Iterator[str]:
    with serving(world) as address:
        yield address


def boxes(found: Iterable[Mapping[str, int]]) -> list[tuple[int, ...]]:
    """In an order that does not hang on scores that are all but equal."""
    return sorted((box["xmin"], box["ymin"], box["xmax"], box["ymax"]) for box in found)


def test_every_picture_is_answered_in_its_own_pixels(address: str, alone: dict[str, list[Any]]) -> None:
    inputs = [base64.b64encode(picture).decode() for picture in PICTURES]

    def ask(name: str) -> Any:
        body = {"model": name, "inputs": inputs, "parameters": ASK}
        reply = httpx.post(f"{address}/v1/predict", json=body, timeout=None)
        assert reply.status_code == 200, reply.text
        return reply.json()

    with ThreadPoolExecutor(2) as pool:
        for name, told in zip(NAMES, pool.map(ask, NAMES), strict=True):
            assert told["task"] == "object-detection"
            assert near(told["predictions"], alone[name][0])
    assert alone["one"][0] != alone["two"][0]
    assert any(alone["one"][0])
    assert all(len(answer) <= 5 for answer in alone["one"][0])


def test_wrong_requests_say_why(address: str) -> None:
    picture = base64.b64encode(PICTURES[0]).decode()
    for inputs, parameters, why in (
        (picture, {"iou": 2}, "iou 2 must be a number from 0 to 1"),
        (picture, {"nms": 0.5}, "it takes threshold, iou, top_k, rounded"),
        ("no picture", {}, "an image cannot be read"),
        (7, {}, "an image is a int"),
        ("https://example.com/cat.png", {}, "is a URL, and none is fetched"),
        ({"bytes": "file:///etc/passwd"}, {}, "an image cannot be read"),
    ):
        body = {"model": "one", "inputs": inputs, "parameters": parameters}
        reply = httpx.post(f"{address}/v1/predict", json=body, timeout=None)
        assert reply.status_code == 400
        assert why in reply.json()["error"]["message"]
    (listed,) = [one for one in httpx.get(f"{address}/v1/models", timeout=None).json()["data"] if one["id"] == "one"]
    assert (listed["labels"], listed["input"]) == (list(LABELS), ["image"])
    assert listed["full"]["threshold"] == 0.0


def test_hugging_faces_client_works_as_it_is(
    address: str, alone: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which sends a picture as it is where there are no parameters, as base64 in JSON otherwise."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    client = InferenceClient(model=f"{address}/models/one")
    (tmp_path / "picture.png").write_bytes(PICTURES[0])
    wanted = alone["one"][0][0]
    for given in (PICTURES[0], str(tmp_path / "picture.png")):
        found = client.object_detection(given, threshold=0.2)[:5]
        assert [(one.label, one.score) for one in found] == [(w["label"], pytest.approx(w["score"])) for w in wanted]
        assert [vars(one.box) for one in found] == [one["box"] for one in wanted]
        plain = client.object_detection(given)
        assert boxes(vars(one.box) for one in plain) == boxes(one["box"] for one in alone["one"][1][0])
    broken = httpx.post(
        f"{address}/models/one", content=PICTURES[0][:80], headers={"content-type": "image/png"}, timeout=None
    )
    assert broken.status_code == 400
    assert "an image cannot be read" in broken.text
    text = httpx.post(
        f"{address}/models/one", content=b'{"inputs": ""}', headers={"content-type": "image/png"}, timeout=None
    )
    assert "an image cannot be read (it is no picture" in text.text
    page = httpx.post(f"{address}/models/one", content=b"<html>", headers={"content-type": "text/html"}, timeout=None)
    assert page.status_code == 415


def test_a_form_is_answered_as_json_is(address: str, alone: dict[str, list[Any]]) -> None:
    """`curl -F` and browsers send it; several adapters may be named in it too."""
    parameters = json.dumps(ASK)

    def post(route: str, fields: Any, pictures: Any = PICTURES[:1], part: str = "file") -> Any:
        files = [(part, (f"{at}.png", picture)) for at, picture in enumerate(pictures)]
        return httpx.post(f"{address}{route}", data=fields, files=files, timeout=None)

    one = post("/v1/predict", {"model": "one", "parameters": parameters})
    assert one.status_code == 200, one.text
    assert near(one.json()["predictions"], alone["one"][0][:1])
    assert one.headers["x-adapter"] == "one@1"
    several = post("/v1/predict", {"model": "two", "parameters": parameters}, PICTURES, "files")
    assert near(several.json()["predictions"], alone["two"][0])
    each = json.dumps(dict.fromkeys(NAMES, ASK))
    for models in (list(NAMES), json.dumps(NAMES)):
        both = post("/v1/predict", {"model": models, "parameters": each}, PICTURES, "files").json()
        assert both["model"] == list(NAMES)
        assert all(near(both["answers"][name]["predictions"], alone[name][0]) for name in NAMES)
    bare = post("/models/one", {"parameters": parameters})
    assert near(bare.json(), alone["one"][0][0])
    listed = post("/models/one", {"parameters": parameters}, PICTURES[:1], "files")
    assert near(listed.json(), alone["one"][0][:1])
    named = {"serve_multiplexed_model_id": "one", "content-type": "image/png"}
    raw = httpx.post(f"{address}/v1/predict", content=PICTURES[0], headers=named, timeout=None)
    assert boxes(one["box"] for one in raw.json()["predictions"][0]) == boxes(one["box"] for one in alone["one"][1][0])


def test_a_wrong_form_is_refused_in_one_sentence(address: str) -> None:
    def part(name: str, value: bytes, filename: str = "") -> bytes:
        told = f'; filename="{filename}"' if filename else ""
        return f'--x\r\ncontent-disposition: form-data; name="{name}"{told}\r\n\r\n'.encode() + value + b"\r\n"

    model, picture, end = part("model", b"one"), part("file", PICTURES[0], "a.png"), b"--x--\r\n"
    for content, status, why in (
        (model + end, 400, "holds no file"),
        (end, 400, "holds no file"),
        (b"", 400, "ends before its last boundary"),
        (model + picture, 400, "ends before its last boundary"),
        ((model + picture)[:-40] + b"--x--", 400, "ends before its last boundary"),
        (model + part("file", b"abc") + end, 400, "no filename"),
        (model + picture + picture + end, 400, "name each such part files"),
        (picture + part("model", b"one", "a.txt") + end, 400, "'model' is not taken"),
        (picture + part("threshold", b"0.5") + end, 400, "'threshold' is not taken"),
        (model + picture + part("parameters", b"{") + end, 400, "'parameters' is no JSON"),
        (model + picture + part("parameters", b"7") + end, 400, "parameters: "),
        (model + picture + 2 * part("parameters", b"{}") + end, 400, "parameters twice"),
        (part("model", b"[1]") + picture + end, 400, "model"),
        (picture + end, 400, "no adapter is named"),
        (model + part("file", b"GIF89a", "a.png") + end, 400, "an image cannot be read"),
        (model + 257 * part("files", b"a", "a.png") + end, 413, "at most 256"),
        (model + 300 * part("files", b"a", "a.png") + end, 413, "at most 256"),
        (model + part("file", b"a" * (8 << 20), "a.png") + end, 413, "the body exceeds"),
    ):
        kind = {"content-type": "multipart/form-data; boundary=x"}
        said = httpx.post(f"{address}/v1/predict", content=content, headers=kind, timeout=None)
        assert (said.status_code, why in said.json()["error"]["message"]) == (status, True), said.text
    for kind, status, why in (
        ("multipart/form-data", 400, "boundary"),
        ("multipart/mixed; boundary=x", 415, "'multipart/mixed' is not taken"),
        ("application/x-www-form-urlencoded", 415, "send JSON as application/json"),
        ("text/plain", 415, "image/png"),
    ):
        for route in ("/v1/predict", "/models/one"):
            said = httpx.post(
                f"{address}{route}", content=model + picture + end, headers={"content-type": kind}, timeout=None
            )
            assert (said.status_code, why in said.json()["error"]["message"]) == (status, True), said.text
