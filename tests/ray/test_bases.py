"""Two bases behind one address of Ray Serve, over HTTP: mixed traffic, and commands that reach every replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.bases.load import fingerprint
from ray_lora.serving import AppArgs, run
from tests.unit.serving_world import card, make_adapter, make_base, peft_probabilities

TEXTS = ["a lovely day", "the film was very dull and so slow", "good"]
NAMES = {"alpha": ["a-one", "a-two"], "beta": ["b-one", "b-two", "b-plain"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    for seed, (base, names) in enumerate(NAMES.items()):
        make_base(root / base, seed=seed)
        for number, name in enumerate(names):
            labels = [f"LABEL_{index}" for index in range(2 + number)]
            folder = make_adapter(root / base, root / "store" / name, seed=10 * seed + number, labels=len(labels))
            if "plain" not in name:
                card(folder, root / base, labels, fingerprint=fingerprint(root / base))
    return root


@pytest.fixture(scope="module")
def address(world: Path) -> Iterator[str]:
    from ray import serve

    tree: dict[str, Any] = {
        "store": str(world / "store"),
        "results": str(world / "results"),
        "dtype": "float32",
        "max_rank": 8,
        "port": 0,
        "num_cpus": 0.5,
        "num_replicas": 2,
        "fresh_s": 3600,
        "bases": [
            {"model": str(world / "alpha"), "slots": 2},
            {"model": str(world / "beta"), "autoscaling": {"min_replicas": 2, "max_replicas": 2}},
        ],
    }
    yield run(AppArgs.model_validate(tree), block=False)
    serve.shutdown()


def test_mixed_requests_get_the_answers_of_their_own_base(world: Path, address: str) -> None:
    expected = {
        name: peft_probabilities(world / base, world / "store" / name, TEXTS)
        for base, names in NAMES.items()
        for name in names
    }

    async def main() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=None) as client:

            async def check(name: str, row: int) -> None:
                body = {"model": name, "inputs": TEXTS[row], "parameters": {"top_k": 9}}
                response = await client.post("/v1/predict", json=body, headers={"x-request-id": f"{name}-{row}"})
                assert response.status_code == 200, response.text
                assert response.headers["x-adapter"] == f"{name}@1"
                assert response.headers.get_list("x-request-id") == [f"{name}-{row}"]
                scores = {item["label"]: item["score"] for item in response.json()["predictions"][0]}
                wanted = expected[name][row]
                assert [scores[f"LABEL_{i}"] for i in range(len(wanted))] == pytest.approx(wanted, abs=1e-4)

            await asyncio.gather(*(check(name, row) for _ in range(4) for name in expected for row in range(3)))
            base, other, *adapters = (await client.get("/v1/models")).json()["data"]
            assert [base["id"], other["id"]] == [str(world / "alpha"), str(world / "beta")]
            parents = {item["id"]: item["parent"] for item in adapters}
            assert parents == {name: str(world / base) for base, names in NAMES.items() for name in names}
            vectors = []
            for model in ("base", str(world / "alpha"), str(world / "beta")):
                said = await client.post("/v1/embeddings", json={"model": model, "input": "good"})
                vectors.append(said.json()["data"][0]["embedding"])
            assert vectors[0] == vectors[1] != vectors[2]
            malformed = await client.post("/v1/predict", json={"model": "b-one", "inputs": [1]})
            assert (malformed.status_code, malformed.json()["error"]["type"]) == (400, "BadRequestError")
            told = await client.post("/v1/feedback", json={"id": "b-one-2", "value": True})
            assert (told.status_code, told.json()["model"]) == (200, "b-one")

    asyncio.run(main())


def test_unload_and_load_hold_on_all_replicas(address: str) -> None:
    with httpx.Client(timeout=None) as client:

        def statuses(name: str) -> set[int]:
            """A new connection each time, so that the proxy takes the replicas in turn."""
            body = {"model": name, "inputs": "good"}
            return {httpx.post(f"{address}/v1/predict", json=body, timeout=None).status_code for _ in range(12)}

        status = client.get(f"{address}/v1/status").json()
        assert len({told["replica"] for told in [status, *status["others"]]}) == 4
        for name in ("a-one", "b-one"):
            assert statuses(name) == {200}
            gone = client.post(f"{address}/v1/unload_lora_adapter", json={"lora_name": name})
            assert gone.status_code == 200, gone.text
            assert statuses(name) == {404}
            back = client.post(f"{address}/v1/load_lora_adapter", json={"lora_name": name})
            assert back.status_code == 200, back.text
            assert statuses(name) == {200}
            everyone = client.get(f"{address}/v1/status").json()
            held = [r["adapter"] for told in [everyone, *everyone["others"]] for r in told["residents"]]
            assert held.count(f"{name}@1") == 2
        assert client.post(f"{address}/v1/refresh").json() == {"status": "ok"}


def test_a_client_that_leaves_frees_the_other_base_too(address: str) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=None) as client:
            body = {"model": "b-one", "inputs": TEXTS * 80}
            gone = [asyncio.create_task(client.post("/v1/predict", json=body)) for _ in range(2)]
            await asyncio.sleep(0.05)
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            while True:
                status = (await client.get("/v1/status")).json()
                if not any(told["rows_inside"] for told in [status, *status["others"]]):
                    break
                await asyncio.sleep(0.02)
            assert (await client.post("/v1/predict", json={"model": "b-one", "inputs": "good"})).status_code == 200

    asyncio.run(main())


def test_a_killed_replica_of_the_other_base_comes_back(address: str) -> None:
    import ray

    killed = 0
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == "serve" and "#Endpoint-beta" in actor["name"]:
            ray.kill(ray.get_actor(actor["name"], "serve"), no_restart=True)
            killed += 1
    assert killed == 2
    with httpx.Client(base_url=address, timeout=None) as client:
        assert client.post("/v1/predict", json={"model": "a-one", "inputs": "good"}).status_code == 200
        while True:
            response = client.post("/v1/predict", json={"model": "b-one", "inputs": "good"})
            if response.status_code == 200:
                break
            assert response.status_code == 503, response.text
            time.sleep(0.2)
