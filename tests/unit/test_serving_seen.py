"""What is seen of an endpoint: counts, latencies, levels, one line a request; and that labels stay few."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.inference.sampling import Sampling
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.serving.metrics import meter as metrics
from ray_lora.serving.metrics.meter import METRICS, OTHER, Busiest, Meter, Metric
from ray_lora.serving.metrics.seen import Seen
from ray_lora.serving.metrics.watch import Watch
from ray_lora.serving.writing.streams import Ask
from tests.unit import writing_world
from tests.unit.serving_world import make_adapter, make_base

ROOT = Path(__file__).parents[2]
COUNTED = (metrics.WRITING_STEPS, metrics.WRITING_COMPUTE, metrics.WRITTEN, metrics.READ)
WRITING = {metric.name for metric in (*COUNTED, metrics.PREFIX_HITS, metrics.PREFIX_TOKENS)}  # nobody writes here


class Page:
    """A sink that keeps what Prometheus would show."""

    def __init__(self) -> None:
        self.values: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.seen: dict[str, list[float]] = {}

    def tell(self, metric: Metric, value: float, labels: tuple[str, ...]) -> None:
        assert len(labels) == len(metric.labels)
        if metric.kind == "counter":
            assert value > 0
            self.values[metric.name, labels] += value  # type: ignore[assignment]
        elif metric.kind == "gauge":
            self.values[metric.name, labels] = value  # type: ignore[assignment]
        else:
            self.seen.setdefault(metric.name, []).append(value)

    def of(self, metric: Metric, *labels: str) -> float:
        return self.values[metric.name, labels]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seen")
    base = make_base(root / "base")
    for seed, name in enumerate("abc"):
        make_adapter(base, root / "store" / name, seed=seed)
    make_adapter(base, root / "store" / "wide", seed=5, rank=20)  # beyond max_rank
    return root


@asynccontextmanager
async def serving(
    world: Path, log: Any = "none", **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Page, Watch]]:
    folders = {name: str(world / name) for name in ("store", "base", "results")}
    endpoint = start_endpoint(AppArgs(**folders, slots=2, max_rank=16, **options))
    page = Page()
    watch = Watch(endpoint, Meter(page))
    app = create_app(endpoint)
    app.add_middleware(Seen, meter=watch.meter, log=log)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client, page, watch
    await endpoint.close()


def ask(client: httpx.AsyncClient, name: str, text: str = "a day") -> Any:
    return client.post("/v1/predict", json={"model": name, "inputs": [text] * 3})


def test_requests_batches_and_the_cache_are_counted(world: Path) -> None:
    async def main() -> None:
        async with serving(world) as (client, page, watch):
            for name in ("a", "a", "b", "c", "nothing", "wide"):
                await ask(client, name)
            await client.get("/v1/models")
            await client.get("/v1/models/a")
            await client.get("/no/such/path")
            assert not page.of(metrics.REQUESTS, "/v1/predict", "200", "a")  # told once a second, not once a request
            watch.look()
            assert page.of(metrics.REQUESTS, "/v1/predict", "200", "a") == 2
            assert page.of(metrics.REQUESTS, "/v1/predict", "200", "c") == 1
            assert page.of(metrics.REQUESTS, "/v1/predict", "404", "") == 1  # a name that is none makes no label
            assert page.of(metrics.REQUESTS, "/v1/predict", "400", "wide") == 1
            assert page.of(metrics.REQUESTS, "/v1/models", "200", "") == 1
            assert page.of(metrics.REQUESTS, "/v1/models/{ref:path}", "200", "") == 1
            assert page.of(metrics.REQUESTS, "none", "404", "") == 1
            assert len(page.seen[metrics.SECONDS.name]) == 9
            assert sum(page.seen[metrics.BATCH_ROWS.name]) == page.of(metrics.ROWS) == 12
            assert page.of(metrics.BATCHES) == len(page.seen[metrics.BATCH_ROWS.name])
            assert page.of(metrics.BATCH_FILL) == 12 / page.of(metrics.BATCHES) / 32
            assert page.of(metrics.COMPUTE) > 0
            assert page.of(metrics.HITS, "a") == 1
            assert [page.of(metrics.MISSES, name) for name in ("a", "b", "c", "wide")] == [1, 1, 1, 1]
            assert [page.of(metrics.LOADS, name) for name in ("a", "b", "c", "wide")] == [1, 1, 1, 1]
            assert page.of(metrics.FAILURES, "wide") == 1
            assert page.of(metrics.EVICTIONS, "a") == 1
            assert (page.of(metrics.RESIDENTS), page.of(metrics.SLOTS)) == (2, 2)
            assert page.of(metrics.RAM) > 0
            assert (page.of(metrics.WAITING), page.of(metrics.INSIDE), page.of(metrics.AWAY)) == (0, 0, 0)
            counted = {name for name, _ in page.values} | set(page.seen)
            assert counted == {metric.name for metric in METRICS} - WRITING
            before = dict(page.values)
            watch.look()
            assert page.values == before | {(metrics.BATCH_FILL.name, ()): 0.0}  # nothing is counted twice

    asyncio.run(main())


def test_answers_written_token_by_token_are_counted(tmp_path: Path) -> None:
    base = writing_world.make_base(tmp_path / "base")
    writing_world.make_adapter(base, tmp_path / "store" / "a", seed=0)
    prompt = " ".join(["the"] * 20)

    async def main() -> None:
        async with serving(tmp_path, dtype="float32") as (client, page, watch):
            asked = {"model": "a", "prompt": [prompt, "who says"], "max_tokens": 5, "n": 2, "temperature": 0}
            assert (await client.post("/v1/completions", json=asked)).status_code == 200
            watch.look()
            assert page.of(metrics.WRITTEN) == 20
            assert page.of(metrics.READ) == 22  # once for two answers
            assert page.of(metrics.WRITING_STEPS) >= 5
            assert page.of(metrics.WRITING_COMPUTE) > 0
            assert (page.of(metrics.PREFIX_HITS), page.of(metrics.PREFIX_TOKENS)) == (0, 0)
            assert (await client.post("/v1/completions", json=asked)).status_code == 200
            watch.look()
            assert (page.of(metrics.PREFIX_HITS), page.of(metrics.PREFIX_TOKENS)) == (1, 19)
            assert (page.of(metrics.WRITTEN), page.of(metrics.READ)) == (40, 22 + 3)
            writer = watch.endpoint.speaker.writer
            async with writer.open("a", [Ask(0, [5, 6], Sampling(max_tokens=9, n=40), ())]):
                watch.look()
                assert (page.of(metrics.WRITING), page.of(metrics.WRITING_WAITING)) == (0, 40)
                while not writer.running:
                    await asyncio.sleep(0)
                watch.look()
                assert (page.of(metrics.WRITING), page.of(metrics.WRITING_WAITING)) == (40, 0)
            watch.look()
            assert (page.of(metrics.WRITING), page.of(metrics.WRITING_WAITING)) == (0, 0)
            before = dict(page.values)
            watch.look()
            assert page.values == before  # nothing is counted twice

    asyncio.run(main())


def test_a_refused_adapter_s_request_is_counted_as_its_own(world: Path) -> None:
    async def main() -> None:
        async with serving(world, max_waiting_per_adapter=3) as (client, page, watch):
            answers = await asyncio.gather(*(ask(client, "a") for _ in range(4)))
            refused = sum(answer.status_code == 429 for answer in answers)
            assert refused
            watch.look()
            assert page.of(metrics.REQUESTS, "/v1/predict", "429", "a") == refused

    asyncio.run(main())


def test_a_failure_of_our_own_is_a_500_that_is_counted(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Endpoint) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Endpoint, "check", broken)

    async def main() -> None:
        async with serving(world) as (client, page, watch):
            assert (await client.get("/health")).status_code == 500
            watch.look()
            assert page.of(metrics.REQUESTS, "/health", "500", "") == 1

    asyncio.run(main())


def test_a_request_is_one_line_without_its_input_or_key(
    world: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_LORA_API_KEYS", "sk-secret")
    caplog.set_level(logging.INFO, "ray_lora.requests")
    headers = {"authorization": "Bearer sk-secret"}

    async def main() -> None:
        async with serving(world, log="all") as (client, _, _):
            client.headers.update(headers)
            assert (await ask(client, "a", "very private day")).status_code == 200
            assert (await ask(client, "nothing", "very private day")).status_code == 404
            del client.headers["authorization"]
            assert (await ask(client, "a", "very private day")).status_code == 401

    asyncio.run(main())
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "ray_lora.requests"]
    good, missing, keyless = lines
    assert (good["method"], good["route"], good["status"]) == ("POST", "/v1/predict", 200)
    assert (good["adapter"], good["rows"]) == ("a@1", 3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", good["time"])
    assert 0 <= good["queue_ms"] <= good["queue_ms"] + good["compute_ms"] <= good["ms"] + 0.02
    assert (missing["status"], missing["adapter"], missing["queue_ms"]) == (404, None, None)
    assert (keyless["status"], keyless["rows"]) == (401, 0)
    assert "private" not in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(("log", "statuses"), [("none", []), ("errors", [404]), ("all", [200, 404])])
def test_the_level_says_which_requests_are_written(
    world: Path, caplog: pytest.LogCaptureFixture, log: str, statuses: list[int]
) -> None:
    caplog.set_level(logging.INFO, "ray_lora.requests")

    async def main() -> None:
        async with serving(world, log=log) as (client, _, _):
            await ask(client, "a")
            await ask(client, "nothing")

    asyncio.run(main())
    written = [record for record in caplog.records if record.name == "ray_lora.requests"]
    assert [json.loads(record.getMessage())["status"] for record in written] == statuses


def test_a_thousand_names_make_few_labels() -> None:
    busiest = Busiest(places=8)
    labels = Counter(busiest.label(f"name-{number % 1000}") for number in range(20_000))
    assert len(labels) <= 9
    assert labels[OTHER] > 19_000


def test_a_name_that_proves_busy_gets_a_label_and_keeps_it() -> None:
    busiest = Busiest(places=8)
    for number in range(1000):
        busiest.label(f"name-{number}")
    assert busiest.label("hot") == OTHER
    for number in range(1000):
        busiest.label("hot" if number % 4 else f"name-{number}")
    assert busiest.label("hot") == "hot"
    for number in range(100_000):
        busiest.label(f"name-{number}")
    assert busiest.label("hot") == "hot"
    assert len(busiest._named) <= 8


def test_the_dashboard_and_the_code_name_the_same_metrics() -> None:
    dashboard = json.loads((ROOT / "serve_apps" / "grafana.json").read_text())
    panels = [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", ()))]
    asked = " ".join(target["expr"] for panel in panels for target in panel.get("targets", ()))
    named = set(re.findall(r"ray_lora_\w+", asked))
    exported = {
        metric.name + end
        for metric in METRICS
        for end in (("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",))
    }
    assert named <= exported, named - exported
    kinds = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in named}
    assert kinds == {metric.name for metric in METRICS}  # nothing is exported that nobody looks at
    labels = {label for metric in METRICS for label in metric.labels} | {"le", "deployment", "replica", "application"}
    for grouping in re.findall(r"by\s*\(([^)]*)\)", asked):
        assert {label.strip() for label in grouping.split(",")} <= labels
