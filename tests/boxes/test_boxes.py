"""A task that has nothing of a text classifier keeps what every task must keep, on a base that nobody wrote for us."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from httpx import ASGITransport, AsyncClient, Response

from ray_lora import BaseSpec, BuildContext, Card, DataError, load_base
from ray_lora.bases.base import Base
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import AdapterError
from ray_lora.inference.predict import predict
from ray_lora.recipe import LoraSpec, TaskSpec
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.store import open_store
from tests.boxes import base as module
from tests.boxes.base import Finder, build
from tests.boxes.rows import BASE, TASK, best_answer, picture, pixels_of, rows
from tests.conformance import CHECKS, Case
from tests.conformance.answers import some_adapter
from tests.conformance.rules import near

PIXELS = "a picture of 44 x 32 pixels"


@pytest.fixture(autouse=True)
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_ALLOW", "tests.boxes")


@pytest.fixture
def case(_allowed: None) -> Case:
    return Case(
        TaskSpec.model_validate({"type": TASK}),
        rows(7),
        best_answer,
        open=open_base,
        plain=lambda: Finder(build(BuildContext(torch.device("cpu"))).backbone, 5).eval(),
        targets=("stem", "middle", "last"),
        head=("mix", "even", "find"),
        wrong=[
            ({"boxes": [[1.0, 2.0, 3.0]]}, rf"box \[1.0, 2.0, 3.0\] is no \[x, y, width, height\] inside {PIXELS}"),
            ({"boxes": [[1.0, 2.0, 3.0, None]]}, "box .*None"),
            ({"boxes": [[1.0, 2.0, 4.0, 4.0], [40.0, 0.0, 8.0, 2.0]]}, f"box .*40.0.* inside {PIXELS}"),
            ({"boxes": [[5.0, 5.0, 0.0, 2.0]]}, "box .*0.0, 2.0"),
            ({"image": b"no picture"}, "image is no picture file"),
        ],
    )


def open_base() -> Base:
    base = load_base(BaseSpec(model=BASE, dtype="float32"))
    base.backbone.to(torch.float64)
    return replace(base, dtype=torch.float64)


@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_the_rules(case: Case, check: Callable[[Case, Path], None], tmp_path: Path) -> None:
    check(case, tmp_path)


def test_pictures_come_as_files_text_or_pixels(case: Case) -> None:
    data = picture(3)
    forms: list[Any] = [data, base64.b64encode(data).decode(), {"bytes": data, "path": None}, pixels_of(data)]
    found = [row["pixel_values"] for row in case.task.encode([{"image": form} for form in forms])]
    assert found[0].shape == (3, 32, 32)
    assert all(torch.equal(other, found[0]) for other in found)
    for broken in (b"", "not base64!", [1, 2], [[1, 2], [3, 4]], 7):
        with pytest.raises(DataError, match="image is"):
            case.task.encode([{"image": broken}])


def test_a_picture_without_things_is_best_answered_by_nothing(case: Case) -> None:
    (empty,) = case.task.encode([{"image": picture(0), "boxes": []}])
    box = {"xmin": 0.0, "ymin": 0.0, "xmax": 4.0, "ymax": 4.0}
    assert case.task.score([[]], [empty]) == {"mean_best_iou": 1.0}
    assert case.task.score([[{"score": 0.9, "box": box}]], [empty]) == {"mean_best_iou": 0.0}


def test_a_head_that_peft_would_take_for_the_bases_own_is_refused(case: Case) -> None:
    """What an author meets first who names his head's norm as the base names its own."""

    class Alike(module.Finder):
        def __init__(self, backbone: Any, outputs: int) -> None:
            super().__init__(backbone, outputs)
            self.norm = torch.nn.GroupNorm(1, 5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Finder", Alike)
        engine = AdapterEngine(open_base(), slots=1)
        with pytest.raises(AdapterError, match=r"a module 'norm', and PEFT would take 'backbone\.norm' for it"):
            engine.init(LoraSpec(r=1, target_modules=("last",)), HeadSpec("Finder", 5), seed=0)


# -------------------------------------------------------------------- served


def test_it_is_served_like_any_other(case: Case, tmp_path: Path) -> None:
    """Pictures as base64 text, rows of two adapters at once; what is no picture is the request's fault."""
    store, slots = open_store(str(tmp_path / "store")), []
    engine = AdapterEngine(load_base(BaseSpec(model=BASE, dtype="float32")), slots=2, max_rank=4)
    for rank in (1, 4):
        slots.append(some_adapter(case, engine, rank))
        store.put(engine.export(slots[-1], Card(task=case.spec)), f"rank{rank}")
    ask = {"threshold": 0.4}
    expected = [predict(engine, {slot: case.task}, case.features, [slot] * 7, [ask] * 7) for slot in slots]
    engine.close()
    inputs = [base64.b64encode(row["image"]).decode() for row in case.rows]

    async def main() -> None:
        told = {"store": str(tmp_path / "store"), "results": str(tmp_path / "results"), "base": BASE, "slots": 2}
        endpoint = start_endpoint(AppArgs.model_validate(told | {"dtype": "float32", "max_rank": 4}))
        async with AsyncClient(transport=ASGITransport(create_app(endpoint)), base_url="http://localhost") as client:

            async def post(name: str, inputs: Any, parameters: Any = ask) -> Response:
                body = {"model": name, "inputs": inputs, "parameters": parameters}
                return await client.post("/v1/predict", json=body, timeout=None)

            answers = await asyncio.gather(post("rank1", inputs), post("rank4", inputs))
            assert all(
                near(answer.json()["predictions"], wanted) for answer, wanted in zip(answers, expected, strict=True)
            )
            for wrong in ("no picture", 7, {"bytes": 7}):
                assert (await post("rank1", [wrong])).status_code == 400
            assert "it takes 'threshold'" in (await post("rank1", inputs, {"top_k": 1})).text
            listed = {model["id"]: model for model in (await client.get("/v1/models")).json()["data"]}
            assert listed["rank4"]["input"] == ["image"]
            assert listed["rank4"]["full"] == {"threshold": 0.0}
        await endpoint.close()

    asyncio.run(main())
    assert expected[0] != expected[1]
