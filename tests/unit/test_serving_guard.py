"""What an endpoint refuses before it thinks: other sites, doubled names, coded bodies, bodies without a key."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.errors import RecipeError
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http import faults, keys
from ray_lora.serving.http.keys import ENVIRONMENT, KeyMissingError, Keys
from ray_lora.serving.http.routes import create_app
from tests.unit.serving_world import card, make_adapter, make_base

ASK = {"model": "two", "inputs": "a day"}
JSON = {"content-type": "application/json"}
FILE = """
- {key: team, adapters: ["t*"]}
- {key: nobody, adapters: []}
- {key: root, admin: true}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("guard")
    base = make_base(root / "base")
    card(make_adapter(base, root / "store" / "two", seed=0, labels=3), base, ["bad", "good", "so"])
    make_adapter(base, root / "store" / "hidden", seed=1)
    (root / "keys.yaml").write_text(FILE)
    return root


@asynccontextmanager
async def serving(world: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    folders = {name: str(world / name) for name in ("store", "base", "results")}
    endpoint = start_endpoint(AppArgs.model_validate({**folders, "slots": 2, "max_rank": 4, **options}))
    transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        client.app = transport.app  # type: ignore[attr-defined]
        yield client
    await endpoint.close()


def refused(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"]


def test_pages_of_other_sites_get_nothing(world: Path) -> None:
    async def main() -> None:
        async with serving(world, hosts=["ml.example"]) as client:
            for host, status in [
                ("localhost:8000", 200),
                ("127.0.0.1", 200),
                ("[::1]:8000", 200),
                ("10.0.0.7:8000", 200),  # no name, so none that could be made to mean another machine
                ("ML.example:8000", 200),
                ("evil.example", 403),
                ("evil.example:8000", 403),
                ("localhost.evil.example", 403),
                ("127.0.0.1.evil.example", 403),
                ("[::1", 403),
            ]:
                for method, path, body in [("GET", "/health", None), ("POST", "/v1/predict", ASK), ("GET", "/", None)]:
                    response = await client.request(method, path, json=body, headers={"host": host})
                    assert response.status_code == status, (host, path, response.text)
            for told, status in [
                ({"origin": "http://127.0.0.1:8000"}, 200),
                ({"origin": "https://ml.example"}, 200),
                ({"sec-fetch-site": "same-origin"}, 200),
                ({}, 200),
                ({"origin": "http://evil.example"}, 403),
                ({"origin": "http://localhost:3000"}, 403),  # another program of this machine
                ({"origin": "null"}, 403),
                ({"sec-fetch-site": "cross-site"}, 403),
            ]:
                for path in ("/v1/refresh", "/v1/predict"):
                    sent = None if path == "/v1/refresh" else ASK
                    response = await client.post(path, json=sent, headers=told)
                    assert response.status_code == status, (told, path, response.text)

    asyncio.run(main())


def test_any_name_is_answered_where_keys_guard_or_it_was_said(world: Path) -> None:
    async def main() -> None:
        for options in ({"keys": str(world / "keys.yaml")}, {"insecure": True}, {"host": "0.0.0.0", "insecure": True}):
            async with serving(world, **options) as client:
                there = {"host": "ml.example", "x-api-key": "root"}
                assert (await client.post("/v1/predict", json=ASK, headers=there)).status_code == 200

    asyncio.run(main())


def test_a_name_that_is_said_twice_is_refused_wherever_it_stands(world: Path) -> None:
    async def main() -> None:
        async with serving(world) as client:
            for path, body in [
                ("/v1/predict", b'{"model": "hidden", "inputs": "a", "model": "two"}'),
                ("/v1/predict", b'{"model": "two", "inputs": "a", "parameters": {"top_k": 1, "top_k": 2}}'),
                ("/classify", b'{"model": "two", "input": "a", "input": "b"}'),
                ("/models/two", b'{"inputs": "a", "inputs": "b"}'),
                ("/v1/load_lora_adapter", b'{"lora_name": "two", "lora_name": "two"}'),
            ]:
                refused(await client.post(path, content=body, headers=JSON), 400, "said twice")
            form = {"model": "two", "parameters": '{"top_k": 1, "top_k": 2}'}
            sent = await client.post("/v1/predict", data=form, files={"file": ("a.png", b"a")})
            refused(sent, 400, "said twice")
            assert (await client.post("/v1/predict", json=ASK)).status_code == 200

    asyncio.run(main())


def test_a_coded_body_is_refused(world: Path) -> None:
    async def main() -> None:
        async with serving(world) as client:
            body = json.dumps(ASK).encode()
            for coding, content, status in [
                ("gzip", gzip.compress(body), 415),
                ("gzip", body, 415),
                ("deflate", body, 415),
                ("identity, br", body, 415),
                ("identity", body, 200),
            ]:
                told = JSON | {"content-encoding": coding}
                response = await client.post("/v1/predict", content=content, headers=told)
                assert response.status_code == status, (coding, response.text)

    asyncio.run(main())


def test_without_a_key_no_body_is_read(world: Path) -> None:
    async def main() -> None:
        async with serving(world, keys=str(world / "keys.yaml")) as client:

            async def body() -> AsyncIterator[bytes]:
                raise AssertionError("the body was read")
                yield b""

            for path in ("/v1/predict", "/models/two", "/v1/load_lora_adapter", "/v1/audio/transcriptions"):
                for told in ({}, {"x-api-key": "wrong"}):
                    refused(await client.post(path, content=body(), headers=JSON | told), 401)

    asyncio.run(main())


def test_a_key_for_no_adapter_is_for_no_base(world: Path) -> None:
    async def main() -> None:
        async with serving(world, keys=str(world / "keys.yaml")) as client:
            for key, status in [("nobody", 403), ("team", 200), ("root", 200)]:
                for path, body in [
                    ("/v1/embeddings", {"model": "base", "input": "a"}),
                    ("/models/base", {"inputs": "a"}),
                ]:
                    response = await client.post(path, json=body, headers={"x-api-key": key})
                    assert response.status_code == status, (key, path, response.text)

    asyncio.run(main())


def test_messages_say_no_names_of_others_and_no_places(world: Path) -> None:
    async def main() -> None:
        async with serving(world, keys=str(world / "keys.yaml"), max_rank=2) as client:
            root, team = {"x-api-key": "root"}, {"x-api-key": "team"}
            near = await client.post("/v1/predict", json=ASK | {"model": "hiddem"}, headers=root)
            refused(near, 404, "did you mean 'hidden'")
            far = await client.post("/v1/predict", json=ASK | {"model": "thidden"}, headers=team)
            refused(far, 404, "'thidden' is not in the store")
            long, path = "é" * 100_000, "/etc/secret/folder/adapter"
            for body in (
                {"model": long, "inputs": "a"},
                {"model": "two", "inputs": "a", long: 1},
                {"model": "two", "inputs": "a", "parameters": {long: 1}},
                {"model": "two", "inputs": "a", "parameters": {"function_to_apply": long}},
                {"model": "two", "inputs": {long: "a"}},
                {"model": [long, long], "inputs": "a"},
                {"model": "two", "inputs": "a", "user": long},
                {"model": "two", "inputs": "a", "user": "a\nb"},
            ):
                response = await client.post("/v1/predict", json=body, headers=root)
                assert response.status_code in (400, 404), response.text
                assert len(response.json()["error"]["message"]) <= 400
            for answer in (
                near,
                far,
                await client.post("/v1/predict", json=ASK, headers=root),
                await client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": path}, headers=root),
                await client.get(f"/v1/models/{'x' * 9000}", headers=root),
                await client.get(f"/{'x' * 9000}", headers=root),
            ):
                assert answer.status_code >= 400
                assert str(world) not in answer.text
                assert "/etc/secret" not in answer.text
                assert len(answer.json()["error"]["message"]) <= 400

    asyncio.run(main())


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("/srv/store/tweets/1: torn", "…/1: torn"),
        ("the folder '/srv/a b/c' is away", "the folder '…/a b/c' is away"),
        ("s3://bucket/all cannot be read", "the store cannot be read"),
        ("sqlite:////srv/mlflow.db is locked", "the store is locked"),
        ("ask /v1/load_lora_adapter or /v1/predict", "ask /v1/load_lora_adapter or /v1/predict"),
        ("a rank of 1/2/3", "a rank of 1/2/3"),
        ("x" * 900, "x" * 399 + "…"),
    ],
)
def test_of_a_place_its_last_part_is_said(message: str, said: str) -> None:
    assert faults.plain(message) == said


