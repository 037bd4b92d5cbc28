"""The endpoint over HTTP is never wrong in silence: broken versions, answers that are no numbers, a store that leaves,
clients' own mistakes. In process; the live endpoint is in tests/ray/."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from ray_lora.adapters.adapter import Adapter
from ray_lora.inference.stored import predict_ref
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.store import open_store, steer
from tests.unit.serving_world import card, make_adapter, make_base, peft_probabilities

WEIGHTS = "adapter_model.safetensors"
LABELS = [["bad", "good"], ["sad", "glad"], ["dull", "bright"]]
TEXT = "a lovely day"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/ and three adapters with cards, 0 to 2."""
    root = tmp_path_factory.mktemp("made")
    base = make_base(root / "base")
    for seed, labels in enumerate(LABELS):
        card(make_adapter(base, root / str(seed), seed=seed), base, labels)
    return root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """`tweets` 1 and 2, `movies` 1."""
    opened = open_store(str(tmp_path / "store"))
    for name, seed in (("tweets", 0), ("tweets", 1), ("movies", 2)):
        opened.put(Adapter.load(made / str(seed)), name)
    return tmp_path / "store"


def on(
    made: Path, store: Path, main: Callable[[httpx.AsyncClient, Endpoint], Awaitable[None]], max_rank: int = 64
) -> None:
    async def run() -> None:
        folders = {"store": str(store), "base": str(made / "base"), "results": str(store.parent / "results")}
        options = {"dtype": "float32", "slots": 4, "max_rank": max_rank}
        endpoint = start_endpoint(AppArgs.model_validate({**folders, **options}))
        transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await main(client, endpoint)
        await endpoint.close()

    asyncio.run(run())


async def ask(client: httpx.AsyncClient, model: str, inputs: Any = TEXT, **more: Any) -> httpx.Response:
    return await client.post("/v1/predict", json={"model": model, "inputs": inputs, **more})


def is_of(answer: httpx.Response, made: Path, seed: int, ref: str) -> None:
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-adapter"] == ref
    assert answer.headers["x-adapter-sha256"] == Adapter.load(made / str(seed)).sha256
    [expected] = peft_probabilities(made / "base", made / str(seed), [TEXT])
    best = max(range(2), key=expected.__getitem__)
    [said] = answer.json()["predictions"]
    assert said["label"] == LABELS[seed][best]
    assert said["score"] == pytest.approx(expected[best], abs=1e-5)


def scale(folder: Path, factor: float) -> None:
    """Weights that are finite and were not trained so."""
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v * factor for k, v in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def vouch(folder: Path) -> None:
    """A card that says what is there."""
    (folder / "ray_lora.json").unlink()
    card(folder, folder, ["x", "y"])


