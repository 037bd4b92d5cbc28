"""Metrics through Ray: what is told here stands on the Prometheus page of each node's metrics agent.

Ray adds `ray_` to the names, and Serve the labels `application`, `deployment` and `replica`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.serve import metrics as serve_metrics

from ray_lora.serving.metrics.meter import METRICS, Metric


class RaySink:
    """Tells Ray; to be made inside a replica."""

    def __init__(self) -> None:
        self._tell = {metric.name: _teller(metric) for metric in METRICS}

    def tell(self, metric: Metric, value: float, labels: tuple[str, ...]) -> None:
        """Hand one value to Ray."""
        self._tell[metric.name](value, dict(zip(metric.labels, labels, strict=True)))


def _teller(metric: Metric) -> Callable[[float, dict[str, str]], None]:
    name = metric.name.removeprefix("ray_")
    labels: Any = metric.labels  # Serve's signature says tuples of one
    if metric.kind == "counter":
        counter = serve_metrics.Counter(name.removesuffix("_total"), metric.help, labels)
        return counter.inc
    if metric.kind == "histogram":
        return serve_metrics.Histogram(name, metric.help, list(metric.buckets), labels).observe
    return serve_metrics.Gauge(name, metric.help, labels).set


def pages() -> list[str]:
    """The addresses of the nodes' Prometheus pages; Ray must be connected."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"] > 0]
    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]
