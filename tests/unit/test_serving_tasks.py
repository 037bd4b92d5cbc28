"""Adapters of every task of texts on one base, behind one endpoint: one pass for all of them, each answer its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.engine import AdapterEngine
from ray_lora.inference import stored
from ray_lora.inference.predict import predict
from ray_lora.store import open_store
from ray_lora.tasks import row_of
from tests.unit.http_server import serving
from tests.unit.serving_world import card, make_adapter, make_answerer, make_tagger

TEXT = "a lovely day but the film was very dull"
CONTEXT = f"{TEXT} . so bright and calm , not very loud , glad and sad and slow {TEXT}"
ASKED: dict[str, Any] = {
    "moods": TEXT,
    "topics": TEXT,
    "stars": TEXT,
    "likeness": {"text": TEXT, "text_pair": "not bad"},
    "tagger": TEXT,
    "answerer": {"question": "not bad ?", "context": "the film was dull"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One label, several labels and a number for a text, a label for two texts, labels of words, answers."""
    root = make_tagger(make_answerer(tmp_path_factory.mktemp("tasks")))
    base, store = root / "base", root / "store"
    card(make_adapter(base, store / "moods", seed=1, labels=3), base, ["sad", "calm", "glad"])
    several = {"problem_type": "multi_label_classification"}
    card(make_adapter(base, store / "topics", seed=2, labels=2), base, ["film", "day"], **several)
    card(make_adapter(base, store / "stars", seed=3, labels=1), base, None, problem_type="regression")
    card(make_adapter(base, store / "likeness", seed=4, labels=2), base, ["unlike", "alike"])
    return root


def answer_of(world: Path, name: str, value: Any) -> Any:
    """Of the adapter alone, on a base of its own."""
    _, adapter = open_store(str(world / "store")).load(name)
    engine, slot, task = stored.alone(adapter, name, str(world / "base"), "float32")
    [answer] = predict(engine, {slot: task}, task.encode([row_of(task, value)]), [slot])
    engine.close()
    return answer


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """The slots of each pass."""
    seen: list[list[int]] = []
    forward = AdapterEngine.forward

    def watched(self: AdapterEngine, inputs: Any, slots: Any, draws: Any = None) -> Any:
        seen.append(slots.tolist())
        return forward(self, inputs, slots, draws)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterEngine, "forward", watched)
        yield seen


def test_all_tasks_of_texts_share_one_pass(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {name: answer_of(world, name, value) for name, value in ASKED.items()}
    with serving(world, slots=len(ASKED)) as address, ThreadPoolExecutor(len(ASKED) + 1) as pool:

        def ask(name: str) -> Any:
            reply = httpx.post(f"{address}/v1/predict", json={"model": name, "inputs": ASKED[name]}, timeout=None)
            assert reply.status_code == 200, reply.text
            return reply.json()["predictions"][0]

        for name, value in alone.items():
            assert near(ask(name), value), name  # and so all are in their slots
        with held(monkeypatch) as seen:
            busy, go = threading.Event(), threading.Event()
            first = AdapterEngine.forward

            def slow(self: AdapterEngine, *given: Any) -> Any:
                busy.set()
                go.wait()  # all others come while this one is computed
                monkeypatch.setattr(AdapterEngine, "forward", first)
                return first(self, *given)

            monkeypatch.setattr(AdapterEngine, "forward", slow)
            blocking = pool.submit(ask, "moods")
            busy.wait()
            replies = {name: pool.submit(ask, name) for name in ASKED}
            while httpx.get(f"{address}/v1/status", timeout=None).json()["rows_waiting"] < len(ASKED):
                pass
            go.set()
            assert near(blocking.result(), alone["moods"])
            for name, reply in replies.items():
                assert near(reply.result(), alone[name]), name
    assert [len(pass_) for pass_ in seen] == [1, len(ASKED)]
    assert len(set(seen[1])) == len(ASKED)


def test_a_long_context_takes_turns(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its windows are rows of batches as any other's, so that others wait for one batch and not for a whole text."""
    question = {"question": "not bad ?", "context": " . ".join([CONTEXT] * 20)}
    alone = answer_of(world, "answerer", question)
    with serving(world, max_batch_rows=4) as address, held(monkeypatch) as seen:
        body = {"model": "answerer", "inputs": question}
        reply = httpx.post(f"{address}/v1/predict", json=body, timeout=None).json()
        assert near(reply["predictions"][0], alone)
        assert len(seen) > 10
        assert max(map(len, seen)) == 4


def near(one: Any, other: Any) -> bool:
    """Equal but for the last digits of numbers."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    return bool(one == pytest.approx(other, abs=1e-5)) if isinstance(one, float) else bool(one == other)
