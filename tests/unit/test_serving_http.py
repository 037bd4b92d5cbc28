"""The endpoint over HTTP (in process, no Ray): routes, shapes, errors; PEFT is the oracle of every answer."""

from __future__ import annotations

import asyncio
import base64
import shutil
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http.routes import create_app
from tests.unit.serving_world import card, make_adapter, make_base, peft_probabilities, spoil

TEXTS = ["a lovely day", "the film was very dull and so slow", "good", "not bad not good"]
LABELS = {"two": ["bad", "good"], "three": ["sad", "calm", "glad"]}
Client = httpx.AsyncClient


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, other/ and store/: `two` and `three` with our card, `plain` by PEFT alone, and bad ones."""
    root = tmp_path_factory.mktemp("world")
    base, other = make_base(root / "base"), make_base(root / "other", seed=1)
    store = root / "store"
    make_adapter(base, store / "plain", seed=1, rank=2, labels=4)
    for seed, (name, labels) in enumerate(LABELS.items()):
        card(make_adapter(base, store / name, seed=seed + 2, rank=8, labels=len(labels)), base, labels)
    card(make_adapter(other, store / "foreign", seed=9), other, ["x", "y"], fingerprint="f" * 64)
    make_adapter(other, store / "foreign-plain", seed=9)
    spoil(make_adapter(base, store / "torn", seed=5))
    make_adapter(base, store / "wide", seed=6, rank=20)
    return root


@asynccontextmanager
async def serving(world: Path, **options: Any) -> AsyncIterator[Client]:
    values = {
        "store": str(world / "store"),
        "base": str(world / "base"),
        "results": str(world / "results"),
        "dtype": "float32",
        "slots": 3,
        "max_rank": 16,
    }
    endpoint = start_endpoint(AppArgs.model_validate(values | options))
    transport = httpx.ASGITransport(create_app(endpoint), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        client.endpoint = endpoint  # type: ignore[attr-defined]
        yield client
    await endpoint.close()


def on(world: Path, main: Callable[[Client], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with serving(world, **options) as client:
            await main(client)

    asyncio.run(run())


def wrong(response: httpx.Response, status: int, *words: str) -> None:
    """The response is an error of the one shape, and its message holds these words."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"]


def test_every_answer_of_a_mixed_batch_is_peft_s_own(world: Path) -> None:
    names = ["two", "three", "plain"]
    expected = {name: peft_probabilities(world / "base", world / "store" / name, TEXTS) for name in names}
    labels = LABELS | {"plain": ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]}

    async def main(client: Client) -> None:
        async def ask(name: str, row: int) -> None:
            body = {"model": name, "inputs": TEXTS[row], "parameters": {"top_k": 4}}
            response = await client.post("/v1/predict", json=body)
            assert response.status_code == 200, response.text
            assert response.headers["x-adapter"] == f"{name}@1"
            assert len(response.headers["x-adapter-sha256"]) == 64
            content = response.json()
            assert (content["model"], content["version"], content["task"]) == (name, 1, "text-classification")
            scores = {answer["label"]: answer["score"] for answer in content["predictions"][0]}
            assert [scores[label] for label in labels[name]] == pytest.approx(expected[name][row], abs=1e-5)

        await asyncio.gather(*(ask(name, row) for row in range(len(TEXTS)) for name in names))
        stats = client.endpoint.batcher.stats  # type: ignore[attr-defined]
        assert stats.batches < stats.rows == 12  # rows of several adapters shared a pass

    on(world, main)


def test_classify_has_vllm_s_shape(world: Path) -> None:
    expected = peft_probabilities(world / "base", world / "store" / "three", TEXTS)

    async def main(client: Client) -> None:
        content = (await client.post("/classify", json={"model": "three", "input": TEXTS})).json()
        assert content["object"] == "list"
        assert content["id"].startswith("classify-")
        assert (
            content["usage"]["prompt_tokens"] == content["usage"]["total_tokens"] == sum(len(t.split()) for t in TEXTS)
        )
        for index, (item, row) in enumerate(zip(content["data"], expected, strict=True)):
            assert (item["index"], item["num_classes"]) == (index, 3)
            assert item["probs"] == pytest.approx(row, abs=1e-5)
            assert item["label"] == LABELS["three"][row.index(max(row))]

    on(world, main)


