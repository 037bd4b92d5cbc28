"""Clients as they are: the `openai` package and curl, over real HTTP."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.documents import ROOT, blocks
from tests.unit.http_server import serving
from tests.unit.serving_world import card, make_adapter, make_base, peft_probabilities

TEXTS = ["a lovely day", "the film was very dull and so slow"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clients")
    base = make_base(root / "base")
    card(make_adapter(base, root / "store" / "tweets", seed=0), base, ["negative", "positive"])
    make_adapter(base, root / "store" / "plain", seed=1, labels=3)
    (root / "keys.yaml").write_text("[{key: secret, adapters: [tweets]}]")
    return root


@pytest.fixture(scope="module")
def address(world: Path) -> Iterator[str]:
    with serving(world) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none needed", max_retries=0) as client:
        yield client


def test_openai_lists_the_base_and_its_adapters(client: openai.OpenAI, world: Path) -> None:
    cards = {model.id: model for model in client.models.list()}
    assert list(cards) == [str(world / "base"), "plain", "tweets"]
    assert (cards["tweets"].object, cards["tweets"].owned_by) == ("model", "ray_lora")
    assert (cards["tweets"].model_extra or {})["parent"] == str(world / "base")
    one = client.models.retrieve("tweets@1")
    assert (one.id, (one.model_extra or {})["root"]) == ("tweets@1", "tweets@1")


def test_openai_embeds(client: openai.OpenAI, world: Path) -> None:
    """It asks for base64 unless told otherwise, and decodes it."""
    tokenizer, model = AutoTokenizer.from_pretrained(world / "base"), AutoModel.from_pretrained(world / "base").eval()
    with torch.inference_mode():
        expected = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    for answer in (
        client.embeddings.create(model="base", input=TEXTS),
        client.embeddings.create(model=str(world / "base"), input=TEXTS, encoding_format="float"),
    ):
        for item, vector in zip(answer.data, expected, strict=True):
            assert item.embedding == pytest.approx(vector.tolist(), abs=1e-5)
        assert answer.usage.prompt_tokens == 11  # one a word


def test_openai_posts_to_the_other_routes(client: openai.OpenAI, world: Path) -> None:
    answer = client.post("/predict", cast_to=object, body={"model": "tweets", "inputs": TEXTS[0]})
    assert isinstance(answer, dict)
    scores = peft_probabilities(world / "base", world / "store" / "tweets", TEXTS[:1])[0]
    assert answer["predictions"][0]["score"] == pytest.approx(max(scores), abs=1e-5)


def test_openai_raises_its_own_errors(client: openai.OpenAI, world: Path) -> None:
    with pytest.raises(openai.NotFoundError, match="twets"):
        client.models.retrieve("twets")
    with pytest.raises(openai.BadRequestError, match="does not give embeddings") as refused:
        client.embeddings.create(model="tweets", input=TEXTS)
    assert (refused.value.code, refused.value.type) == ("invalid_value", "BadRequestError")
    with serving(world, keys=str(world / "keys.yaml")) as locked:
        with pytest.raises(openai.AuthenticationError):
            client.with_options(base_url=f"{locked}/v1", api_key="wrong").models.list()
        keyed = client.with_options(base_url=f"{locked}/v1", api_key="secret")
        assert keyed.models.retrieve("tweets").id == "tweets"
        with pytest.raises(openai.PermissionDeniedError):
            keyed.models.retrieve("plain")


def test_curl_as_the_page_writes_it(address: str, world: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl: apt-get install curl")
    command = next(block for block in blocks(ROOT / "docs" / "serving.md", "sh") if "/v1/predict" in block)
    said = subprocess.run(
        ["bash", "-ec", command.replace("localhost:8000", address)], capture_output=True, text=True, check=True
    ).stdout
    inputs = json.loads(command.split("-d '")[1].split("'")[0])["inputs"]
    expected = peft_probabilities(world / "base", world / "store" / "tweets", inputs)
    for ranked, scores in zip(json.loads(said)["predictions"], expected, strict=True):
        found = {item["label"]: item["score"] for item in ranked}
        assert [found["negative"], found["positive"]] == pytest.approx(scores, abs=1e-5)