def test_a_copy_with_other_weights_is_not_answered_with_the_resident_ones(made: Path, store: Path) -> None:
    """A copy of a resident version whose weights were rescaled and whose card was left."""

    async def main(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        is_of(await ask(client, "movies"), made, 2, "movies@1")
        shutil.copytree(store / "movies/1", store / "movies/2")
        scale(store / "movies/2", 0.5)
        is_of(await ask(client, "movies"), made, 2, "movies@1")
        answer = await ask(client, "movies@2")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_adapter")
        assert "content hash" in answer.json()["error"]["message"]

    on(made, store, main)


def test_a_resident_version_that_is_overwritten_answers_for_what_lies_there_now(made: Path, store: Path) -> None:
    async def main(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        is_of(await ask(client, "tweets@2"), made, 1, "tweets@2")
        shutil.rmtree(store / "tweets/2")
        shutil.copytree(made / "2", store / "tweets/2")
        is_of(await ask(client, "tweets@2"), made, 2, "tweets@2")
        scale(store / "tweets/2", 2.0)
        assert (await ask(client, "tweets@2")).status_code == 400
        is_of(await ask(client, "tweets"), made, 0, "tweets@1")

    on(made, store, main)


def test_a_version_that_is_being_written_is_waited_for_or_tried_later(
    made: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "2", store / "plain/1")
    (store / "plain/1/ray_lora.json").unlink()
    monkeypatch.setenv("RAY_LORA_SETTLE_S", "0.4")

    async def main(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        answer = await ask(client, "plain")
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["label"].startswith("LABEL_")
        monkeypatch.setenv("RAY_LORA_SETTLE_S", "60")
        monkeypatch.setattr("ray_lora.serving.registry._MORE_S", -60.0)
        shutil.copytree(made / "1", store / "late/1")
        (store / "late/1/ray_lora.json").unlink()
        answer = await ask(client, "late")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "being written" in answer.json()["error"]["message"]
        shutil.copy(made / "1/ray_lora.json", store / "late/1")
        await asyncio.sleep(0.2)
        is_of(await ask(client, "late"), made, 1, "late@1")

    on(made, store, main)


@pytest.fixture
def huge(made: Path, store: Path) -> Path:
    """`tweets` 3: finite weights, a card that vouches for them, and answers that are no numbers."""
    shutil.copytree(made / "1", store / "tweets/3")
    scale(store / "tweets/3", 1e30)
    adapter = Adapter.load(made / "1")
    (store / "tweets/3/ray_lora.json").unlink()
    card(store / "tweets/3", made / "base", LABELS[1])
    assert adapter.card.task is not None
    return store


def test_answers_that_are_no_numbers_set_the_version_aside(made: Path, huge: Path) -> None:
    """The version before answers the bare name; rows of others in the same pass are what they always are."""

    async def main(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        others = [ask(client, "movies") for _ in range(4)] + [ask(client, "tweets@1") for _ in range(4)]
        first, *found = await asyncio.gather(ask(client, "tweets@3"), *others)
        assert (first.status_code, first.json()["error"]["code"]) == (400, "invalid_adapter")
        assert "tweets@3: the adapter's answers are not finite numbers" in first.json()["error"]["message"]
        for answer in found[:4]:
            is_of(answer, made, 2, "movies@1")
        for answer in found[4:]:
            is_of(answer, made, 0, "tweets@1")
        is_of(await ask(client, "tweets"), made, 1, "tweets@2")
        assert (await ask(client, "tweets@3")).status_code == 400
        assert "tweets@3" not in {resident.entry.ref for resident in endpoint.cache.residents()}
        assert (await client.post("/v1/refresh")).status_code == 200
        assert (await ask(client, "tweets")).status_code == 400  # it is tried once more
        is_of(await ask(client, "tweets"), made, 1, "tweets@2")

    on(made, huge, main)


def test_a_command_says_so_as_well(made: Path, huge: Path) -> None:
    with pytest.raises(ValueError, match="the adapter's answers are not finite numbers"):
        predict_ref("tweets@3", [TEXT], str(huge), base=str(made / "base"))


def test_what_is_known_is_served_while_the_store_is_away(made: Path, store: Path) -> None:
    async def main(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        is_of(await ask(client, "tweets"), made, 1, "tweets@2")
        for leave in (lambda: None, (store).mkdir):
            store.rename(store.with_name("gone"))
            leave()
            is_of(await ask(client, "tweets"), made, 1, "tweets@2")
            for unknown in ("movies@1", "tweets@1", "nobody"):
                answer = await ask(client, unknown)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert (await client.get("/v1/status")).json()["store_away"] is True
            shutil.rmtree(store, ignore_errors=True)
            store.with_name("gone").rename(store)
            is_of(await ask(client, "tweets"), made, 1, "tweets@2")
            assert (await ask(client, "nobody")).status_code == 404
            assert (await client.get("/v1/status")).json()["store_away"] is False
        is_of(await ask(client, "movies"), made, 2, "movies@1")
        shutil.rmtree(store / "tweets")
        assert (await ask(client, "tweets")).status_code == 404

    on(made, store, main)


def counts(endpoint: Endpoint) -> dict[int, tuple[int, int]]:
    """(requests, errors) of each version in a split."""
    return {
        arm.version: (t.requests, t.errors) for arm, t in endpoint.results._tallies.items() if arm.variant == "split"
    }


WRONG: list[tuple[Any, dict[str, Any], int]] = [
    ("", {}, 400),
    ([], {}, 400),
    ([TEXT] * 9999, {}, 413),
    ([3], {}, 400),
    (["fine", None], {}, 400),
    (TEXT, {"parameters": {"top_k": 0}}, 400),
    (TEXT, {"parameters": {"top_kk": 1}}, 400),
]


@pytest.mark.parametrize(("inputs", "more", "status"), WRONG)
def test_a_client_s_mistakes_are_not_the_version_s(
    inputs: Any, more: dict[str, Any], status: int, made: Path, store: Path
) -> None:
    opened = open_store(str(store))
    opened.point("tweets", steer.split({2: 100}))

    async def main(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        is_of(await ask(client, "tweets", user="u"), made, 1, "tweets@2")
        assert (await ask(client, "tweets", inputs, user="u", **more)).status_code == status
        assert counts(endpoint) == {2: (1, 0)}

    on(made, store, main)


def test_overload_is_not_the_version_s(made: Path, store: Path) -> None:
    open_store(str(store)).point("tweets", steer.split({2: 100}))

    async def main(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        is_of(await ask(client, "tweets", user="u"), made, 1, "tweets@2")
        endpoint.gate.per_adapter = 1
        with endpoint.gate.enter("tweets"):
            assert (await ask(client, "tweets", user="u")).status_code == 429
        endpoint.gate.per_adapter, endpoint.gate.total = 9, 1
        with endpoint.gate.enter("movies"):
            assert (await ask(client, "tweets", user="u")).status_code == 503
        endpoint.args = endpoint.args.model_copy(update={"deadline_s": 1e-6})
        assert (await ask(client, "tweets", user="u")).status_code == 503
        assert counts(endpoint) == {2: (1, 0)}

    on(made, store, main)


def test_a_broken_version_and_answers_that_are_no_numbers_are_the_version_s(made: Path, huge: Path) -> None:
    open_store(str(huge)).point("tweets", steer.split({3: 100}))

    async def main(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        assert (await ask(client, "tweets", user="u")).status_code == 400
        assert counts(endpoint) == {3: (1, 1)}
        assert (await ask(client, "tweets", user="u")).status_code == 400  # set aside by now
        assert counts(endpoint) == {3: (2, 2)}
        scale(huge / "tweets/3", 0.1)
        assert (await ask(client, "tweets", user="u")).status_code == 400
        assert counts(endpoint) == {3: (3, 3)}

    on(made, huge, main)


def test_a_folder_that_cannot_be_served_is_not_kept(made: Path, store: Path, tmp_path: Path) -> None:
    """Of another base, of too large a rank, torn: the name answers as before."""
    other = make_base(tmp_path / "other", seed=5)
    bad = [
        make_adapter(other, tmp_path / "foreign", seed=1),
        make_adapter(made / "base", tmp_path / "wide", seed=1, rank=32),
        make_adapter(made / "base", tmp_path / "torn", seed=1),
    ]
    (bad[2] / WEIGHTS).write_bytes((bad[2] / WEIGHTS).read_bytes()[:500])

    async def main(client: httpx.AsyncClient, endpoint: Endpoint) -> None:
        for folder in bad:
            body = {"lora_name": "tweets", "lora_path": str(folder), "load_inplace": True}
            answer = await client.post("/v1/load_lora_adapter", json=body)
            assert answer.status_code == 400, (folder, answer.text)
            assert answer.json()["error"]["code"] == "invalid_adapter"
            is_of(await ask(client, "tweets"), made, 1, "tweets@2")
            is_of(await ask(client, "tweets@2"), made, 1, "tweets@2")
        assert {entry.ref for entry in endpoint.registry.store.list()} == {"tweets@1", "tweets@2", "movies@1"}
        body = {"lora_name": "tweets", "lora_path": str(made / "2"), "load_inplace": True}
        assert (await client.post("/v1/load_lora_adapter", json=body)).status_code == 200
        is_of(await ask(client, "tweets"), made, 2, f"tweets@{max(v.version for v in endpoint.registry.store.list())}")

    on(made, store, main, max_rank=16)