def test_models_are_listed_and_shown(world: Path) -> None:
    async def main(client: Client) -> None:
        listed = (await client.get("/v1/models")).json()
        assert listed["object"] == "list"
        base, *adapters = listed["data"]
        assert base["parent"] is None
        cards = {item["id"]: item for item in adapters}
        assert {"two", "three", "plain", "foreign"} <= set(cards)
        assert cards["two"]["parent"] == base["id"]
        assert cards["two"]["labels"] == LABELS["two"]
        assert (cards["two"]["shown"], cards["two"]["input"]) == (["labels"], ["text"])
        assert "top_k" in cards["two"]["full"]
        assert cards["two"]["object"] == "model"
        assert cards["two"]["version"] == 1
        assert not cards["foreign"]["served"]
        one = (await client.get("/v1/models/two@1")).json()
        assert (one["id"], one["root"], one["task"]) == ("two@1", "two@1", "text-classification")
        assert (await client.get("/v1/models/base")).json()["parent"] is None
        wrong(await client.get("/v1/models/twoo"), 404, "twoo", "did you mean 'two'")

    on(world, main)


def test_embeddings_are_the_bare_base_s(world: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    model = AutoModel.from_pretrained(world / "base", attn_implementation="eager").eval()
    with torch.inference_mode():
        inputs = tokenizer(TEXTS[1], return_tensors="pt", return_token_type_ids=False)
        expected = model(**inputs).last_hidden_state[0].mean(0).tolist()

    async def main(client: Client) -> None:
        body: dict[str, Any] = {"model": "base", "input": TEXTS}
        content = (await client.post("/v1/embeddings", json=body)).json()
        assert content["data"][1]["embedding"] == pytest.approx(expected, abs=1e-5)
        packed = (await client.post("/v1/embeddings", json=body | {"encoding_format": "base64"})).json()
        raw = base64.b64decode(packed["data"][1]["embedding"])
        assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(expected, abs=1e-5)
        wrong(await client.post("/v1/embeddings", json=body | {"model": "two"}), 400, "two@1", "base")
        wrong(await client.post("/v1/embeddings", json=body | {"dimensions": 8}), 400, "dimensions")

    on(world, main)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, ["JSON"]),
        (b"[]", 400, []),
        (b"\xff\xfe", 400, []),
        (b"[" * 50_000, 400, []),
        ({"model": "two"}, 400, ["inputs"]),
        ({"model": 7, "inputs": "a"}, 400, ["model"]),
        ({"model": "two", "inputs": 5}, 400, ["5"]),
        ({"model": "two", "inputs": {"txt": "a"}}, 400, ["no 'text'"]),
        ({"model": "two", "inputs": {"text": "a", "text_pair": None}}, 400, ["text_pair None"]),
        ({"model": "two", "inputs": {"text": "a", "textpair": "b"}}, 400, ["did you mean 'text_pair'"]),
        ({"model": "two", "inputs": ["a", None]}, 400, ["None"]),
        ({"model": "two", "inputs": []}, 400, ["empty list"]),
        ({"model": "two", "inputs": "  "}, 400, ["empty"]),
        ({"model": "two", "inputs": "\ud800"}, 400, ["surrogate"]),
        ({"model": "two", "inputs": "a", "paramters": {}}, 400, ["paramters"]),
        ({"model": "two", "inputs": "a", "parameters": {"top_k": 0}}, 400, ["top_k"]),
        ({"model": "two", "inputs": "a", "parameters": {"top": 1}}, 400, ["top_k"]),
        ({"inputs": "a"}, 400, ["no adapter is named"]),
        ({"model": "base", "inputs": "a"}, 400, ["bare base"]),
        ({"model": "thre", "inputs": "a"}, 404, ["did you mean 'three'"]),
        ({"model": "two@9", "inputs": "a"}, 404, ["no version 9"]),
        ({"model": "two@canary", "inputs": "a"}, 404, ["no alias"]),
        ({"model": "../base", "inputs": "a"}, 404, ["not a ref"]),
        ({"model": "\ud800", "inputs": "a"}, 404, ["not a ref"]),
        ({"model": "foreign", "inputs": "a"}, 400, ["foreign@1", "base"]),
        ({"model": "foreign-plain", "inputs": "a"}, 400, ["foreign-plain@1", "base"]),
        ({"model": "torn", "inputs": "a"}, 400, ["torn"]),
        ({"model": "wide", "inputs": "a"}, 400, ["rank 20", "max_rank 16"]),
        ({"model": "two", "inputs": ["a"] * 300}, 413, ["300", "256"]),
        ({"model": "two", "inputs": "a" * 70_000}, 413, ["60000"]),
    ],
)
def test_bad_requests_are_named_and_the_endpoint_goes_on(world: Path, body: Any, status: int, words: list[str]) -> None:
    import json

    async def main(client: Client) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        wrong(await client.post("/v1/predict", content=content, headers=headers), status, *words)
        good = await client.post("/v1/predict", json={"model": "two", "inputs": "a day"})
        assert good.status_code == 200

    on(world, main, max_body_bytes=60_000)


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": 2.0}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_k": [1]}, "top_k"),
        ({"top": 1}, "top"),
        ({"function_to_apply": "tanh"}, "tanh"),
        ({"function_to_apply": ""}, "function_to_apply"),
        ({"function_to_apply": ["softmax"]}, "function_to_apply"),
    ],
)
def test_wrong_parameters_never_reach_a_batch(world: Path, parameters: dict[str, Any], word: str) -> None:
    async def main(client: Client) -> None:
        body = {"model": "two", "inputs": ["a day", "good"]}
        good, bad = await asyncio.gather(
            client.post("/v1/predict", json=body), client.post("/v1/predict", json=body | {"parameters": parameters})
        )
        assert good.status_code == 200
        wrong(bad, 400, word)
        assert client.endpoint.batcher.stats.rows == 2  # type: ignore[attr-defined]

    on(world, main)


