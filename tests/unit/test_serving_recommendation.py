"""A recommender behind the endpoint: lists of two groups in one go, what was seen left out, unknown items named."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import torch
from httpx import ASGITransport, AsyncClient, Response

from ray_lora import BaseSpec, Card, load_base
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import LoraSpec
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.store import open_store
from ray_lora.tasks import build_task
from ray_lora.tasks.sequential_recommendation import SequentialRecommendationSpec
from tests.conformance.rules import near
from tests.unit import histories

INPUTS: list[Any] = [[900, 905, 911], [922], list(histories.NUMBERS[:15])]


def test_groups_are_served_on_one_base(tmp_path: Path) -> None:
    base, spec = str(histories.tiny(tmp_path / "base")), SequentialRecommendationSpec()
    store = open_store(str(tmp_path / "store"))
    engine = AdapterEngine(load_base(BaseSpec(model=base, dtype="float32")), slots=2, max_rank=4)
    task, expected = build_task(spec, engine.base.processor), {}
    rows = task.encode([{"items": items} for items in INPUTS])
    for name, rank in (("group-a", 2), ("group-b", 4)):
        slot = engine.init(LoraSpec(r=rank), task.head, seed=rank)
        draw = torch.Generator().manual_seed(rank)
        tensors = {key: torch.randn(value.shape, generator=draw) * 0.3 for key, value in engine.read(slot).items()}
        engine.write(slot, tensors)
        engine.refresh([slot])
        store.put(engine.export(slot, Card(task=spec)), name)
        expected[name] = predict(engine, {slot: task}, rows, [slot] * 3, [{"top_k": 3}] * 3)
    engine.close()

    async def main() -> None:
        told = {"store": str(tmp_path / "store"), "results": str(tmp_path / "results"), "base": base, "slots": 2}
        endpoint = start_endpoint(AppArgs.model_validate(told | {"dtype": "float32", "max_rank": 4}))
        async with AsyncClient(transport=ASGITransport(create_app(endpoint)), base_url="http://localhost") as client:

            async def post(name: str, inputs: Any, **parameters: Any) -> Response:
                body = {"model": name, "inputs": inputs, "parameters": parameters}
                return await client.post("/v1/predict", json=body, timeout=None)

            for name, answer in zip(
                expected, await asyncio.gather(*(post(name, INPUTS, top_k=3) for name in expected)), strict=True
            ):
                assert near(answer.json()["predictions"], expected[name]), answer.text
            (whole,) = (await post("group-a", [[900]], top_k=None, exclude_seen=False)).json()["predictions"]
            assert sorted(one["item"] for one in whole) == list(histories.NUMBERS)
            for wrong, why in (
                ([[900, 7]], "item 7 is not among the 23 items of this base"),
                ([["900"]], "its ids are whole numbers"),
                ([[]], "are no history"),
                (["900"], "are no history"),
            ):
                reply = await post("group-a", wrong)
                assert reply.status_code == 400, reply.text
                assert why in reply.text
            assert (await post("group-a", [[900]], top_k=0)).status_code == 400
            listed = {model["id"]: model for model in (await client.get("/v1/models")).json()["data"]}
            assert listed["group-a"]["task"] == "sequential-recommendation"
        await endpoint.close()

    asyncio.run(main())
    assert not near(expected["group-a"], expected["group-b"])
