"""Never the wrong adapter: 10,000 requests over 100 adapters on 4 slots while everything about them changes; and bad
adapters asked for in the midst of good traffic. PEFT is the oracle, by the content hash that each answer carries."""

from __future__ import annotations

import asyncio
import random
import resource
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.store import Store, open_store
from tests.unit.serving_world import make_adapter, make_base, peft_probabilities, spoil

TEXTS = ["a lovely day", "the film was very dull and so slow", "good"]
ADAPTERS, SPARE, REQUESTS, CLIENTS = 100, 20, 5_000, 48


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Adapter], dict[str, list[list[float]]]]:
    """The base's folder, 120 adapters, and PEFT's answers to TEXTS by content hash."""
    root = tmp_path_factory.mktemp("churn")
    base = make_base(root / "base")
    adapters, expected = [], {}
    for seed in range(ADAPTERS + SPARE):
        folder = make_adapter(base, root / str(seed), seed=seed, rank=1 + seed % 4, labels=2 + seed % 3)
        adapters.append(Adapter.load(folder))
        expected[adapters[-1].sha256] = peft_probabilities(base, folder, TEXTS)
    return base, adapters, expected


def start(base: Path, store: Path, **options: Any) -> tuple[Endpoint, httpx.AsyncClient]:
    values = {
        "store": str(store),
        "base": str(base),
        "results": str(store.parent / "results"),
        "dtype": "float32",
        "slots": 4,
        "max_rank": 4,
        "ram_bytes": 200_000,
    }
    endpoint = start_endpoint(AppArgs.model_validate(values | options))
    transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
    return endpoint, httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None)


class Traffic:
    """Clients that check every answer, and the versions that an answer may have."""

    def __init__(self, client: httpx.AsyncClient, store: Store, expected: dict[str, list[list[float]]]) -> None:
        self.client, self.store, self.expected = client, store, expected
        self.moves: dict[str, list[int]] = {}  # name -> the versions it was pointed at, in order
        self.acknowledged: dict[str, int] = {}  # name -> how many of these moves have returned
        self.content: dict[str, str] = {}  # ref -> content hash
        self.wrong: list[str] = []
        self.answered = 0
        self.random = random.Random(0)

    async def ask(self, name: str) -> None:
        row = self.random.randrange(len(TEXTS))
        first = self.acknowledged[name] - 1
        body = {"model": name, "inputs": TEXTS[row], "parameters": {"top_k": 9}}
        response = await self.client.post("/v1/predict", json=body)
        allowed = set(self.moves[name][first:])  # any move may have begun and ended meanwhile
        if response.status_code != 200:
            self.wrong.append(response.text)
            return
        ref, sha = response.headers["x-adapter"], response.headers["x-adapter-sha256"]
        scores = {answer["label"]: answer["score"] for answer in response.json()["predictions"][0]}
        got = [scores[f"LABEL_{index}"] for index in range(len(scores))]
        if ref not in {f"{name}@{version}" for version in allowed} or self.content[ref] != sha:
            self.wrong.append(f"{name}: {ref} answered, {allowed} allowed")
        elif got != pytest.approx(self.expected[sha][row], abs=1e-4):
            self.wrong.append(f"{ref}: {got} is not {self.expected[sha][row]}")
        self.answered += 1

    def publish(self, adapter: Adapter, name: str) -> int:
        entry = self.store.put(adapter, name)
        self.content[entry.ref] = entry.sha256
        return entry.version

    async def move(self, name: str, version: int) -> None:
        """Point the name at a version; from the moment this returns, only that one may answer."""
        self.moves[name].append(version)
        await asyncio.to_thread(self.store.alias, name, "champion", version)
        self.acknowledged[name] += 1