def test_a_body_of_undeclared_length_is_limited_too(world: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 10_000

    async def main(client: Client) -> None:
        wrong(await client.post("/v1/predict", content=chunks()), 413, "60000")
        wrong(await client.post("/v1/audio/transcriptions", content=chunks()), 413, "80000")

    on(world, main, max_body_bytes=60_000, max_sound_bytes=80_000)


def test_the_header_names_an_adapter_too(world: Path) -> None:
    async def main(client: Client) -> None:
        for header in ("serve_multiplexed_model_id", "Serve-Multiplexed-Model-Id"):
            response = await client.post("/v1/predict", json={"inputs": "a day"}, headers={header: "three"})
            assert response.headers["x-adapter"] == "three@1"
        same = {"serve_multiplexed_model_id": "two"}
        assert (await client.post("/v1/predict", json={"model": "two", "inputs": "a"}, headers=same)).status_code == 200
        wrong(await client.post("/v1/predict", json={"model": "three", "inputs": "a"}, headers=same), 400, "three, two")

    on(world, main)


def test_unknown_routes_methods_docs_and_health(world: Path) -> None:
    async def main(client: Client) -> None:
        wrong(await client.get("/nothing"), 404, "/nothing", "/docs")
        wrong(await client.get("/v1/predict"), 405, "GET /v1/predict")
        assert (await client.get("/health")).json()["status"] == "ok"
        assert (await client.get("/docs")).status_code == 200
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert {"/v1/models", "/v1/models/{ref}", "/v1/predict", "/classify", "/v1/embeddings"} <= set(paths)

    on(world, main)


def test_a_long_text_is_cut_and_does_not_stop_the_others(world: Path) -> None:
    async def main(client: Client) -> None:
        long = await client.post("/v1/predict", json={"model": "two", "inputs": "good day " * 20_000})
        short = await client.post("/v1/predict", json={"model": "two", "inputs": "good day " * 8})
        assert long.json()["predictions"][0]["score"] == pytest.approx(
            short.json()["predictions"][0]["score"], abs=1e-5
        )

    on(world, main)


def test_new_adapters_and_moved_aliases_answer_at_once(world: Path, tmp_path: Path) -> None:
    from ray_lora.adapters.adapter import Adapter
    from ray_lora.store import open_store

    shutil.copytree(world / "store", tmp_path / "store")

    async def main(client: Client) -> None:
        body = {"model": "fresh", "inputs": "a day"}
        wrong(await client.post("/v1/predict", json=body), 404, "fresh")
        make_adapter(world / "base", tmp_path / "fresh", seed=21)
        store = open_store(str(tmp_path / "store"))
        store.put(Adapter.load(tmp_path / "fresh"), "fresh", aliases=["champion"])
        assert (await client.post("/v1/predict", json=body)).headers["x-adapter"] == "fresh@1"
        make_adapter(world / "base", tmp_path / "fresher", seed=22)
        store.put(Adapter.load(tmp_path / "fresher"), "fresh")
        assert (await client.post("/v1/predict", json=body)).headers["x-adapter"] == "fresh@1"
        assert (await client.get("/v1/models/fresh")).json()["aliases"] == ["champion"]
        for version in (2, 1, 2):
            store.alias("fresh", "champion", version)
            response = await client.post("/v1/predict", json=body)
            assert response.headers["x-adapter"] == f"fresh@{version}"
            expected = peft_probabilities(world / "base", tmp_path / ("fresh", "fresher")[version - 1], ["a day"])
            assert response.json()["predictions"][0]["score"] == pytest.approx(max(expected[0]), abs=1e-5)

    on(world, main, store=str(tmp_path / "store"))


def test_a_plain_folder_that_is_overwritten_answers_with_what_it_holds(world: Path, tmp_path: Path) -> None:
    folder = make_adapter(world / "base", tmp_path / "store" / "mine", seed=31)

    async def main(client: Client) -> None:
        seen = set()
        for seed in (32, 33):
            expected = max(peft_probabilities(world / "base", folder, ["a day"])[0])
            response = await client.post("/v1/predict", json={"model": "mine", "inputs": "a day"})
            assert response.json()["predictions"][0]["score"] == pytest.approx(expected, abs=1e-5)
            seen.add(response.headers["x-adapter-sha256"])
            make_adapter(world / "base", folder, seed=seed)
        assert len(seen) == 2

    on(world, main, store=str(tmp_path / "store"))


def test_an_adapter_that_changed_since_it_was_resolved_is_resolved_again(world: Path, tmp_path: Path) -> None:
    folder = make_adapter(world / "base", tmp_path / "store" / "mine", seed=31)

    async def main(client: Client) -> None:
        endpoint = client.endpoint  # type: ignore[attr-defined]
        body = {"model": "mine", "inputs": "a day"}
        old = await client.post("/v1/predict", json=body)
        make_adapter(world / "base", folder, seed=32)
        assert (await client.post("/v1/predict", json=body)).content == old.content  # fresh for a minute, and resident
        endpoint.cache.drop(endpoint.cache.residents()[0].entry)
        new = await client.post("/v1/predict", json=body)
        assert new.headers["x-adapter-sha256"] != old.headers["x-adapter-sha256"]
        expected = max(peft_probabilities(world / "base", folder, ["a day"])[0])
        assert new.json()["predictions"][0]["score"] == pytest.approx(expected, abs=1e-5)

    on(world, main, store=str(tmp_path / "store"), fresh_s=60)


def test_load_and_unload_have_vllm_s_answers(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "store", tmp_path / "store")
    make_adapter(world / "base", tmp_path / "new", seed=41)
    spoil(make_adapter(world / "base", tmp_path / "bad", seed=42))

    async def main(client: Client) -> None:
        async def load(**body: Any) -> httpx.Response:
            return await client.post("/v1/load_lora_adapter", json=body)

        done = await load(lora_name="new", lora_path=str(tmp_path / "new"))
        assert (done.status_code, done.text) == (200, "Success: LoRA adapter 'new' added successfully.")
        assert (await client.post("/v1/predict", json={"model": "new", "inputs": "a"})).status_code == 200
        wrong(await load(lora_name="new", lora_path=str(tmp_path / "new")), 400, "already been loaded")
        again = await load(lora_name="new", lora_path=str(tmp_path / "new"), load_inplace=True)
        assert again.status_code == 200
        wrong(await load(lora_name="none", lora_path=str(tmp_path / "none")), 404)
        wrong(await load(lora_name="bad", lora_path=str(tmp_path / "bad")), 400, "torn")
        wrong(await load(lora_name="../up", lora_path=str(tmp_path / "new")), 400, "cannot name")
        wrong(await load(lora_name="missing"), 404, "missing")
        assert (await load(lora_name="two", pinned=True)).status_code == 200
        unload = await client.post("/v1/unload_lora_adapter", json={"lora_name": "new"})
        assert (unload.status_code, unload.text) == (200, "Success: LoRA adapter 'new' removed successfully.")
        wrong(await client.post("/v1/predict", json={"model": "new", "inputs": "a"}), 404, "unloaded")
        wrong(await client.post("/v1/unload_lora_adapter", json={"lora_name": "new"}), 404)
        assert "new" not in {item["id"] for item in (await client.get("/v1/models")).json()["data"]}
        assert (await load(lora_name="new")).status_code == 200
        assert (await client.post("/v1/predict", json={"model": "new", "inputs": "a"})).status_code == 200

    on(world, main, store=str(tmp_path / "store"))


def test_too_much_at_once_is_refused_with_a_time_to_come_again(world: Path) -> None:
    async def main(client: Client) -> None:
        async def ask(name: str) -> httpx.Response:
            return await client.post("/v1/predict", json={"model": name, "inputs": ["a day"] * 8})

        flood, quiet = await asyncio.gather(asyncio.gather(*(ask("two") for _ in range(6))), ask("three"))
        assert quiet.status_code == 200
        refused = [response for response in flood if response.status_code != 200]
        assert refused
        for response in refused:
            wrong(response, 429, "'two'", "16")
            assert int(response.headers["retry-after"]) >= 1

    on(world, main, max_waiting_per_adapter=16, max_waiting=64)


def test_a_deadline_that_passes_is_a_503_and_leaves_nothing_behind(world: Path) -> None:
    async def main(client: Client) -> None:
        response = await client.post("/v1/predict", json={"model": "two", "inputs": "a day"})
        wrong(response, 503, "no answer within")
        assert "retry-after" in response.headers
        endpoint = client.endpoint  # type: ignore[attr-defined]
        await asyncio.sleep(0.2)
        assert (endpoint.gate.inside, endpoint.batcher.waiting) == (0, 0)
        assert all(resident.leases == 0 for resident in endpoint.cache.residents())

    on(world, main, deadline_s=0.001)
