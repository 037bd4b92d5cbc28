"""The endpoint on Ray Serve: PEFT's answers, the router's header, clients that leave, a killed replica."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from ray_lora.errors import RecipeError
from ray_lora.serving import AppArgs, build_app, run
from ray_lora.serving.cluster.ingress import free_port
from tests.unit.serving_world import make_adapter, make_base, peft_probabilities

TEXTS = ["a lovely day", "the film was very dull and so slow", "good"]
LABELS = {"a": 2, "b": 3, "c": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("endpoint")
    base = make_base(root / "base")
    for seed, (name, labels) in enumerate(LABELS.items()):
        make_adapter(base, root / "store" / name, seed=seed, rank=2 + seed, labels=labels)
    return root


@pytest.fixture(scope="module")
def address(world: Path) -> Iterator[str]:
    from ray import serve

    folders = {"store": str(world / "store"), "results": str(world / "results")}
    args = AppArgs(**folders, dtype="float32", slots=2, max_rank=8, port=0)
    yield run(args, block=False)  # the base is the one that the adapters name
    serve.shutdown()


def test_mixed_requests_get_peft_s_answers(world: Path, address: str) -> None:
    expected = {name: peft_probabilities(world / "base", world / "store" / name, TEXTS) for name in LABELS}

    async def ask(client: httpx.AsyncClient, name: str, row: int, by_header: bool) -> None:
        body: dict[str, Any] = {"inputs": TEXTS[row], "parameters": {"top_k": 4}}
        headers = {"serve_multiplexed_model_id": name} if by_header else {}
        response = await client.post("/v1/predict", json=body if by_header else body | {"model": name}, headers=headers)
        assert response.status_code == 200, response.text
        assert response.headers["x-adapter"] == f"{name}@1"
        scores = {answer["label"]: answer["score"] for answer in response.json()["predictions"][0]}
        assert [scores[f"LABEL_{i}"] for i in range(LABELS[name])] == pytest.approx(expected[name][row], abs=1e-5)

    async def main() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=None) as client:
            rows = range(len(TEXTS))
            await asyncio.gather(
                *(ask(client, name, row, how) for name in LABELS for row in rows for how in (True, False))
            )

    asyncio.run(main())


def test_errors_keep_their_shape_through_serve(address: str) -> None:
    with httpx.Client(base_url=address, timeout=None) as client:
        missing = client.post("/v1/predict", json={"model": "aa", "inputs": "good"})
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        malformed = client.post("/v1/predict", content=b"{", headers={"content-type": "application/json"})
        assert (malformed.status_code, malformed.json()["error"]["code"]) == (400, "invalid_json")
        assert client.get("/v1/models").json()["data"][0]["parent"] is None
        named = client.get("/v1/models", headers={"x-request-id": "mine"})
        assert named.headers.get_list("x-request-id") == ["mine"]
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/docs").status_code == 200


def test_a_client_that_leaves_leaves_nothing_behind(address: str) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=None) as client:
            body = {"model": "a", "inputs": TEXTS * 80}
            gone = [asyncio.create_task(client.post("/v1/predict", json=body)) for _ in range(2)]
            await asyncio.sleep(0.05)
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            while True:
                status = (await client.get("/v1/status")).json()
                if not status["rows_inside"] and not any(resident["leases"] for resident in status["residents"]):
                    break
                await asyncio.sleep(0.02)
            assert (await client.post("/v1/predict", json={"model": "a", "inputs": "good"})).status_code == 200

    asyncio.run(main())


def test_a_killed_replica_comes_back(address: str) -> None:
    import ray

    with httpx.Client(base_url=address, timeout=None) as client:
        killed = 0
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] == "serve" and "Endpoint#" in actor["name"]:
                ray.kill(ray.get_actor(actor["name"], "serve"), no_restart=True)
                killed += 1
        assert killed == 1
        while True:
            response = client.post("/v1/predict", json={"model": "b", "inputs": "good"})
            if response.status_code == 200:
                break
            assert response.status_code in (500, 503), response.text
            time.sleep(0.2)
        assert client.get("/v1/status").json()["batches"]["rows"] == 1  # another process


def test_a_second_start_says_where_the_running_serve_is(world: Path, address: str) -> None:
    """Its proxies listen where they were started, whatever port the second one asks for."""
    folders = {"store": str(world / "store"), "results": str(world / "results")}
    args = AppArgs(**folders, dtype="float32", slots=2, max_rank=8, port=0)
    running = int(address.rpartition(":")[2])
    with pytest.raises(RecipeError, match=rf"this cluster's Serve listens on {running} already; leave port out"):
        run(AppArgs(**folders, dtype="float32", slots=2, max_rank=8, port=free_port()), block=False)
    assert run(args, block=False) == address
    assert httpx.get(f"{address}/v1/models", timeout=120).status_code == 200


def test_the_builder_takes_what_serve_run_gives_it(world: Path) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    given = {"store": str(world / "store"), "slots": "4", "dtype": "float32"}  # `serve run` gives strings
    assert call_user_app_builder_with_args_if_necessary(build_app, given)
    with pytest.raises(ValueError, match="slotz"):
        call_user_app_builder_with_args_if_necessary(build_app, given | {"slotz": "4"})
    with pytest.raises(RecipeError, match="give base="):
        build_app(AppArgs(store=str(world / "nothing")))


@pytest.mark.parametrize("name", ["endpoint.yaml", "bases.yaml"])
def test_the_yaml_fits_serve_s_schema_and_our_arguments(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    tree = yaml.safe_load((Path(__file__).parents[2] / "serve_apps" / name).read_text())
    application = ServeDeploySchema.model_validate(tree).applications[0]
    AppArgs.model_validate(application.args)
    module, _, builder = application.import_path.partition(":")
    assert Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py").exists()
    assert builder == "build_app"
