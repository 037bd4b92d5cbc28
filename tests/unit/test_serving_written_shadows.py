"""Shadows of answers that are written token by token: recorded, and nobody else's business."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.serving.trials.compare import compare, read_results
from ray_lora.store import open_store, steer
from tests.unit.writing_world import Alone, make_adapter, make_base

PROMPT = "the capital of Peru is"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shadows")
    make_base(root / "base")
    for seed in range(2):
        make_adapter(root / "base", root / str(seed), seed=seed)
    make_adapter(root / "base", root / "wide", seed=3, rank=9)
    return root


@asynccontextmanager
async def serving(made: Path, folder: Path, shadow: int, **more: Any) -> AsyncIterator[tuple[Any, Endpoint]]:
    """Version 1 answers; 2 has its weights, 3 others, 4 cannot be mounted."""
    store = open_store(str(folder / "store"))
    for name in ("0", "0", "1", "wide"):
        store.put(Adapter.load(made / name), "chat")
    store.point("chat", steer.promote(1))
    store.point("chat", steer.shadow(shadow))
    folders = {"store": str(folder / "store"), "base": str(made / "base"), "results": str(folder / "results")}
    endpoint = start_endpoint(AppArgs(**folders, dtype="float32", max_rank=8, **more))
    transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
        yield client, endpoint
    await endpoint.close()


async def until_quiet(endpoint: Endpoint) -> None:
    while endpoint.shadows.inside:
        await asyncio.sleep(0.01)
    writer = endpoint.speaker.copies.writer
    assert (writer.running, writer.waiting, endpoint.gate.inside) == (0, 0, 0)
    assert not any(resident.leases for resident in endpoint.cache.residents())


def recorded(folder: Path, version: int) -> dict[str, Any]:
    rows = compare(read_results(folder / "results"), "chat")["versions"]
    found: dict[str, Any] = next(row for row in rows if (row["version"], row["variant"]) == (version, "shadow"))
    return found


@pytest.mark.parametrize(("shadow", "label"), [(2, "agrees"), (3, "differs")])
def test_a_shadow_writes_what_it_would_have_and_is_compared(
    made: Path, tmp_path: Path, shadow: int, label: str
) -> None:
    alone = Alone(made / "base", made / "0")

    async def main() -> None:
        async with serving(made, tmp_path, shadow) as (client, endpoint):
            told = {"model": "chat", "max_tokens": 9, "temperature": 0, "stop": ["zzz"]}
            messages = [{"role": "user", "content": "who says"}]
            whole = await client.post("/v1/completions", json=told | {"prompt": [PROMPT, "who"], "n": 2})
            texts = [choice["text"] for choice in whole.json()["choices"]]
            assert texts == [alone.text(prompt, 9) for prompt in (PROMPT, PROMPT, "who", "who")]
            await until_quiet(endpoint)
            chat = await client.post("/v1/chat/completions", json=told | {"messages": messages, "stream": True})
            assert chat.status_code == 200
            await until_quiet(endpoint)
            drawn = told | {"prompt": PROMPT, "temperature": 1.5, "seed": 1}
            assert (await client.post("/v1/completions", json=drawn)).status_code == 200
            await until_quiet(endpoint)
            assert (await client.post("/v1/completions", json=told | {"prompt": "x", "model": "chat@1"})).is_success
            assert endpoint.shadows.inside == 0  # a named version is not tried
        row = recorded(tmp_path, shadow)
        assert (row["requests"], row["errors"], row["dropped"]) == (3, 0, 0)
        assert row["labels"] == {label: 3}  # two prompts and a chat; what is drawn is not compared

    asyncio.run(main())


def test_a_shadow_that_cannot_write_fails_alone(made: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(made, tmp_path, 4) as (client, endpoint):
            told = {"model": "chat", "prompt": PROMPT, "max_tokens": 3}
            assert (await client.post("/v1/completions", json=told)).status_code == 200
            await until_quiet(endpoint)
        assert (recorded(tmp_path, 4)["requests"], recorded(tmp_path, 4)["errors"]) == (1, 1)

    asyncio.run(main())


def test_a_copy_that_has_no_room_is_dropped(made: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(made, tmp_path, 2, writing_tokens=80) as (client, endpoint):
            told = {"model": "chat", "prompt": PROMPT, "max_tokens": 40}
            assert (await client.post("/v1/completions", json=told)).status_code == 200
            await until_quiet(endpoint)
        row = recorded(tmp_path, 2)
        assert (row["requests"], row["errors"], row["dropped"]) == (0, 0, 1)

    asyncio.run(main())
