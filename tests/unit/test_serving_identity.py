"""Which content answered, said with every answer; contents asked for by hash; changes that expect what is there."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import AdapterError, AdapterNotFoundError
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.store import open_store, steer
from ray_lora.store.expected import VersionConflictError, expecting, put_expecting
from tests.unit.serving_world import card, make_adapter, make_base


@pytest.fixture
def world(tmp_path: Path) -> Path:
    base = make_base(tmp_path / "base")
    store = open_store(str(tmp_path / "store"))
    for seed in range(3):
        folder = card(make_adapter(base, tmp_path / f"v{seed}", seed=seed), base, ["bad", "good"])
        if seed < 2:
            store.put(Adapter.load(folder), "tweets")
    return tmp_path


@asynccontextmanager
async def serving(world: Path) -> AsyncIterator[Any]:
    folders = {name: str(world / name) for name in ("store", "base", "results")}
    endpoint = start_endpoint(AppArgs(**folders, dtype="float32", slots=2, max_rank=8))
    transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
        yield endpoint, client
    await endpoint.close()


def test_every_answer_says_whose_it_is_and_a_hash_gets_that_content_or_none(world: Path) -> None:
    sums = {entry.version: entry.sha256 for entry in open_store(str(world / "store")).list()}

    async def main() -> None:
        async with serving(world) as (endpoint, client):

            async def ask(ref: str, route: str = "/v1/predict") -> httpx.Response:
                word = "inputs" if "predict" in route else "input"
                answer: httpx.Response = await client.post(route, json={"model": ref, word: "a lovely day"})
                return answer

            for route in ("/v1/predict", "/classify"):
                for version, sha256 in sums.items():
                    for ref in (f"tweets@{version}", f"tweets@sha256:{sha256}"):
                        told = await ask(ref, route)
                        assert (told.json()["version"], told.json()["sha256"]) == (version, sha256), told.text
                        assert told.headers["x-adapter-sha256"] == sha256
            assert (await client.get(f"/v1/models/tweets@sha256:{sums[1]}")).json()["version"] == 1
            for ref in (f"tweets@sha256:{'0' * 64}", f"other@sha256:{sums[1]}", f"tweets@sha256:{sums[1][:20]}"):
                assert (await ask(ref)).status_code == 404, ref
            await asyncio.to_thread(endpoint.registry.store.remove, "tweets@1")
            gone = await ask(f"tweets@sha256:{sums[1]}")
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")

    asyncio.run(main())


def test_a_content_that_was_exchanged_between_looking_and_reading_is_not_answered_by_another(world: Path) -> None:
    async def main() -> None:
        async with serving(world) as (endpoint, client):
            choice = await endpoint.names.choose(f"tweets@sha256:{(await endpoint.names.resolve('tweets@1')).sha256}")
            assert choice.exact
            shutil.rmtree(world / "store" / "tweets" / "1")
            shutil.copytree(world / "v2", world / "store" / "tweets" / "1")
            endpoint.registry.store.reconsider()
            with pytest.raises(LookupError, match="has the content"):
                await endpoint.predict(choice, ["a"], {})
            assert (await client.post("/v1/predict", json={"model": "tweets@1", "inputs": "a"})).status_code == 200

    asyncio.run(main())


def _cut(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])


@pytest.mark.parametrize("settle_s", [0, 60])
@pytest.mark.parametrize("spoil", [_cut, shutil.rmtree, lambda folder: (folder / "adapter_config.json").unlink()])
def test_a_name_whose_newest_version_is_spoilt_between_looking_and_reading_is_answered_by_the_one_before(
    world: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], settle_s: float
) -> None:
    monkeypatch.setenv("RAY_LORA_SETTLE_S", str(settle_s))

    async def main() -> None:
        async with serving(world) as (endpoint, _):
            sha256 = {ref: (await endpoint.names.resolve(ref)).sha256 for ref in ("tweets@1", "tweets@2")}
            choice = await endpoint.names.choose("tweets")
            named = await endpoint.names.choose("tweets@2")
            assert (choice.entry.version, choice.variant) == (2, "default")
            spoil(world / "store" / "tweets" / "2")
            answer = await endpoint.predict(choice, ["a"], {}, request_id="asked")
            assert (answer.entry.version, answer.entry.sha256) == (1, sha256["tweets@1"])
            assert (await endpoint.results.find("asked")).version == 1
            monkeypatch.setattr("ray_lora.serving.registry._MORE_S", -60.0)  # else it waits until it is whole again
            with pytest.raises((AdapterError, AdapterNotFoundError)):
                await endpoint.predict(named, ["a"], {})

    asyncio.run(main())


def test_a_version_that_a_split_chose_is_not_answered_by_another(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_LORA_SETTLE_S", "0")

    async def main() -> None:
        async with serving(world) as (endpoint, _):
            endpoint.registry.store.point("tweets", steer.split({1: 0, 2: 100}))
            choice = await endpoint.names.choose("tweets")
            assert (choice.entry.version, choice.variant) == (2, "split")
            _cut(world / "store" / "tweets" / "2")
            with pytest.raises(AdapterError):
                await endpoint.predict(choice, ["a"], {})

    asyncio.run(main())


def test_load_and_unload_expect_what_is_there(world: Path) -> None:
    async def main() -> None:
        async with serving(world) as (_, client):

            async def change(what: str, **body: Any) -> tuple[int, str | None]:
                told = await client.post(f"/v1/{what}_lora_adapter", json={"lora_name": "tweets", **body})
                if told.status_code == 409:
                    assert told.json()["error"]["code"] == "version_conflict"
                return told.status_code, told.headers.get("x-adapter")

            folder = str(world / "v2")
            assert await change("load", lora_path=folder, if_version=1) == (409, "tweets@2")
            assert await change("load", lora_path=folder, if_version=0) == (409, "tweets@2")
            assert await change("unload", if_version=1) == (409, "tweets@2")
            assert (await client.get("/v1/models/tweets")).json()["version"] == 2
            assert await change("load", lora_path=folder, if_version=2) == (200, None)
            assert (await client.get("/v1/models/tweets")).json()["version"] == 3
            assert await change("unload", if_version=3) == (200, None)
            assert (await client.get("/v1/models/tweets")).status_code == 404
            assert await change("load", if_version=2) == (409, "tweets@3")
            assert await change("load", if_version=3) == (200, None)
            new = {"lora_name": "new", "lora_path": folder}
            missing = await client.post("/v1/load_lora_adapter", json={**new, "if_version": 4})
            assert (missing.status_code, missing.headers.get("x-adapter")) == (409, None)
            assert (await client.post("/v1/load_lora_adapter", json={**new, "if_version": 0})).status_code == 200

    asyncio.run(main())


def test_of_many_at_once_no_more_than_one_is_kept(world: Path) -> None:
    store, adapter = open_store(str(world / "store")), Adapter.load(world / "v2")
    start = threading.Barrier(6)

    def put(_: int) -> int | None:
        mine = open_store(str(world / "store"))
        start.wait()
        try:
            return put_expecting(mine, adapter, "tweets", 2).version
        except VersionConflictError:
            return None

    with ThreadPoolExecutor(6) as pool:
        kept = [version for version in pool.map(put, range(6)) if version is not None]
    assert len(kept) <= 1
    assert [entry.version for entry in store.list()] == [1, 2, *kept]


def test_a_promotion_expects_what_the_bare_name_means(world: Path) -> None:
    store = open_store(str(world / "store"))
    with pytest.raises(VersionConflictError, match="expected at version 1, and what the bare name means is tweets@2"):
        store.point("tweets", expecting(1, steer.promote(1)))
    assert store.resolve("tweets").version == 2
    store.point("tweets", expecting(2, steer.promote(1)))
    assert store.resolve("tweets").version == 1
    with pytest.raises(VersionConflictError) as refused:
        store.point("tweets", expecting(2, steer.promote(2)))
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)
