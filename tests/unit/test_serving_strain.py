"""Bodies that never come, texts that are far too long, a disk that is full, broken adapters: others go on."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.draining import inside
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.gate import OverloadedError
from ray_lora.serving.http.limits import BodyLimit
from ray_lora.serving.http.routes import create_app
from ray_lora.store.local import LocalFiles
from tests.unit.serving_world import card, make_adapter, make_base, spoil

ASK = {"model": "two", "inputs": "a day"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("strain")
    base = make_base(root / "base")
    card(make_adapter(base, root / "store" / "two", seed=0), base, ["bad", "good"])
    make_adapter(base, root / "new", seed=3)
    return root


@asynccontextmanager
async def serving(world: Path, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    folders = {name: str(world / name) for name in ("store", "base", "results")}
    endpoint = start_endpoint(AppArgs.model_validate({**folders, "slots": 2, "max_rank": 4, **options}))
    transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
        client.endpoint = endpoint  # type: ignore[attr-defined]
        yield client
    await endpoint.close()


def refused(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"]


def test_bodies_that_never_come_are_a_408_and_others_are_answered_meanwhile(world: Path) -> None:
    async def main() -> None:
        async with serving(world, max_waiting=4, body_s=1.0) as client:
            began, over = asyncio.Event(), asyncio.Event()

            async def never() -> AsyncIterator[bytes]:
                yield b'{"model": "two", '
                began.set()
                await over.wait()

            slow = [asyncio.create_task(client.post("/v1/predict", content=never(), headers=JSON)) for _ in range(40)]
            await began.wait()
            good = await client.post("/v1/predict", json=ASK)
            assert good.status_code == 200
            assert not any(task.done() for task in slow)
            for response in await asyncio.gather(*slow):
                refused(response, 408, "within 1 s")
            over.set()
            assert (await client.post("/v1/predict", json=ASK)).json() == good.json()

    asyncio.run(main())


def test_bodies_on_their_way_hold_so_much_memory_and_no_more(world: Path) -> None:
    async def main() -> None:
        async with serving(world, max_body_bytes=1000, body_s=1.0) as client:
            over = asyncio.Event()

            async def slow() -> AsyncIterator[bytes]:
                yield b"x" * 990
                await over.wait()

            asked = [client.post("/v1/predict", content=slow(), headers=JSON) for _ in range(40)]
            answers = await asyncio.gather(*asked)
            late = [answer for answer in answers if answer.status_code == 408]
            assert len(late) == 32  # 32 bodies of the largest size
            for answer in answers:
                if answer not in late:
                    refused(answer, 503, "on their way")
                    assert answer.headers["retry-after"] == "1"
            assert (await client.post("/v1/predict", json=ASK)).status_code == 200

    asyncio.run(main())


def test_bodies_that_come_beside_each_other_are_all_counted_and_given_back() -> None:
    async def main() -> None:
        taken: list[bytes] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            taken.append((await receive())["body"])

        async def send(message: Any) -> None:
            raise AssertionError("nobody is refused")

        limit, queues = BodyLimit(app, largest=100), [asyncio.Queue[Any]() for _ in range(3)]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        asked = [asyncio.create_task(limit(scope, queue.get, send)) for queue in queues]

        async def give(to: int, size: int, more: bool) -> None:
            queues[to].put_nowait({"type": "http.request", "body": b"x" * size, "more_body": more})
            for _ in range(10):  # turns of the loop, in which it is taken
                await asyncio.sleep(0)

        held = []
        for to, size, more in [(0, 10, True), (1, 20, True), (2, 30, True), (1, 1, False), (0, 2, False)]:
            await give(to, size, more)
            held.append(limit.held)
        assert held == [10, 30, 60, 40, 30]
        await give(2, 3, False)
        await asyncio.gather(*asked)
        assert limit.held == 0
        assert sorted(map(len, taken)) == [10, 20, 30]

    asyncio.run(main())


def test_more_text_than_is_read_is_refused_before_it_is_read(world: Path) -> None:
    async def main() -> None:
        async with serving(world, max_text_chars=1000) as client:
            for path, body in [
                ("/v1/predict", {"model": "two", "inputs": "good day " * 112}),
                ("/v1/predict", {"model": "two", "inputs": ["good day " * 28] * 4}),
                ("/v1/predict", {"model": ["two"], "inputs": ["good day " * 28] * 4}),
                ("/classify", {"model": "two", "input": "x" * 1001}),
                ("/models/two", {"inputs": "x" * 1001}),
                ("/v1/embeddings", {"model": "base", "input": ["x" * 501] * 2}),
                ("/models/base", {"inputs": "x" * 1001}),
            ]:
                refused(await client.post(path, json=body), 413, "at most 1000")
            whole = await client.post("/v1/predict", json={"model": "two", "inputs": "good day " * 111})
            assert whole.status_code == 200

    asyncio.run(main())


def test_a_full_disk_is_said_and_answers_go_on(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main() -> None:
        async with serving(world, results=str(tmp_path)) as client:
            replica = client.endpoint.results.replica  # type: ignore[attr-defined]
            for kind in ("ids", "feedback.jsonl"):
                (tmp_path / f"{replica}.{kind}").symlink_to("/dev/full")  # a disk without room, as Linux has it
            good = await client.post("/v1/predict", json=ASK)
            assert good.status_code == 200
            told = {"id": good.headers["x-request-id"], "value": True}
            refused(await client.post("/v1/feedback", json=told), 507, "disk is full")
            with monkeypatch.context() as patch:  # the store's, which a test cannot fill
                patch.setattr(LocalFiles, "write", no_room)
                patch.setattr(LocalFiles, "publish", no_room)
                refused(await client.post("/v1/unload_lora_adapter", json={"lora_name": "two"}), 507, "disk is full")
                load = {"lora_name": "new", "lora_path": str(world / "new")}
                refused(await client.post("/v1/load_lora_adapter", json=load), 507, "disk is full")
                again = await client.post("/v1/predict", json=ASK)
                assert again.json() == good.json()
            (tmp_path / f"{replica}.feedback.jsonl").unlink()
            assert (await client.post("/v1/feedback", json=told)).status_code == 200

    asyncio.run(main())


def test_broken_adapters_are_warned_of_once_and_spoil_no_list(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "store"
    card(make_adapter(world / "base", store / "good", seed=5), world / "base", ["bad", "good"])
    spoil(make_adapter(world / "base", store / "torn", seed=6))
    (make_adapter(world / "base", store / "wrong", seed=7) / "adapter_config.json").write_text("{")
    cards = {
        "nested": '{"a":' * 9000,
        "number": '{"metrics": {"a": 1e999}}',
        "long": '{"base": "' + "x" * 200_000 + '"}',
        "list": "[]",
    }
    for name, text in cards.items():
        (make_adapter(world / "base", store / name, seed=8) / "ray_lora.json").write_text(text)

    async def main() -> None:
        async with serving(world, store=str(store)) as client:
            with caplog.at_level(logging.WARNING):
                caplog.clear()
                listed = await client.get("/v1/models")
                first = [record for record in caplog.records if "left out" in record.getMessage()]
                assert listed.status_code == 200
                assert {"good"} <= {item["id"] for item in listed.json()["data"]}
                caplog.clear()
                for _ in range(3):
                    assert (await client.get("/v1/models")).json() == listed.json()
                assert first
                assert not [record for record in caplog.records if "left out" in record.getMessage()]
            for name in ("torn", "wrong", *cards):
                response = await client.post("/v1/predict", json=ASK | {"model": name})
                assert 400 <= response.status_code < 500 or response.status_code == 200, (name, response.text)
                assert len(response.text) < 1000
            assert (await client.post("/v1/predict", json=ASK | {"model": "good"})).status_code == 200

    asyncio.run(main())


def test_the_deadline_counts_what_choosing_took(world: Path) -> None:
    async def main() -> None:
        async with serving(world, deadline_s=30) as client:
            endpoint: Endpoint = client.endpoint  # type: ignore[attr-defined]
            choice = await endpoint.names.choose("two")
            assert (await endpoint.predict(choice, ["a day"], {})).entry.ref == "two@1"
            late = replace(choice, began=choice.began - 30)  # as if the store had taken so long
            with pytest.raises(OverloadedError, match="no answer within 30 s"):
                await endpoint.predict(late, ["a day"], {})

    asyncio.run(main())


def test_requests_inside_are_those_of_haproxy_s_backends() -> None:
    told = "# pxname,svname,qcur,qmax,scur,smax\nhttp_frontend,FRONTEND,,,9,9\nray_lora,SERVE-1,0,0,2,5\n"
    assert inside(told + "ray_lora,BACKEND,0,0,2,5\ndefault_backend,BACKEND,0,0,1,1\n") == 3
    assert inside(told + "ray_lora,BACKEND,0,0,0,5\n") == 0
