"""Who may use what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json
from ray_lora.serving import AppArgs, run
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http.keys import ENVIRONMENT, KeyMissingError, Keys
from ray_lora.serving.http.routes import create_app
from tests.unit.serving_world import make_adapter, make_base

FILE = """
- {key: team, name: a team, adapters: [tweets, "movie*"]}
- {key: root, admin: true}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("keys")
    base = make_base(root / "base")
    for seed, name in enumerate(("tweets", "movies", "secret")):
        make_adapter(base, root / "store" / name, seed=seed)
    (root / "keys.yaml").write_text(FILE)
    return root


@asynccontextmanager
async def serving(world: Path) -> AsyncIterator[httpx.AsyncClient]:
    args = AppArgs(store=str(world / "store"), dtype="float32", slots=2, max_rank=4, keys=str(world / "keys.yaml"))
    folders = {"base": str(world / "base"), "results": str(world / "results")}
    endpoint = start_endpoint(args.model_copy(update=folders))
    transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
    await endpoint.close()


def test_a_key_opens_what_it_is_for(world: Path) -> None:
    async def main() -> None:
        async with serving(world) as client:

            async def ask(key: str | None, name: str) -> httpx.Response:
                headers = {"authorization": f"Bearer {key}"} if key else {}
                return await client.post("/v1/predict", json={"model": name, "inputs": "good"}, headers=headers)

            for key, name, status in [
                (None, "tweets", 401),
                ("wrong", "tweets", 401),
                ("team", "tweets", 200),
                ("team", "movies@1", 200),
                ("team", "secret", 403),
                ("team", "secret@1", 403),
                ("team", "nothing", 403),  # whether it exists is not this key's business
                ("root", "secret", 200),
            ]:
                response = await ask(key, name)
                assert response.status_code == status, (key, name, response.text)
                if status != 200:
                    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            other = await client.post(
                "/classify", json={"model": "secret", "input": "a"}, headers={"x-api-key": "team"}
            )
            assert other.status_code == 403
            team, root = {"x-api-key": "team"}, {"x-api-key": "root"}
            for names, headers, status in [
                (["tweets", "movies@1"], team, 200),
                (["tweets", "secret"], team, 403),
                (["nothing", "tweets"], team, 403),
                (["tweets", "secret"], root, 200),
                (["tweets", "movies"], {}, 401),
            ]:
                several = await client.post("/v1/predict", json={"model": names, "inputs": "good"}, headers=headers)
                assert several.status_code == status, (names, several.text)
                form = {"data": {"model": names}, "files": {"file": ("a.txt", b"good")}}
                sent = await client.post("/v1/predict", **form, headers=headers)
                assert sent.status_code == (400 if status == 200 else status), (names, sent.text)
                if status == 403:
                    refused = next(name for name in names if name not in ("tweets", "movies@1"))
                    assert repr(refused) in several.json()["error"]["message"]
            for model, headers, status in [("secret", team, 403), ("nothing", team, 403), ("tweets", {}, 401)]:
                asked = {"model": model, "prompt": "good", "stream": True}
                assert (await client.post("/v1/completions", json=asked, headers=headers)).status_code == status
            listed = (await client.get("/v1/models", headers=team)).json()["data"]
            assert [card["id"] for card in listed[1:]] == ["movies", "tweets"]
            assert (await client.get("/v1/models/secret", headers=team)).status_code == 403
            assert (await client.get("/v1/explanations/secret", headers=team)).status_code == 403
            assert (await client.get("/v1/explanations/tweets")).status_code == 401
            assert (await client.get("/v1/explanations/tweets", headers=team)).json()["report"] is None
            assert (await client.get("/v1/models")).status_code == 401
            for route in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/refresh"):
                body = {"lora_name": "tweets"}
                assert (await client.post(route, json=body)).status_code == 401
                assert (await client.post(route, json=body, headers=team)).status_code == 403
                assert (await client.post(route, json=body, headers=root)).status_code == 200
            assert (await client.get("/v1/status", headers=team)).status_code == 403
            assert (await client.get("/health")).status_code == 200

    asyncio.run(main())


def test_every_route_but_the_open_ones_asks_for_a_key(world: Path) -> None:
    async def main() -> None:
        async with serving(world) as client:
            paths = (await client.get("/openapi.json")).json()["paths"]
            bodies = {"inputs": "a", "input": "a", "lora_name": "a"}
            for path, methods in paths.items():
                for method in methods:
                    wanted = {"/v1/predict": ["inputs"], "/v1/load_lora_adapter": ["lora_name"]}.get(path, list(bodies))
                    body = {"model": "tweets"} | {name: bodies[name] for name in wanted}
                    own: dict[str, dict[str, Json]] = {
                        "/v1/feedback": {"id": "a", "value": True},
                        "/models/{ref}": {"inputs": "a"},
                        "/v1/completions": {"model": "tweets", "prompt": "a"},
                        "/v1/chat/completions": {"model": "tweets", "messages": [{"role": "user", "content": "a"}]},
                        "/v1/rows": {"model": "tweets", "person": "a", "rows": [{}]},
                        "/v1/forget": {"model": "tweets", "person": "a"},
                    }
                    body = own.get(path, body)
                    response = await client.request(method, path, json=None if method == "get" else body)
                    assert response.status_code == (200 if path == "/health" else 401), (method, path, response.text)

    asyncio.run(main())


def test_keys_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Keys.load(None)
    assert Keys.load(None).of({}).admin
    monkeypatch.setenv(ENVIRONMENT, "one, two")
    keys = Keys.load(None)
    assert not keys.of({"authorization": "bearer two"}).admin
    for headers in ({}, {"authorization": "Basic one"}, {"x-api-key": ""}, {"x-api-key": "\udcff"}):
        with pytest.raises(KeyMissingError):
            keys.of(headers)


@pytest.mark.parametrize("text", ["a: [", "7", "- {key: a, adapter: [b]}", "- {name: a}", "- 5"])
def test_a_wrong_file_is_named_and_no_key_is_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"keys\.yaml"):
        Keys.load(str(tmp_path / "keys.yaml"))
    with pytest.raises(RecipeError, match="missing"):
        Keys.load(str(tmp_path / "missing"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "example.com"])
def test_nobody_opens_an_endpoint_without_keys_by_accident(host: str) -> None:
    with pytest.raises(RecipeError, match="insecure=true"):
        run(AppArgs(store="./nowhere", host=host))
    with pytest.raises(RecipeError, match="give base="):  # allowed, and on to the next question
        run(AppArgs(store="./nowhere", host=host, insecure=True))
