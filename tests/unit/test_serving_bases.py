"""Several bases and replicas behind one address, linked in this process as Serve links them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import fingerprint
from ray_lora.errors import RecipeError
from ray_lora.serving.args import AppArgs, BaseArgs
from ray_lora.serving.cluster.bases import choose_bases
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http.relay import Asked, BaseAwayError, Told, ask
from ray_lora.serving.http.routes import create_app
from ray_lora.serving.peers import answers_of, obey
from ray_lora.serving.trials.compare import compare, read_results
from ray_lora.store import open_store, steer
from tests.unit.serving_world import card, make_adapter, make_base, peft_probabilities

TEXTS = ["a lovely day", "the film was very dull and so slow", "good", "not bad not good"]
NAMES = {"alpha": ["a-one", "a-two", "a-plain"], "beta": ["b-one", "b-two", "b-plain"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """alpha/ and beta/ are bases, gamma/ one that nobody serves; store/ holds adapters of all three."""
    root = tmp_path_factory.mktemp("bases")
    for seed, (base, names) in enumerate({**NAMES, "gamma": ["c-one"]}.items()):
        make_base(root / base, seed=seed)
        for number, name in enumerate(names):
            folder = make_adapter(root / base, root / "store" / name, seed=10 * seed + number, labels=2 + number)
            if "plain" not in name:
                labels = [f"LABEL_{index}" for index in range(2 + number)]
                card(folder, root / base, labels, fingerprint=fingerprint(root / base))
    return root


class Link:
    """What Handles are to replicas: requests to one replica of a base, commands to all of them."""

    def __init__(self, own: str, replicas: dict[str, list[tuple[Endpoint, FastAPI]]]) -> None:
        self.bases: Sequence[str] = [base for base in replicas if base != own]
        self.replicas, self.away = replicas, False

    async def ask(self, base: str, asked: Asked) -> Told:
        if self.away:
            raise BaseAwayError(f"base {base!r} does not answer now")
        return await ask(random.choice(self.replicas[base])[1], asked)

    async def tell(self, base: str | None, command: str, *arguments: Any) -> list[Any]:
        chosen = self.replicas if base is None else {base: self.replicas[base]}
        everyone = [endpoint for replicas in chosen.values() for endpoint, _ in replicas]
        return answers_of([await obey(endpoint, command, arguments) for endpoint in everyone])


@asynccontextmanager
async def serving(world: Path, replicas: int = 1, **options: Any) -> AsyncIterator[list[httpx.AsyncClient]]:
    """A client for each replica of alpha, the base that takes HTTP; beta has as many replicas."""
    values = {"store": str(world / "store"), "results": str(world / "results"), "dtype": "float32", "max_rank": 4}
    made: dict[str, list[tuple[Endpoint, FastAPI]]] = {}
    for base in NAMES:
        args = AppArgs.model_validate(values | {"base": str(world / base), "slots": 6} | options)
        endpoints = [start_endpoint(args) for _ in range(replicas)]
        made[str(world / base)] = [(endpoint, create_app(endpoint, base == "alpha")) for endpoint in endpoints]
    clients = []
    for endpoint, app in made[str(world / "alpha")]:
        endpoint.names.peers = Link(str(world / "alpha"), made)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        clients.append(httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None))
        clients[-1].made = made  # type: ignore[attr-defined]
    yield clients
    for client in clients:
        await client.aclose()
    for endpoints_of in made.values():
        for endpoint, _ in endpoints_of:
            await endpoint.close()


def on(world: Path, main: Callable[..., Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with serving(world, **options) as clients:
            await main(*clients)

    asyncio.run(run())


async def ask_for(client: httpx.AsyncClient, name: str, **more: Any) -> httpx.Response:
    return await client.post("/v1/predict", json={"model": name, "inputs": TEXTS, "parameters": {"top_k": 9}} | more)


def test_every_adapter_answers_on_its_own_base(world: Path) -> None:
    expected = {
        name: peft_probabilities(world / base, world / "store" / name, TEXTS)
        for base, names in NAMES.items()
        for name in names
    }

    async def main(client: httpx.AsyncClient) -> None:
        async def check(name: str) -> None:
            response = await ask_for(client, name)
            assert response.status_code == 200, response.text
            assert response.headers["x-adapter"] == f"{name}@1"
            for ranked, wanted in zip(response.json()["predictions"], expected[name], strict=True):
                scores = {item["label"]: item["score"] for item in ranked}
                assert [scores[f"LABEL_{i}"] for i in range(len(wanted))] == pytest.approx(wanted, abs=1e-4)

        await asyncio.gather(*(check(name) for _ in range(5) for name in expected))
        ((alpha, _), *_), ((beta, _), *_) = client.made.values()  # type: ignore[attr-defined]
        assert {r.entry.name for r in alpha.cache.residents()} == set(NAMES["alpha"])
        assert {r.entry.name for r in beta.cache.residents()} == set(NAMES["beta"])

    on(world, main)


def test_a_relayed_answer_is_the_other_base_s_own(world: Path) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        (_, ((_, app), *_)) = client.made.values()  # type: ignore[attr-defined]
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as direct:
            good = {"model": "b-one", "input": "good"}
            for method, path, options in [
                ("POST", "/v1/predict", {"json": {"model": "b-one", "inputs": TEXTS}}),
                ("POST", "/v1/predict?x=%20y", {"content": '{"model": "b-one", "inputs": "g\\u00f6öd"}'}),
                ("POST", "/v1/predict", {"json": {"inputs": "a"}, "headers": {"serve_multiplexed_model_id": "b-two"}}),
                ("POST", "/v1/predict", {"json": {"model": "b-one", "inputs": [1]}}),
                ("POST", "/v1/predict", {"json": {"model": "b-one", "inputs": ["a"], "parameters": {"top_k": "x"}}}),
                ("POST", "/v1/predict", {"json": {"model": "b-one@7", "inputs": ["a"]}}),
                ("GET", "/v1/models/b-two@1", {}),
                ("POST", "/v1/embeddings", {"json": {"model": str(world / "beta"), "input": TEXTS}}),
                ("POST", "/v1/embeddings", {"json": good}),
            ]:
                kind = {"content-type": "application/json", "x-request-id": "mine", **options.pop("headers", {})}
                one = await client.request(method, path, headers=kind, **options)
                two = await direct.request(method, path, headers=kind, **options)
                assert (one.status_code, one.text) == (two.status_code, two.text)
                assert one.headers.get_list("x-request-id") == ["mine"]
                unnamed = [pair for pair in one.headers.multi_items() if pair[0] != "x-request-id"]
                assert unnamed == two.headers.multi_items()
            classified = (await client.post("/classify", json=good)).json()
            assert classified["data"][0]["num_classes"] == 2

    on(world, main)


def test_models_of_all_bases_are_listed(world: Path) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        first, second, *adapters = (await client.get("/v1/models")).json()["data"]
        assert [first["id"], second["id"]] == [str(world / "alpha"), str(world / "beta")]
        assert [first["sha256"], second["sha256"]] == [fingerprint(world / base) for base in NAMES]
        cards = {item["id"]: item for item in adapters}
        for base, names in NAMES.items():
            assert {cards[name]["parent"] for name in names} == {str(world / base)}
            assert all(cards[name]["served"] for name in names)
        assert (cards["c-one"]["parent"], cards["c-one"]["served"]) == (str(world / "gamma"), False)
        for base in NAMES:
            assert (await client.get(f"/v1/models/{world / base}")).json()["parent"] is None
        refused = await ask_for(client, "c-one")
        assert refused.status_code == 400
        for base in ("alpha", "beta", "gamma"):
            assert f"…/{base}" in refused.json()["error"]["message"]
        vectors = []
        for model in ("base", str(world / "alpha"), str(world / "beta")):
            said = (await client.post("/v1/embeddings", json={"model": model, "input": "good"})).json()
            vectors.append(said["data"][0]["embedding"])
        assert vectors[0] == vectors[1] != vectors[2]
        bare = await ask_for(client, str(world / "beta"))
        assert (bare.status_code, "bare base" in bare.text) == (400, True)

    on(world, main)


def test_versions_of_one_name_may_be_of_two_bases(world: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for name in ("a-one", "b-one"):
        store.put(Adapter.load(world / "store" / name), "both")
    store.point("both", steer.split({1: 50, 2: 50}))

    async def main(client: httpx.AsyncClient) -> None:
        for number in range(30):
            user = f"user-{number}"
            wanted = store.resolve("both").traffic.pick("both", user)
            for _ in range(2):
                answer = await ask_for(client, "both", user=user)
                assert answer.headers["x-adapter"] == f"both@{wanted}"
            told = await client.post("/v1/feedback", json={"id": answer.headers["x-request-id"], "value": True})
            assert told.json()["version"] == wanted
        drawn = [(await ask_for(client, "both")).headers["x-adapter"] for _ in range(60)]
        assert drawn.count("both@1") == pytest.approx(30, abs=20)  # 5 standard deviations

    on(world, main, store=str(tmp_path / "store"), results=str(tmp_path / "results"))
    rows = compare(read_results(tmp_path / "results"), "both")["versions"]
    assert {(row["version"], row["variant"]) for row in rows} == {(1, "split"), (2, "split")}
    assert sum(row["requests"] for row in rows) == 120
    assert sum(row["feedback"] for row in rows) == 30


def test_commands_reach_every_replica_of_every_base(world: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for name in ("a-one", "b-one"):
        store.put(Adapter.load(world / "store" / name), name)

    async def main(one: httpx.AsyncClient, two: httpx.AsyncClient) -> None:
        async def statuses(name: str) -> set[int]:
            return {(await ask_for(client, name)).status_code for client in (one, two) for _ in range(8)}

        def holders(name: str) -> int:
            replicas = [endpoint for made in one.made.values() for endpoint, _ in made]  # type: ignore[attr-defined]
            return sum(any(r.entry.name == name for r in endpoint.cache.residents()) for endpoint in replicas)

        for name in ("a-one", "b-one"):
            loaded = await one.post("/v1/load_lora_adapter", json={"lora_name": name, "pinned": True})
            assert loaded.status_code == 200, loaded.text
            assert holders(name) == 2
            assert await statuses(name) == {200}
            gone = await two.post("/v1/unload_lora_adapter", json={"lora_name": name})
            assert gone.status_code == 200
            assert await statuses(name) == {404}
            while holders(name):
                await asyncio.sleep(0.01)
            assert name not in {item["id"] for item in (await one.get("/v1/models")).json()["data"]}
            assert (await two.post("/v1/load_lora_adapter", json={"lora_name": name})).status_code == 200
            assert await statuses(name) == {200}
        before = {(await ask_for(client, "b-one")).headers["x-adapter"] for client in (one, two) for _ in range(8)}
        assert before == {"b-one@1"}
        store.put(Adapter.load(world / "store" / "b-two"), "b-one")
        assert {(await ask_for(c, "b-one")).headers["x-adapter"] for c in (one, two)} == {"b-one@1"}  # not asked anew
        assert (await two.post("/v1/refresh")).json() == {"status": "ok"}
        after = {(await ask_for(client, "b-one")).headers["x-adapter"] for client in (one, two) for _ in range(8)}
        assert after == {"b-one@2"}
        status = (await one.get("/v1/status")).json()
        assert [told["base"] for told in [status, *status["others"]]].count(str(world / "beta")) == 2
        assert len({told["replica"] for told in [status, *status["others"]]}) == 4

    options = {"store": str(tmp_path / "store"), "results": str(tmp_path / "results"), "fresh_s": 3600}
    on(world, main, replicas=2, **options)


def test_what_was_unloaded_stays_so_for_a_replica_that_starts_later(world: Path, tmp_path: Path) -> None:
    open_store(str(tmp_path / "store")).put(Adapter.load(world / "store" / "a-one"), "a-one")
    options = {"store": str(tmp_path / "store"), "results": str(tmp_path / "results")}

    async def unload(client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "a-one"})).status_code == 200

    async def later(client: httpx.AsyncClient) -> None:
        assert (await ask_for(client, "a-one")).status_code == 404
        assert (await client.post("/v1/unload_lora_adapter", json={"lora_name": "a-one"})).status_code == 404
        assert (await client.post("/v1/load_lora_adapter", json={"lora_name": "a-one"})).status_code == 200
        assert (await ask_for(client, "a-one")).status_code == 200

    on(world, unload, **options)
    on(world, later, **options)


def test_a_base_that_is_away_is_a_503_and_harms_no_other(world: Path) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        ((alpha, _), *_), _ = client.made.values()  # type: ignore[attr-defined]
        alpha.names.peers.away = True
        away = await ask_for(client, "b-one")
        assert (away.status_code, away.headers["retry-after"]) == (503, "1")
        assert set(away.json()["error"]) == {"message", "type", "param", "code"}
        assert (await ask_for(client, "a-one")).status_code == 200

    on(world, main)


def test_the_bases_are_those_asked_for_or_all_that_adapters_name(world: Path, tmp_path: Path) -> None:
    store = open_store(str(world / "store"))
    every = [base.model for base in choose_bases(AppArgs(store=str(world / "store")), store)]
    assert every == [str(world / base) for base in ("alpha", "beta", "gamma")]
    twice = open_store(str(tmp_path / "twice"))
    for number, spelling in enumerate((f"{world}/alpha", f"{world}/alpha/", f"{world}/beta/../alpha")):
        adapter = Adapter.load(world / "store" / "a-plain")
        card = adapter.card.model_copy(update={"base": spelling})
        twice.put(replace(adapter, card=card), f"one-{number}")
    assert [base.model for base in choose_bases(AppArgs(), twice)] == [f"{world}/alpha"]
    one = choose_bases(AppArgs(base="minilm"), store)
    assert one == (BaseArgs(model="minilm"),)
    both = AppArgs.model_validate({"bases": "alpha,beta"})
    assert [base.model for base in choose_bases(both, store)] == ["alpha", "beta"]
    with pytest.raises(RecipeError, match="give base="):
        choose_bases(AppArgs(), open_store(str(tmp_path / "nothing")))
    with pytest.raises(ValidationError, match="not both"):
        AppArgs.model_validate({"base": "a", "bases": "b"})
    with pytest.raises(ValidationError, match="twice"):
        AppArgs.model_validate({"bases": "b,b"})
    with pytest.raises(RecipeError, match="several"):
        start_endpoint(AppArgs(store=str(world / "store")))


def test_a_base_s_own_settings_go_before_the_endpoint_s() -> None:
    tree = {"slots": 8, "dtype": "float32", "bases": [{"model": "a", "slots": 2}, {"model": "b", "num_cpus": 2}]}
    args = AppArgs.model_validate(tree)
    first, second = (args.alone(base) for base in args.bases)
    assert (first.base, first.slots, first.dtype, first.num_cpus) == ("a", 2, "float32", 1)
    assert (second.base, second.slots, second.dtype, second.num_cpus) == ("b", 8, "float32", 2)
    assert first.bases == ()
