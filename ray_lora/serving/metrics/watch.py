"""An endpoint's counters and levels told to a meter: events as they happen, levels once a second. Knows no Ray.

watching = asyncio.create_task(watch(endpoint, meter))
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from ray_lora.serving.endpoint import Endpoint
from ray_lora.serving.metrics import meter as metrics
from ray_lora.serving.metrics.meter import Meter
from ray_lora.serving.writing.writer import Writer, WriterStats

_EVENTS = {
    "hits": metrics.HITS,
    "misses": metrics.MISSES,
    "loads": metrics.LOADS,
    "evictions": metrics.EVICTIONS,
    "failures": metrics.FAILURES,
}

_WRITING = {  # of `WriterStats`
    "steps": metrics.WRITING_STEPS,
    "seconds": metrics.WRITING_COMPUTE,
    "tokens": metrics.WRITTEN,
    "prompt_tokens": metrics.READ,
    "prefix_hits": metrics.PREFIX_HITS,
    "prefix_tokens": metrics.PREFIX_TOKENS,
}


class Watch:
    """The link between one endpoint and one meter."""

    def __init__(self, endpoint: Endpoint, meter: Meter) -> None:
        self.endpoint, self.meter = endpoint, meter
        self._rows = self._batches = 0  # at the last look
        self._writing = asdict(WriterStats())
        endpoint.cache.on_event = self._event
        endpoint.batcher.on_batch = self._batch

    async def run(self, every_s: float = 1.0) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            self.look()

    def look(self) -> None:
        """Tell the levels of now, and flush."""
        endpoint, tell = self.endpoint, self.meter.observe
        stats = endpoint.batcher.stats
        rows, batches = stats.rows - self._rows, stats.batches - self._batches
        self._rows, self._batches = stats.rows, stats.batches
        tell(metrics.BATCH_FILL, rows / (batches * endpoint.batcher.max_rows) if batches else 0.0)
        tell(metrics.WAITING, endpoint.batcher.waiting)
        tell(metrics.INSIDE, endpoint.gate.inside)
        tell(metrics.SLOTS, endpoint.cache.slots)
        tell(metrics.RESIDENTS, len(endpoint.cache.residents()))
        tell(metrics.RAM, endpoint.cache.ram_used)
        tell(metrics.AWAY, endpoint.registry.away)
        self._look_at(endpoint.speaker.writer)
        self.meter.flush()

    def _look_at(self, writer: Writer) -> None:
        before, self._writing = self._writing, asdict(writer.stats)
        for name, metric in _WRITING.items():
            self.meter.count(metric, by=self._writing[name] - before[name])
        self.meter.observe(metrics.WRITING, writer.running)
        self.meter.observe(metrics.WRITING_WAITING, writer.waiting)

    def _event(self, event: str, name: str) -> None:
        self.meter.count(_EVENTS[event], self.meter.adapters.label(name))

    def _batch(self, rows: int, seconds: float) -> None:
        self.meter.observe(metrics.BATCH_ROWS, rows)
        self.meter.count(metrics.BATCHES)
        self.meter.count(metrics.ROWS, by=rows)
        self.meter.count(metrics.COMPUTE, by=seconds)