def test_head_is_answered_as_get_without_the_body(world: Path) -> None:
    async def main() -> None:
        async with serving(world) as client:
            for path in ("/", "/health", "/v1/models", "/v1/models/two", "/v1/status"):
                head, get = await client.head(path), await client.get(path)
                assert (head.status_code, head.content) == (200, b""), path
                assert head.headers["content-type"] == get.headers["content-type"]
            assert (await client.head("/v1/models/none")).status_code == 404
            refused(await client.put("/v1/models"), 405)

    asyncio.run(main())


def test_fields_of_others_are_done_or_refused(world: Path) -> None:
    async def main() -> None:
        async with serving(world) as client:

            async def ask(**parameters: Any) -> Any:
                body = ASK | {"parameters": parameters}
                return (await client.post("/v1/predict", json=body)).json()["predictions"][0]

            best, every = await ask(), await ask(top_k=None)
            assert [answer["label"] for answer in every] == [answer["label"] for answer in await ask(top_k=3)]
            assert len(every) == 3
            assert best == every[0]
            plain = await client.post("/classify", json={"model": "two", "input": "a day"})
            for field in ("use_activation", "activation", "softmax"):
                body = {"model": "two", "input": "a day", field: True}
                assert (await client.post("/classify", json=body)).json()["data"] == plain.json()["data"]
                refused(await client.post("/classify", json=body | {field: False}), 400, field)
            for route in ("/classify", "/v1/embeddings"):
                model = "two" if route == "/classify" else "base"
                for field, value in [("truncate_prompt_tokens", 1), ("add_special_tokens", False), ("messages", [])]:
                    refused(await client.post(route, json={"model": model, "input": "a", field: value}), 400, field)
                body = {"model": model, "input": "a", "priority": 1, "truncate_prompt_tokens": None}
                assert (await client.post(route, json=body)).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize("key", ["sk-café", "sk 1", "sk\t1", ""])
