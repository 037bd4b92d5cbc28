"""Prompts that begin alike are read once, and never with what another content has kept."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine
from ray_lora.inference.decoder import Decoder
from ray_lora.inference.prefixes import Kept, Prefixes
from ray_lora.inference.sampling import Sampling
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.store import open_store, steer
from tests.unit.bases import CAUSAL, open_base
from tests.unit.writing_world import Alone, make_adapter, make_base

PROMPT = list(range(5, 27))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prefixes")
    make_base(root / "base")
    for seed in range(3):
        make_adapter(root / "base", root / str(seed), seed=seed)
    return root


@pytest.fixture
def engine(world: Path) -> Iterator[AdapterEngine]:
    engine = AdapterEngine(open_base(world / "base"), slots=2, max_rank=4)
    yield engine
    engine.close()


def decoder_of(engine: AdapterEngine, world: Path, most: int = 1 << 20) -> Decoder:
    words = engine.base.config.vocab_size
    return Decoder(engine, HeadSpec(CAUSAL, words), capacity=500, piece=8, prefix_bytes=most)


def goes_on(decoder: Decoder, slot: int, ids: list[int], owner: str, n: int = 1) -> list[list[int]]:
    sampling = Sampling(max_tokens=6, n=n)
    rows = decoder.join(slot, ids, sampling, {1}, owner)
    found: dict[int, list[int]] = {row: [] for row in rows}
    while decoder.rows:
        for row, one in decoder.step().items():
            found[row].append(one.token)
    assert decoder.kept == 0
    return [found[row] for row in rows]


def test_what_is_kept_changes_no_token(world: Path, engine: AdapterEngine) -> None:
    decoder, adapter = decoder_of(engine, world), Adapter.load(world / "0")
    slot, alone = engine.load(adapter), Alone(world / "base", world / "0")
    for number, ids in enumerate([PROMPT, PROMPT, [*PROMPT, 7, 8, 9], [*PROMPT[:18], 9], PROMPT[:17]]):
        before = decoder.prefixes.reused
        assert goes_on(decoder, slot, ids, adapter.sha256) == [alone.ids(ids, 6)], number
        assert decoder.prefixes.reused - before == [0, 21, 22, 18, 16][number]
    assert goes_on(decoder, slot, PROMPT, adapter.sha256, n=2) == [alone.ids(PROMPT, 6)] * 2
    few = decoder.prefixes.reused
    goes_on(decoder, slot, PROMPT[:9], adapter.sha256)
    assert decoder.prefixes.reused == few  # not worth it


def test_a_slot_that_holds_another_content_gets_nothing_of_the_one_before(world: Path, engine: AdapterEngine) -> None:
    decoder = decoder_of(engine, world)
    for name in ("0", "1", "0", "2"):
        adapter = Adapter.load(world / name)
        slot = engine.load(adapter)
        assert slot == 1
        expected = Alone(world / "base", world / name).ids(PROMPT, 6)
        for _ in range(2):
            assert goes_on(decoder, slot, PROMPT, adapter.sha256) == [expected]
        engine.evict(slot)
    assert goes_on(decoder, 0, PROMPT, engine.base.fingerprint) == [Alone(world / "base", None).ids(PROMPT, 6)]
    assert decoder.prefixes.reused == 5 * 21


def kept_of(tokens: int) -> Kept:
    return {0: [torch.zeros(1, tokens, 1), torch.zeros(1, tokens, 1)]}  # 8 bytes a token


def test_memory_is_bounded_and_what_was_used_longest_ago_goes_first() -> None:
    prefixes = Prefixes(8 * 50)
    prefixes.keep("a", range(20), kept_of(20))
    prefixes.keep("b", range(20), kept_of(20))
    assert prefixes.longest("a", range(30)) is not None
    prefixes.keep("c", range(20), kept_of(20))
    assert (prefixes.bytes, len(prefixes), prefixes.longest("b", range(30))) == (8 * 40, 2, None)
    prefixes.keep("c", range(25), kept_of(25))  # in place of the shorter one
    assert (prefixes.bytes, len(prefixes)) == (8 * 45, 2)
    prefixes.keep("d", range(60), kept_of(60))
    assert (prefixes.bytes, prefixes.longest("d", range(60))) == (8 * 45, None)
    assert prefixes.holds("c", range(24))
    assert not prefixes.holds("d", range(24))
    assert prefixes.forget({"c"}) == 1
    assert (prefixes.bytes, prefixes.longest("c", range(30))) == (8 * 20, None)
    assert prefixes.longest("a", range(30)) is not None


def test_nothing_is_kept_where_there_is_no_room(world: Path, engine: AdapterEngine) -> None:
    decoder = decoder_of(engine, world, most=0)
    for _ in range(2):
        goes_on(decoder, 0, PROMPT, "base")
    assert (decoder.prefixes.bytes, decoder.prefixes.reused) == (0, 0)


def test_names_aliases_and_versions_that_change_get_their_own(world: Path, tmp_path: Path) -> None:
    """One prompt, asked before and after each change of what a ref means; one slot for all contents."""
    alone = [Alone(world / "base", world / str(seed)) for seed in range(3)]
    prompt = alone[0].tokenizer.decode(PROMPT)
    store = open_store(str(tmp_path / "store"))
    for seed in range(2):
        store.put(Adapter.load(world / str(seed)), "name")

    async def main() -> None:
        args = AppArgs(store=str(tmp_path / "store"), base=str(world / "base"), dtype="float32", slots=1)
        endpoint = start_endpoint(args.model_copy(update={"results": str(tmp_path / "results")}))
        transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:

            async def check(ref: str, seed: int) -> None:
                asked: dict[str, Any] = {"model": ref, "prompt": prompt, "max_tokens": 6, "temperature": 0}
                for _ in range(2):
                    answer = await client.post("/v1/completions", json=asked)
                    assert answer.json()["choices"][0]["text"] == alone[seed].text(prompt, 6), (ref, seed)

            await check("name", 1)
            await check("name@1", 0)
            await asyncio.to_thread(store.point, "name", steer.promote(1))
            await check("name", 0)
            await asyncio.to_thread(store.point, "name", steer.promote(2))
            await check("name", 1)
            body = {"lora_name": "name", "lora_path": str(world / "2"), "load_inplace": True}
            assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
            await check("name@3", 2)
            assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "name"})).status_code == 200
            assert (await client.post("/v1/load_lora_adapter", json={"lora_name": "name"})).status_code == 200
            await check("name", 1)
            shutil.rmtree(tmp_path / "store" / "name" / "1")
            shutil.copytree(world / "2", tmp_path / "store" / "name" / "1")
            await client.post("/v1/refresh")
            await check("name@1", 2)
            steps: Any = endpoint.speaker.writer._turns._steps
            assert steps.prefixes.reused > 0
        await endpoint.close()

    asyncio.run(main())