def test_no_request_is_ever_answered_by_another_adapter(
    made: tuple[Path, list[Adapter], dict[str, list[list[float]]]], tmp_path: Path
) -> None:
    base, adapters, expected = made
    store = open_store(str(tmp_path / "store"))

    async def main() -> None:
        endpoint, client = start(base, tmp_path / "store")
        traffic = Traffic(client, store, expected)
        names = [f"n{index}" for index in range(ADAPTERS)]
        for name, adapter in zip(names, adapters, strict=False):
            traffic.moves[name], traffic.acknowledged[name] = [traffic.publish(adapter, name)], 1
            store.alias(name, "champion", 1)
        left = iter(range(REQUESTS))
        memory: list[int] = []

        async def work() -> None:
            for number in left:
                hot = traffic.random.random() < 0.3
                await traffic.ask(names[0] if hot else traffic.random.choice(names))
                if number % 1000 == 0:
                    memory.append(resident_kib())

        async def churn() -> None:
            """Re-publish, move aliases back and forth, evict, prewarm, pin."""
            spare = adapters[ADAPTERS:]
            versions: dict[str, list[int]] = {}
            while traffic.answered < REQUESTS:
                name = traffic.random.choice(names[:10])
                if spare and traffic.random.random() < 0.3:
                    version = await asyncio.to_thread(traffic.publish, spare.pop(), name)
                    versions.setdefault(name, [1]).append(version)
                    await traffic.move(name, version)
                elif name in versions:
                    await traffic.move(name, traffic.random.choice(versions[name]))
                for resident in endpoint.cache.residents()[:1]:
                    endpoint.cache.drop(resident.entry)
                await endpoint.prewarm(traffic.random.choice(names))
                await asyncio.sleep(0.01)

        await asyncio.gather(churn(), *(work() for _ in range(CLIENTS)))
        assert traffic.wrong[:3] == []
        assert traffic.answered == REQUESTS
        assert endpoint.cache.stats.evictions > 200  # there was churn
        assert endpoint.cache.stats.failures == 0
        assert all(resident.leases == 0 for resident in endpoint.cache.residents())
        assert (endpoint.gate.inside, endpoint.batcher.waiting) == (0, 0)
        assert endpoint.cache.ram_used <= 200_000
        assert memory[-1] - memory[3] < 30_000  # KiB; flat once warm
        await client.aclose()
        await endpoint.close()

    asyncio.run(main())


def test_bad_adapters_harm_nobody(
    made: tuple[Path, list[Adapter], dict[str, list[list[float]]]], tmp_path: Path
) -> None:
    base, adapters, expected = made
    store = open_store(str(tmp_path / "store"))
    for index in range(25):
        spoil(make_adapter(base, tmp_path / "store" / f"corrupt{index}", seed=index))

    async def main() -> None:
        endpoint, client = start(base, tmp_path / "store")
        traffic = Traffic(client, store, expected)
        names = [f"n{index}" for index in range(4)]
        for name, adapter in zip(names, adapters, strict=False):
            traffic.moves[name], traffic.acknowledged[name] = [traffic.publish(adapter, name)], 1
            await traffic.ask(name)
        statuses: dict[str, set[int]] = {"missing": set(), "corrupt": set()}

        async def bad(kind: str, index: int) -> None:
            for _ in range(4):
                body = {"model": f"{kind}{index}", "inputs": "a day"}
                statuses[kind].add((await client.post("/v1/predict", json=body)).status_code)

        async def good(name: str) -> None:
            for _ in range(50):
                await traffic.ask(name)

        storm = [bad(kind, index) for kind in statuses for index in range(25)]
        await asyncio.gather(*storm, *(good(name) for name in names))
        assert traffic.wrong == []
        assert statuses == {"missing": {404}, "corrupt": {400}}
        assert endpoint.cache.stats.evictions == 0
        assert {resident.entry.name for resident in endpoint.cache.residents()} == set(names)
        traffic.moves["late"], traffic.acknowledged["late"] = [traffic.publish(adapters[9], "late")], 1
        await traffic.ask("late")
        assert traffic.wrong == []
        await client.aclose()
        await endpoint.close()

    asyncio.run(main())


def resident_kib() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024