def test_a_key_that_clients_would_code_each_in_its_way_is_refused(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps([{"key": key, "adapters": ["two"]}]))
    with pytest.raises(RecipeError, match="wrong key") as refusal:
        Keys.load(str(file))
    assert key == "" or key not in str(refusal.value)
    if key.strip() and "\t" not in key:
        monkeypatch.setenv(ENVIRONMENT, key)
        with pytest.raises(RecipeError, match=ENVIRONMENT):
            Keys.load(None)


def test_an_empty_file_of_keys_is_no_open_door(tmp_path: Path) -> None:
    for text in ("", "[]", "{}"):
        (tmp_path / "keys.yaml").write_text(text)
        with pytest.raises(RecipeError, match="holds no list of keys"):
            Keys.load(str(tmp_path / "keys.yaml"))


def test_keys_are_read_again_when_their_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "AGAIN_S", 0.0)
    file = tmp_path / "keys.yaml"
    file.write_text("- {key: one}")
    held = Keys.load(str(file))

    def known(key: str) -> bool:
        try:
            return held.of({"x-api-key": key}).key == key
        except KeyMissingError:
            return False

    assert (known("one"), known("two")) == (True, False)
    file.write_text("- {key: two, name: the second}")
    assert (known("one"), known("two")) == (False, True)
    for broken in ("- {key: [", "[]", "- {key: one, adapter: [a]}"):
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            file.write_text(broken)
            assert (known("one"), known("two")) == (False, True)
            assert (known("one"), known("two")) == (False, True)
        assert len(caplog.records) == 1  # said once, not with each request
        assert "stay as they were" in caplog.text
    file.unlink()
    assert (known("one"), known("two")) == (False, True)
    file.write_text("- {key: one}")
    assert (known("one"), known("two")) == (True, False)


def test_the_page_of_routes_asks_no_other_site(world: Path) -> None:
    async def main() -> None:
        async with serving(world) as client:
            page = await client.get("/docs")
            assert page.status_code == 200
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert "http://" not in page.text
            assert "https://" not in page.text
            assert "<script" not in page.text
            for path in (await client.get("/openapi.json")).json()["paths"]:
                assert f" {path}</code>" in page.text
            refused(await client.get("/redoc"), 404)

    asyncio.run(main())
