"""The endpoint's own OpenAPI schema, fuzzed in process: no answer is a 5xx, and errors keep their shape."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http.routes import create_app
from tests.unit.serving_world import card, make_adapter, make_base, spoil

schemathesis = pytest.importorskip("schemathesis", reason="pip install -c constraints.txt -e '.[test]'")

ROUTES = [
    ("GET", "/health"),
    ("GET", "/v1/status"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{ref}"),
    ("GET", "/v1/explanations/{ref}"),
    ("POST", "/v1/predict"),
    ("POST", "/models/{ref}"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/classify"),
    ("POST", "/v1/classify"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/v1/refresh"),
    ("POST", "/v1/feedback"),
    ("POST", "/v1/rows"),
    ("POST", "/v1/forget"),
]
NAMES = ["two", "two@1", "two@champion", "torn", "wide", "base", "nothing"]


def _takes(method: str, path: str) -> bool:
    """Whether a request of this route can be wrong."""
    return method == "POST" and path != "/v1/refresh"


class Target:
    """An endpoint and the one event loop in which it lives."""

    def __init__(self, root: Path) -> None:
        self.loop = asyncio.new_event_loop()
        folders = {name: str(root / name) for name in ("store", "base", "results", "rows")}
        args = AppArgs(**folders, slots=2, max_rank=8, max_body_bytes=100_000)
        self.endpoint = self.loop.run_until_complete(self._start(args))
        self.app = create_app(self.endpoint)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url="http://localhost"
        )

    async def _start(self, args: AppArgs) -> Any:
        return start_endpoint(args)

    def send(self, case: Any) -> httpx.Response:
        """What the endpoint answers to a case, sent as it would be on the wire."""
        import requests

        wire = requests.Request(**case.as_transport_kwargs(base_url="http://localhost")).prepare()
        assert wire.method is not None
        assert wire.url is not None
        return self.loop.run_until_complete(
            self.client.request(wire.method, wire.url, headers=dict(wire.headers), content=wire.body or b"")
        )

    def close(self) -> None:
        self.loop.run_until_complete(self.client.aclose())
        self.loop.run_until_complete(self.endpoint.close())
        self.loop.close()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    root = tmp_path_factory.mktemp("fuzz")
    base = make_base(root / "base")
    card(make_adapter(base, root / "store" / "two", seed=0), base, ["bad", "good"])
    told = root / "store" / "two" / "ray_lora.json"  # whose scores are no numbers, which JSON has no word for
    scores = {"accuracy": float("nan"), "loss": float("inf")}
    told.write_text(json.dumps(json.loads(told.read_text()) | {"metrics": scores}))
    spoil(make_adapter(base, root / "store" / "torn", seed=1))
    odd = card(make_adapter(base, root / "store" / "odd", seed=3), base, ["bad", "good"]) / "ray_lora.json"
    odd.write_text(json.dumps(json.loads(odd.read_text()) | {"base": "x" * 10**5, "metrics": {"f1": 10**400}}))
    make_adapter(base, root / "store" / "wide", seed=2, rank=20)
    target = Target(root)
    yield target
    target.close()


def test_every_route_is_fuzzed(target: Target) -> None:
    paths = target.app.openapi()["paths"]
    assert {(method.upper(), path) for path, item in paths.items() for method in item} == set(ROUTES)


def check_body(declared: dict[str, Any], response: httpx.Response) -> None:
    """The answer is one that the schema of its route names, and of that shape; an error is short and shows no path."""
    status = str(response.status_code)
    assert status in declared, f"{status} is not among {sorted(declared)}: {response.text[:200]}"
    if response.status_code >= 400:
        error = json.loads(response.text)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert len(error["message"]) <= 400
        assert len(error["param"] or "") <= 80
        assert "/tmp" not in error["message"]
    elif response.headers["content-type"] == "application/json":
        json.loads(response.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON: {response.text[:200]}"))


def test_what_is_wrong_with_one_adapter_is_in_no_list(target: Target) -> None:
    answer = target.loop.run_until_complete(target.client.get("/v1/models"))
    listed = {one["id"]: one for one in answer.json()["data"]}
    assert {"two", "wide"} <= listed.keys()
    assert "odd" not in listed
    assert listed["two"]["metrics"] == {"accuracy": None, "loss": None}


def test_a_range_is_not_answered_in_parts(target: Target) -> None:
    """Ranges that overlap a thousand times cost their server's memory where a page is a file."""
    told = {"range": "bytes=" + ",".join(f"{number}-" for number in range(5000))}
    for path in ("/", "/docs", "/v1/models"):
        answer = target.loop.run_until_complete(target.client.get(path, headers=told))
        assert answer.status_code == 200
        assert len(answer.content) == len(target.loop.run_until_complete(target.client.get(path)).content)


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [(*route, mode) for route in ROUTES for mode in ("positive", "negative") if mode == "positive" or _takes(*route)],
)
def test_nothing_that_is_sent_makes_a_5xx(target: Target, method: str, path: str, mode: str) -> None:
    operation = schemathesis.openapi.from_dict(target.app.openapi())[path][method]
    cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))
    turn = iter(range(10**9))

    @seed(int(os.environ.get("FUZZ_SEED", "0")))
    @settings(
        max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def fuzz(case: Any) -> None:
        if isinstance(case.body, dict) and next(turn) % 2:  # every other case goes beyond the lookup of a name
            for field in ("model", "lora_name"):
                if isinstance(case.body.get(field), list):  # several adapters
                    case.body[field] = NAMES[: next(turn) % len(NAMES)]
                elif field in case.body:
                    case.body[field] = NAMES[next(turn) % len(NAMES)]
        if case.path_parameters and next(turn) % 2:
            case.path_parameters["ref"] = NAMES[next(turn) % len(NAMES)]
        response = target.send(case)
        assert response.status_code < 500, f"{response.status_code} {response.text} for {case.body!r}"
        check_body(operation.definition.raw["responses"], response)

    fuzz()
    body = {"lora_name": "two"}  # whatever was unloaded
    assert target.loop.run_until_complete(target.client.post("/v1/load_lora_adapter", json=body)).status_code == 200
    good = target.loop.run_until_complete(target.client.post("/v1/predict", json={"model": "two", "inputs": "a day"}))
    assert good.status_code == 200
