"""Texts written on Ray Serve: events as they come, of the base that takes HTTP and of another; clients that leave."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from ray_lora.serving import AppArgs, run
from ray_lora.store import open_store
from tests.unit.writing_world import Alone, make_adapter, make_base

PROMPT = "the capital of Peru is"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("writing")
    for seed, name in enumerate(("one", "two")):
        make_adapter(make_base(root / f"base-{name}", seed), root / "store" / name, seed=seed)
    return root


@pytest.fixture(scope="module")
def address(world: Path) -> Iterator[str]:
    from ray import serve

    bases = [{"model": str(world / f"base-{name}"), "num_cpus": 0.5} for name in ("one", "two")]
    folders = {"store": str(world / "store"), "results": str(world / "results")}
    told = {**folders, "bases": bases, "dtype": "float32", "slots": 2, "port": 0}
    assert {entry.name for entry in open_store(folders["store"]).list()} == {"one", "two"}
    yield run(AppArgs.model_validate(told), block=False)
    serve.shutdown()


@pytest.mark.parametrize("name", ["one", "two"])
def test_events_come_one_by_one_from_either_base(world: Path, address: str, name: str) -> None:
    expected = Alone(world / f"base-{name}", world / "store" / name).text(PROMPT, 12)
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=None) as client:
        asked = {"model": name, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
        assert client.completions.create(**asked).choices[0].text == expected  # type: ignore[call-overload]
        assert "".join(one.choices[0].text for one in client.completions.create(**asked, stream=True)) == expected  # type: ignore[call-overload]
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.completions.create(**(asked | {"temperature": 9}), stream=True)  # type: ignore[call-overload]
    with httpx.stream("POST", f"{address}/v1/completions", json=asked | {"stream": True}, timeout=None) as answer:
        assert answer.headers["x-adapter"] == f"{name}@1"
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert len(answer.headers.get_list("x-request-id")) == 1
        pieces = [piece for piece in answer.iter_raw() if piece]
    assert len(pieces) > 3
    assert all(json.loads(line[6:])["sha256"] for line in b"".join(pieces).splitlines() if line.startswith(b"data: {"))


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_leaves_nothing_behind(address: str, name: str, stream: bool) -> None:
    async def main() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=None) as client:
            asked = {"model": name, "prompt": ["says"] * 8, "n": 4, "temperature": 2, "max_tokens": 60, "seed": 1}

            async def go() -> None:
                async with client.stream("POST", "/v1/completions", json=asked | {"stream": stream}) as answer:
                    async for _ in answer.aiter_raw():
                        pass

            gone = [asyncio.create_task(go()) for _ in range(3)]
            await asyncio.sleep(0.2)
            for task in gone:
                task.cancel()
            await asyncio.gather(*gone, return_exceptions=True)
            while True:
                status = (await client.get("/v1/status")).json()
                all_of = [status, *status["others"]]
                if not any(one["rows_inside"] or one["answers_written"] or one["answers_waiting"] for one in all_of):
                    break
                await asyncio.sleep(0.02)
            assert not any(resident["leases"] for one in all_of for resident in one["residents"])

    asyncio.run(main())
