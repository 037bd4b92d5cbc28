"""Twenty rolling updates of a live endpoint under load: how many requests fail?

    python -m benchmarks.rolling [--updates 20] [--minutes 4 --go-on]

Two tiny bases (one that classifies texts, one that writes), two replicas of each, behind HAProxy. The application is
deployed again with other arguments, so that Serve puts a new replica in the place of each old one, one after the other,
while four clients ask without a pause: over a connection that is kept, over a new one each time, for texts that come
whole and for texts that come as events. Each answer is compared with plain PEFT's; a text must come to its end. A
failure is a status that is not 200, a wrong answer, a broken stream, or a connection that ends.

`asked again` counts kept connections that the proxy closed, idle, at the moment at which the next request left, before
a byte of an answer: HTTP has clients ask again then (RFC 9112, 9.3.1), and these do, once, over a new connection.

With `--minutes` no update begins later than that, and with `--go-on` what is measured is added to the result file,
so that a machine that others share is not held for half an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import RESULTS, write
from tests.ray.test_faults import Served
from tests.unit import writing_world
from tests.unit.serving_world import make_adapter, make_base, peft_probabilities

TEXTS = ("a lovely day", "the film was very dull and so slow", "good")
PROMPTS = ("the capital of Peru", "who says yes", "what is the river")
NAMES, VOICES, TOKENS = ("a", "b", "c", "d"), ("left", "right"), 24
SLOTS = (2, 3)  # of the arguments of one update and of the next


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--updates", type=int, default=20)
    options.add_argument("--minutes", type=float, default=math.inf, help="no update begins later than this")
    options.add_argument("--go-on", action="store_true", help="add to the result file until there are so many updates")
    asked = options.parse_args()
    file = RESULTS / "rolling.json"
    before = json.loads(file.read_text()) if asked.go_on and file.exists() else None
    left = asked.updates - (before["updates"] if before else 0)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        served = Served(Path(folder), slots=SLOTS[0], num_cpus=0.25)
        try:
            result = measure(served, world, left, 60 * asked.minutes)
        finally:
            served.close()
    if before:
        result = {name: added(before[name], told) for name, told in result.items()}
    print(write("rolling", {"what": __doc__, **result}))
    if result["failed"]:
        raise SystemExit(f"failed: {result['failures']}")


def added(before: Any, told: Any) -> Any:
    """Two runs' figures as one's."""
    if isinstance(told, dict):
        return {key: before.get(key, 0) + told.get(key, 0) for key in [*before, *(set(told) - set(before))]}
    return before + told


class World:
    """The store, and what plain PEFT says of each adapter."""

    def __init__(self, root: Path) -> None:
        texts, writing = make_base(root / "texts"), writing_world.make_base(root / "writing")
        self.scores: dict[tuple[str, int], list[float]] = {}
        self.written: dict[tuple[str, str], str] = {}
        for seed, name in enumerate(NAMES):
            folder = make_adapter(texts, root / "store" / name, seed=seed, labels=2 + seed)
            self.scores |= {(name, row): told for row, told in enumerate(peft_probabilities(texts, folder, TEXTS))}
        for seed, name in enumerate(VOICES):
            alone = writing_world.Alone(writing, writing_world.make_adapter(writing, root / "store" / name, seed=seed))
            self.written |= {(name, prompt): alone.text(prompt, TOKENS) for prompt in PROMPTS}


class Clients:
    """Four clients in a thread, each asks again as soon as it is answered."""

    def __init__(self, address: str, world: World) -> None:
        self.answered, self.failed = Counter[str](), Counter[str]()
        self.examples: list[str] = []
        self.asked_again = 0
        self.seconds: list[tuple[float, float]] = []  # when an answer was there, and how long it took
        self._address, self._world, self._ended, self._dice = address, world, threading.Event(), random.Random(0)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def wait_for(self, more: int) -> None:
        """Until so many more requests have ended, either way."""
        with self._changed:
            goal = len(self.seconds) + self.failed.total() + more
            self._changed.wait_for(lambda: len(self.seconds) + self.failed.total() >= goal)

    async def _main(self) -> None:
        kinds: dict[str, Callable[[httpx.AsyncClient], Awaitable[str]]] = {
            "kept connection": self._predict,
            "new connection": self._predict,
            "text": self._text,
            "events": self._events,
        }
        await asyncio.gather(*(self._client(kind, ask) for kind, ask in kinds.items()))

    async def _client(self, kind: str, ask: Callable[[httpx.AsyncClient], Awaitable[str]]) -> None:
        limits = httpx.Limits(max_keepalive_connections=0 if kind == "new connection" else 1)
        async with httpx.AsyncClient(base_url=self._address, timeout=None, limits=limits) as client:
            while not self._ended.is_set():
                began = time.monotonic()
                try:
                    wrong = await ask(client)
                except httpx.TransportError as error:
                    wrong = f"{type(error).__name__} {error}"
                with self._changed:
                    if wrong:
                        self.failed[f"{kind}: {wrong.split(maxsplit=1)[0]}"] += 1
                        self.examples = [*self.examples, f"{kind}: {wrong[:400]}"][:20]
                    else:
                        self.answered[kind] += 1
                        self.seconds.append((time.monotonic(), time.monotonic() - began))
                    self._changed.notify_all()

    async def _send(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response:
        """The head of an answer; see `asked again` above."""
        request = client.build_request("POST", path, json=body)
        try:
            return await client.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            self.asked_again += 1
            return await client.send(client.build_request("POST", path, json=body), stream=True)

    async def _predict(self, client: httpx.AsyncClient) -> str:
        """What is wrong with one answer, or nothing."""
        name, row = self._dice.choice(list(self._world.scores))
        reply = await self._send(
            client, "/v1/predict", {"model": name, "inputs": TEXTS[row], "parameters": {"top_k": 9}}
        )
        await reply.aread()
        if reply.status_code != 200:
            return f"{reply.status_code} {reply.text}"
        told = {item["label"]: item["score"] for item in reply.json()["predictions"][0]}
        expected = self._world.scores[name, row]
        near = all(abs(told[f"LABEL_{index}"] - score) < 1e-4 for index, score in enumerate(expected))
        return "" if near and reply.headers["x-adapter"] == f"{name}@1" else f"wrong {reply.text}"

    async def _text(self, client: httpx.AsyncClient) -> str:
        name, prompt = self._dice.choice(list(self._world.written))
        reply = await self._send(client, "/v1/completions", self._wanted(name, prompt))
        await reply.aread()
        if reply.status_code != 200:
            return f"{reply.status_code} {reply.text}"
        said = reply.json()["choices"][0]["text"]
        return "" if said == self._world.written[name, prompt] else f"wrong {said}"

    async def _events(self, client: httpx.AsyncClient) -> str:
        name, prompt = self._dice.choice(list(self._world.written))
        reply = await self._send(client, "/v1/completions", {**self._wanted(name, prompt), "stream": True})
        if reply.status_code != 200:
            return f"{reply.status_code} {(await reply.aread()).decode()}"
        events = [line.removeprefix("data: ") async for line in reply.aiter_lines() if line.startswith("data: ")]
        if not events or events[-1] != "[DONE]":
            return f"broken {events[-1:]}"
        said = "".join(
            choice.get("text", "") for event in events[:-1] for choice in json.loads(event).get("choices", ())
        )
        return "" if said == self._world.written[name, prompt] else f"wrong {said}"

    @staticmethod
    def _wanted(name: str, prompt: str) -> dict[str, Any]:
        return {"model": name, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}


def measure(served: Served, world: World, updates: int, within_s: float) -> dict[str, Any]:
    """Each update with its seconds and requests; all failures by kind."""
    told: list[dict[str, Any]] = []
    with Clients(served.address, world) as clients:
        clients.wait_for(100)
        started = time.monotonic()
        for number in range(1, updates + 1):
            if time.monotonic() - started > within_s:
                break
            before, began, answered = served.pids("ray::ServeReplica"), time.monotonic(), len(clients.seconds)
            served.deploy(slots=SLOTS[number % 2])
            clients.wait_for(50)
            kept = before & served.pids("ray::ServeReplica")
            if kept:
                raise SystemExit(f"update {number} left replicas where they were: {sorted(kept)}")
            seconds = [took for when, took in clients.seconds[answered:] if when >= began]
            told.append(
                {
                    "seconds": round(time.monotonic() - began, 1),
                    "replicas": len(before),
                    "answered": len(seconds),
                    "failed": clients.failed.total(),
                    "p50_ms": round(1000 * statistics.median(seconds), 1),
                    "slowest_ms": round(1000 * max(seconds), 1),
                }
            )
            print(number, json.dumps(told[-1]), dict(clients.failed), f"asked again: {clients.asked_again}", flush=True)
        clients.wait_for(100)
    return {
        "updates": len(told),
        "runs": 1,
        "answered": clients.answered.total(),
        "failed": clients.failed.total(),
        "failures": dict(clients.failed),
        "examples": clients.examples,
        "asked_again": clients.asked_again,
        "by_kind": dict(clients.answered),
        "each": told,
    }


if __name__ == "__main__":
    main()
