"""Texts, pictures, objects and masks: adapters of four bases behind one address of Ray Serve, and on its page."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from transformers import ViTImageProcessor

from ray_lora import BaseSpec, Card, load_base
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import LoraSpec, TaskSpec
from ray_lora.serving import AppArgs, run
from ray_lora.store import open_store
from ray_lora.tasks import build_task, row_of
from ray_lora.tasks.image_classification import ImageClassificationSpec
from ray_lora.tasks.image_segmentation import ImageSegmentationSpec
from ray_lora.tasks.object_detection import ObjectDetectionSpec
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.conformance.rules import near
from tests.unit import detection, segmentation
from tests.unit.bases import save_base
from tests.unit.serving_world import make_base
from tests.unit.test_serving_page import choose, chrome, tab

__all__ = ["chrome", "tab"]  # fixtures
TEXT = "a lovely day"
PICTURE = detection.rows(1)[0]["image"]
COLOURS = ("blue", "red", "white")
SPECS: dict[str, TaskSpec] = {
    "moods": TextClassificationSpec(labels=("sad", "glad"), max_length=16),
    "scenes": ImageClassificationSpec(labels=COLOURS),
    "things": ObjectDetectionSpec(labels=COLOURS),
    "areas": ImageSegmentationSpec(labels=segmentation.LABELS),
}
LORA = {"moods": ("query",), "scenes": ("convolution",), "things": ("conv",), "areas": ("conv1", "conv2")}
PARAMETERS: dict[str, Any] = {"things": {"threshold": 0.2, "top_k": 5}, "areas": {"threshold": 0.0}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each adapter answers by itself; its base is the folder of its name."""
    root = tmp_path_factory.mktemp("kinds")
    make_base(root / "moods")
    save_base("resnet", root / "scenes")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(root / "scenes")
    detection.tiny(root / "things")
    segmentation.tiny(root / "areas")
    alone = {}
    for name, spec in SPECS.items():
        base = load_base(BaseSpec(model=str(root / name), dtype="float32"))
        task = build_task(spec, base.processor)
        engine = AdapterEngine(base, slots=1, max_rank=4)
        exclude = ("stem.conv",) if name == "things" else ()
        slot = engine.init(LoraSpec(r=2, target_modules=LORA[name], exclude_modules=exclude), task.head, seed=1)
        draw = torch.Generator().manual_seed(1)
        fresh = {
            key: torch.randn(value.shape, generator=draw) * (0.03 if "lora" in key else 0.3)
            for key, value in engine.read(slot).items()
        }
        sure = {key: value + 2 for key, value in fresh.items() if "obj_preds" in key and key.endswith("bias")}
        engine.write(slot, fresh | sure)
        engine.refresh([slot])
        open_store(str(root / "store")).put(engine.export(slot, Card(task=spec, base=str(root / name))), name)
        features = task.encode([row_of(task, TEXT if name == "moods" else PICTURE)])
        alone[name] = predict(engine, {slot: task}, features, [slot], [PARAMETERS.get(name, {})])
        engine.close()
    assert alone["things"][0]
    assert alone["areas"][0]
    return {"root": root, "alone": alone}


@pytest.fixture(scope="module")
def address(world: dict[str, Any]) -> Iterator[str]:
    from ray import serve

    root = world["root"]
    tree: dict[str, Any] = {
        "store": str(root / "store"),
        "results": str(root / "results"),
        "dtype": "float32",
        "max_rank": 4,
        "slots": 2,
        "port": 0,
        "num_cpus": 0.5,
        "bases": [{"model": str(root / name)} for name in SPECS],
    }
    yield run(AppArgs.model_validate(tree), block=False)
    serve.shutdown()


def test_every_kind_answers_as_alone(world: dict[str, Any], address: str) -> None:
    picture = base64.b64encode(PICTURE).decode()
    names = list(SPECS)
    with httpx.Client(base_url=address, timeout=None) as client:
        random.Random(0).shuffle(names)
        for name in names:
            given = TEXT if name == "moods" else picture
            body = {"model": name, "inputs": given, "parameters": PARAMETERS.get(name, {})}
            said = client.post("/v1/predict", json=body)
            assert said.status_code == 200, said.text
            assert near(said.json()["predictions"], world["alone"][name]), name
        seen = ["scenes", "things", "areas"]
        parameters = {name: PARAMETERS[name] for name in seen if name in PARAMETERS}
        several = client.post("/v1/predict", json={"model": seen, "inputs": picture, "parameters": parameters})
        assert several.status_code == 200, several.text
        for name in seen:
            assert near(several.json()["answers"][name]["predictions"], world["alone"][name]), name
        mixed = client.post("/v1/predict", json={"model": ["things", "moods"], "inputs": {"bytes": picture}})
        assert (mixed.status_code, "moods: a file was sent" in mixed.text) == (400, True)


def test_the_page_shows_every_kind(world: dict[str, Any], address: str, tab: Any) -> None:
    from playwright.sync_api import expect

    tab.goto(address)
    choose(tab, "moods")
    tab.get_by_label("Inputs, one in each line").fill(TEXT)
    tab.get_by_role("button", name="Predict").click()
    expect(tab.get_by_role("table", name=f"Scores of {TEXT}").get_by_role("rowheader")).to_have_count(2)
    choose(tab, "scenes")
    file = {"name": "it.png", "mimeType": "image/png", "buffer": PICTURE}
    tab.get_by_label("Pictures").set_input_files([file])
    expect(tab.locator("#shots img")).to_have_count(1)
    tab.get_by_role("button", name="Predict").click()
    expect(tab.get_by_role("table", name="Scores of it.png").get_by_role("rowheader")).to_have_count(len(COLOURS))
    choose(tab, "things")
    tab.get_by_label("Least score").fill("0.2")
    tab.get_by_text("Ask other adapters the same").click()
    tab.get_by_label("areas", exact=True).check()
    tab.get_by_role("button", name="Predict").click()
    expect(tab.locator("#by")).to_have_text("things@1, areas@1")
    expect(tab.locator("article canvas")).to_have_count(1)
    expect(tab.locator("article rect").first).to_be_attached()
    assert tab.wrong == []
