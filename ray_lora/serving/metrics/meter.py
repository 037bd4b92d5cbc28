"""What an endpoint counts, and how little of it becomes labels. Knows no Ray, no HTTP and no engine.

meter = Meter(sink)
meter.count(REQUESTS, "/v1/predict", "200", meter.adapters.label("tweets"))    # kept here until the next flush
meter.observe(SECONDS, 0.021, "/v1/predict")                                   # told to the sink at once
meter.flush()
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, Protocol

OTHER = "other"
_TIMES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class Metric:
    """One metric, under the name that Prometheus reads."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_BY_ADAPTER = ("adapter",)
REQUESTS = Metric("ray_lora_requests_total", "counter", "Requests answered", ("route", "status", "adapter"))
SECONDS = Metric("ray_lora_request_seconds", "histogram", "From arrival to answer", ("route",), _TIMES)
ADAPTER_SECONDS = Metric("ray_lora_adapter_seconds_total", "counter", "Sum of the requests' seconds", _BY_ADAPTER)
WAITING = Metric("ray_lora_rows_waiting", "gauge", "Rows that are in no batch yet")
INSIDE = Metric("ray_lora_rows_inside", "gauge", "Rows between arrival and answer")
BATCH_ROWS = Metric("ray_lora_batch_rows", "histogram", "Rows of a batch", (), (1, 2, 4, 8, 16, 32, 64, 128, 256))
BATCH_FILL = Metric("ray_lora_batch_fill", "gauge", "Rows of the last second's batches over what they could hold")
BATCHES = Metric("ray_lora_batches_total", "counter", "Batches computed")
ROWS = Metric("ray_lora_rows_total", "counter", "Rows computed")
COMPUTE = Metric("ray_lora_compute_seconds_total", "counter", "Time in which a batch was computed")
HITS = Metric("ray_lora_cache_hits_total", "counter", "Requests whose adapter was in a slot", _BY_ADAPTER)
MISSES = Metric("ray_lora_cache_misses_total", "counter", "Requests whose adapter was in no slot", _BY_ADAPTER)
LOADS = Metric("ray_lora_loads_total", "counter", "Adapters read from the store", _BY_ADAPTER)
EVICTIONS = Metric("ray_lora_evictions_total", "counter", "Adapters that left their slot", _BY_ADAPTER)
FAILURES = Metric("ray_lora_load_failures_total", "counter", "Adapters that could not be loaded", _BY_ADAPTER)
SLOTS = Metric("ray_lora_slots", "gauge", "Slots for adapters")
RESIDENTS = Metric("ray_lora_residents", "gauge", "Adapters in slots")
RAM = Metric("ray_lora_ram_bytes", "gauge", "Bytes of the adapters kept in RAM beside the slots")
AWAY = Metric("ray_lora_store_away", "gauge", "1 while the store does not answer")
WRITING_STEPS = Metric("ray_lora_writing_steps_total", "counter", "Steps of answers written token by token")
WRITING_COMPUTE = Metric("ray_lora_writing_seconds_total", "counter", "Time in which a step was computed")
WRITTEN = Metric("ray_lora_written_tokens_total", "counter", "Tokens of answers written")
READ = Metric("ray_lora_prompt_tokens_total", "counter", "Tokens of prompts read before answers")
WRITING = Metric("ray_lora_answers_written", "gauge", "Answers in the making")
WRITING_WAITING = Metric("ray_lora_answers_waiting", "gauge", "Answers that have not been begun")
PREFIX_HITS = Metric("ray_lora_prefix_hits_total", "counter", "Prompts that began with what was kept of another")
PREFIX_TOKENS = Metric("ray_lora_prefix_tokens_total", "counter", "Tokens of prompts that were not read again")

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


class Sink(Protocol):
    """Where values go: a counter's are added, a gauge's replace the one before, a histogram's are sorted in."""

    def tell(self, metric: Metric, value: float, labels: tuple[str, ...]) -> None: ...


class Busiest:
    """Label values for adapters: at most `places` names in the life of a process, `other` for the rest.

    A time series for each of a thousand adapters is more than Prometheus should carry, and a name that gives its label
    away leaves a series behind. So a label is never taken back: half of the places go to the names that come first,
    the others to names that make up at least 1/places of a window of requests.
    """

    def __init__(self, places: int = 32) -> None:
        self.places = places
        self._named: dict[str, str] = {}
        self._counts: Counter[str] = Counter()
        self._left = self._window = 16 * places

    def label(self, name: str) -> str:
        """The label of one request for this adapter."""
        if name in self._named or len(self._named) >= self.places:
            return self._named.get(name, OTHER)
        if 2 * len(self._named) < self.places:
            return self._named.setdefault(name, name)
        self._counts[name] += 1
        self._left -= 1
        if self._left == 0:
            self._elect()
        return self._named.get(name, OTHER)

    def _elect(self) -> None:
        for name, count in self._counts.most_common(self.places - len(self._named)):
            if count * self.places >= self._window:
                self._named[name] = name
        self._counts.clear()
        self._left = self._window


class Meter:
    """Counts between two flushes, so that a request costs additions here and one call of the sink. One thread's."""

    def __init__(self, sink: Sink, adapters: int = 32) -> None:
        self.adapters = Busiest(adapters)
        self._sink = sink
        self._counts: Counter[tuple[Metric, tuple[str, ...]]] = Counter()

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Add to a counter."""
        self._counts[metric, labels] += by  # type: ignore[assignment]  # a Counter adds what it is given

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Sort a value into a histogram, or set a gauge."""
        self._sink.tell(metric, value, labels)

    def flush(self) -> None:
        """Tell the sink what was counted since the last flush."""
        counts, self._counts = self._counts, Counter()
        for (metric, labels), value in counts.items():
            if value > 0:
                self._sink.tell(metric, value, labels)
