"""What Prometheus and a log collector find of an endpoint on a real cluster without a dashboard."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ray_lora.errors import RecipeError
from ray_lora.serving import AppArgs, run
from ray_lora.serving.metrics import meter
from ray_lora.serving.metrics.meter import METRICS
from ray_lora.serving.metrics.ray_sink import pages
from tests.unit.serving_world import make_adapter, make_base

# Counters of what nobody does here; tests/unit/test_serving_seen.py looks at them.
OF_WRITING = (
    meter.WRITING_STEPS, meter.WRITING_COMPUTE, meter.WRITTEN, meter.READ, meter.PREFIX_HITS, meter.PREFIX_TOKENS
)  # fmt: skip


@pytest.fixture(scope="module")
def address(fresh_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from ray import serve

    root = tmp_path_factory.mktemp("seen")
    base = make_base(root / "base")
    for seed, name in enumerate("abc"):
        make_adapter(base, root / "store" / name, seed=seed)
    make_adapter(base, root / "store" / "wide", seed=5, rank=20)  # beyond max_rank
    yield run(AppArgs(store=str(root / "store"), slots=2, max_rank=8, port=0, log_requests="all"), block=False)
    serve.shutdown()


def values(page: str, name: str) -> dict[str, float]:
    """The series of a metric: their labels as they stand there -> value."""
    return {labels: float(value) for labels, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", page, re.M)}


def test_the_metrics_agent_s_page_holds_every_metric(address: str) -> None:
    with httpx.Client(base_url=address, timeout=None) as client:
        for name in ("a", "a", "a", "b", "c", "wide"):
            client.post("/v1/predict", json={"model": name, "inputs": ["a day", "good"]})
    while True:  # Ray's workers report every few seconds
        page = "".join(httpx.get(url, timeout=None).text for url in pages())
        counted = [
            value
            for labels, value in values(page, "ray_lora_requests_total").items()
            if all(part in labels for part in ('route="/v1/predict"', 'status="200"', 'adapter="a"'))
        ]
        if counted == [3.0]:
            break
        assert not counted or counted[0] < 3
        time.sleep(0.5)
    for metric in METRICS:
        if metric in OF_WRITING:
            continue
        series = values(page, metric.name + ("_count" if metric.kind == "histogram" else ""))
        assert series, f"{metric.name} is not on the page"
        assert all('deployment="Endpoint"' in labels and 'application="ray_lora"' in labels for labels in series)
    assert sum(values(page, "ray_lora_rows_total").values()) == 10
    assert sum(values(page, "ray_lora_batch_rows_count").values()) == sum(
        values(page, "ray_lora_batches_total").values()
    )


def test_the_replica_writes_a_line_for_each_request(address: str) -> None:
    from ray._private.worker import _global_node

    assert _global_node is not None
    with httpx.Client(base_url=address, timeout=None) as client:
        assert client.post("/v1/predict", json={"model": "b", "inputs": ["a private day"] * 7}).status_code == 200
    logs = Path(_global_node.get_logs_dir_path())
    while True:
        texts = [path.read_text(errors="replace") for path in logs.glob("worker-*.err")]
        lines = [line for text in texts for line in text.splitlines() if '"rows": 7' in line]
        if lines:
            break
        time.sleep(0.1)
    [line] = map(json.loads, lines)
    assert (line["route"], line["status"], line["adapter"]) == ("/v1/predict", 200, "b@1")
    assert not any("private" in text for text in texts)


def test_a_port_for_metrics_is_refused_where_ray_runs_already(tmp_path: Path) -> None:
    store = tmp_path / "store"
    make_adapter(make_base(tmp_path / "base"), store / "a", seed=0)
    with pytest.raises(RecipeError, match="metrics-export-port"):
        run(AppArgs(store=str(store), port=0, metrics_port=9999), block=False)
