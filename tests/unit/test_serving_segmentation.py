"""Segmenters behind the endpoint: pictures of several sizes in one pass, and Hugging Face's client as it is."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient, constants

from ray_lora import BaseSpec, Card, load_base
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import Json, LoraSpec
from ray_lora.store import open_store
from ray_lora.tasks.image_segmentation import ImageSegmentation
from ray_lora.tasks.segmentation.answers import decoded
from ray_lora.tasks.segmentation.options import ImageSegmentationSpec
from tests.conformance.rules import near
from tests.unit.http_server import serving
from tests.unit.segmentation import LABELS, rows, tiny

PICTURES = [row["image"] for row in rows(4)]
World = tuple[Path, list[Json]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """base/, store/ with one adapter that begins as the base's own classifier, and what it answers to each picture."""
    root = tmp_path_factory.mktemp("segmenters")
    base = load_base(BaseSpec(model=str(tiny(root / "base", LABELS)), dtype="float32"))
    task = ImageSegmentation(ImageSegmentationSpec(labels=LABELS), base.processor)
    engine = AdapterEngine(base, slots=1, max_rank=4)
    slot = engine.init(LoraSpec(r=2, target_modules=("conv1",)), task.head, seed=0)
    open_store(str(root / "store")).put(engine.export(slot, Card(task=task.spec, base=str(root / "base"))), "one")
    features = task.encode([{"image": picture} for picture in PICTURES])
    answers = predict(engine, {slot: task}, features, [slot] * len(features))
    engine.close()
    return root, answers


@pytest.fixture(scope="module")
def address(world: World) -> Iterator[str]:
    with serving(world[0]) as address:
        yield address


def test_every_picture_is_answered_in_its_own_pixels(address: str, world: World) -> None:
    inputs = [base64.b64encode(picture).decode() for picture in PICTURES]
    reply = httpx.post(f"{address}/v1/predict", json={"model": "one", "inputs": inputs}, timeout=None)
    assert reply.status_code == 200, reply.text
    assert reply.json()["task"] == "image-segmentation"
    assert near(reply.json()["predictions"], world[1])
    body = {"model": "one", "inputs": inputs[0], "parameters": {"subtask": "panoptic"}}
    wrong = httpx.post(f"{address}/v1/predict", json=body, timeout=None)
    assert wrong.status_code == 400
    assert "only 'semantic'" in wrong.json()["error"]["message"]


def test_hugging_faces_client_works_as_it_is(
    address: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    client = InferenceClient(model=f"{address}/models/one")
    (tmp_path / "picture.png").write_bytes(PICTURES[0])
    for given in (PICTURES[0], str(tmp_path / "picture.png")):
        for found in (client.image_segmentation(given), client.image_segmentation(given, subtask="semantic")):
            assert [one.label for one in found] == [one["label"] for one in world[1][0]]
            for one, wanted in zip(found, world[1][0], strict=True):
                assert np.array_equal(np.array(one.mask), decoded(wanted["mask"]))
                assert one.score == pytest.approx(wanted["score"])
