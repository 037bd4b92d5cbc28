"""The requests of `benchmarks/soak.py`: answers of mixed adapters, texts given up half-way, wrong requests, clients
that go away; and what happens to the store meanwhile. Each answer of a known content is compared with plain PEFT's.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from safetensors.torch import load_file, save_file

from ray_lora.adapters.adapter import Adapter
from ray_lora.errors import RayLoraError
from ray_lora.store import Store, open_store, steer
from tests.unit import writing_world
from tests.unit.serving_world import make_adapter, make_base, peft_probabilities

TEXTS = ("a lovely day", "the film was very dull and so slow", "good")
PROMPTS = ("the capital of Peru", "the capital of Mali is Bamako , a", "who says yes", "what is the river")
CLASSIFIERS, WRITERS, CONTENTS, GUESTS, VERSIONS = 20, 6, 12, 8, 3
_CHURN_S = 2.0


class World:
    """Two bases and a store: names that stay and get versions, and guests that bring a content of their own and go."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bases = [make_base(root / "texts"), writing_world.make_base(root / "writing")]
        self.store: Store = open_store(str(root / "store"))
        self.expected: dict[str, list[list[float]]] = {}
        self.contents: list[Adapter] = []
        self.writers: list[Adapter] = []
        for seed in range(CONTENTS):
            folder = make_adapter(self.bases[0], root / f"c{seed}", seed=seed, rank=1 + seed % 4, labels=2 + seed % 3)
            self.contents.append(Adapter.load(folder))
            self.expected[self.contents[-1].sha256] = peft_probabilities(self.bases[0], folder, TEXTS)
        for seed in range(WRITERS):
            path = writing_world.make_adapter(self.bases[1], root / f"w{seed}", seed=seed)
            self.writers.append(Adapter.load(path))
        self.names = [f"n{number}" for number in range(CLASSIFIERS)]
        self.voices = [f"w{number}" for number in range(WRITERS)]
        for number, name in enumerate(self.names):
            self.store.put(self.contents[number % CONTENTS], name)
        for name, adapter in zip(self.voices, self.writers, strict=True):
            self.store.put(adapter, name)
        self.guests: list[str] = []
        self.came = 0

    def new_guest(self) -> tuple[str, Path]:
        """A name and a PEFT folder that nobody has seen: a classifier, each third time a writer."""
        self.came += 1
        origin = self.root / (f"w{self.came % WRITERS}" if self.came % 3 == 0 else f"c{self.came % CONTENTS}")
        folder = self.root / "guest"
        folder.mkdir(exist_ok=True)
        tensors = load_file(origin / "adapter_model.safetensors")
        key = next(key for key in sorted(tensors) if "lora_B" in key)
        tensors[key] = tensors[key] * (1 + self.came / 1000)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text((origin / "adapter_config.json").read_text())
        return f"{'voice' if self.came % 3 == 0 else 'guest'}-{self.came}", folder


@dataclass
class Counts:
    """Requests by kind and what they came to, and those that came to what they must not."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def note(self, kind: str, outcome: object, right: bool, told: str = "") -> None:
        self.outcomes[f"{kind}: {outcome}"] += 1
        if not right:
            self.failed[f"{kind}: {outcome}"] += 1
            self.examples = [*self.examples, f"{kind}: {outcome} {told[:300]}"][:20]


class Traffic:
    """`rate` requests a second over `clients` connections until `end`, and a change of the store each two seconds."""

    def __init__(self, address: str, world: World, rate: float, clients: int = 4) -> None:
        self.counts, self.changes = Counts(), Counter[str]()
        self._address, self._world, self._pause, self._clients = address, world, clients / rate, clients
        self._dice, self._ended = random.Random(0), asyncio.Event()
        self._kinds: dict[Callable[[httpx.AsyncClient], Awaitable[None]], int] = {
            self._predict: 55, self._several: 6, self._write: 6, self._give_up: 10, self._wrong: 12, self._leave: 6,
            self._feedback: 3, self._look: 2,
        }  # fmt: skip

    def end(self) -> None:
        self._ended.set()

    async def run(self) -> None:
        await asyncio.gather(self._churn(), *(self._client() for _ in range(self._clients)))

    async def _rest(self, seconds: float) -> None:
        """So long, or until the end."""
        try:
            await asyncio.wait_for(self._ended.wait(), seconds)
        except TimeoutError:
            return

    async def _client(self) -> None:
        async with httpx.AsyncClient(base_url=self._address, timeout=60) as client:
            while not self._ended.is_set():
                (kind,) = self._dice.choices(list(self._kinds), list(self._kinds.values()))
                try:
                    await kind(client)
                except httpx.HTTPError as error:
                    self.counts.note(kind.__name__.strip("_"), type(error).__name__, False, str(error))
                await self._rest(self._pause * self._dice.uniform(0.5, 1.5))

    # ---------------------------------------------------------------- requests

    async def _predict(self, client: httpx.AsyncClient) -> None:
        """Rows of one adapter; a guest may have gone."""
        guests = [name for name in self._world.guests if name.startswith("guest")]
        name = self._dice.choice(guests if guests and self._dice.random() < 0.2 else self._world.names)
        rows = [self._dice.randrange(len(TEXTS)) for _ in range(self._dice.choice((1, 1, 2, 5)))]
        body = {"model": name, "inputs": [TEXTS[row] for row in rows], "parameters": {"top_k": 9}}
        reply = await client.post("/v1/predict", json=body, headers={"x-user": f"u{self._dice.randrange(10**6)}"})
        if reply.status_code != 200:
            gone = reply.status_code == 404 and name not in self._world.names
            self.counts.note("predict", reply.status_code, gone, reply.text)
            return
        whose = reply.headers["x-adapter"].partition("@")[0] == name
        expected = self._world.expected.get(reply.headers["x-adapter-sha256"])
        right = whose and (expected is not None or name not in self._world.names)
        for row, answer in zip(rows, reply.json()["predictions"], strict=True):
            scores = {item["label"]: item["score"] for item in answer}
            for index, score in enumerate(expected[row] if expected else ()):
                right = right and abs(scores[f"LABEL_{index}"] - score) < 1e-4
        self.counts.note("predict", 200 if right else "a wrong answer", right, reply.text)

    async def _several(self, client: httpx.AsyncClient) -> None:
        """Two adapters in one request."""
        body = {"model": self._dice.sample(self._world.names, 2), "inputs": self._dice.choice(TEXTS)}
        reply = await client.post("/v1/predict", json=body)
        self.counts.note("several", reply.status_code, reply.status_code == 200, reply.text)

    def _asked(self, **more: object) -> dict[str, object]:
        voices = [name for name in self._world.guests if name.startswith("voice")]
        name = self._dice.choice(voices if voices and self._dice.random() < 0.2 else self._world.voices)
        return {"model": name, "prompt": self._dice.choice(PROMPTS), "max_tokens": self._dice.randrange(1, 24), **more}

    def _written(self, kind: str, asked: dict[str, object], status: int, told: str) -> None:
        gone = status == 404 and asked["model"] not in self._world.voices
        self.counts.note(kind, status, status == 200 or gone, told)

    async def _write(self, client: httpx.AsyncClient) -> None:
        """A text, whole."""
        asked = self._asked(n=self._dice.choice((1, 1, 2)))
        reply = await client.post("/v1/completions", json=asked)
        self._written("written", asked, reply.status_code, reply.text)

    async def _give_up(self, client: httpx.AsyncClient) -> None:
        """A text as events; the client leaves after some of them."""
        asked = self._asked(stream=True, temperature=1.0)
        left = self._dice.randrange(6)
        async with client.stream("POST", "/v1/completions", json=asked) as reply:
            if reply.status_code == 200:
                async for _ in reply.aiter_lines():
                    left -= 1
                    if left < 0:
                        break
            told = "" if reply.status_code == 200 else (await reply.aread()).decode()
            self._written("given up", asked, reply.status_code, told)

    async def _wrong(self, client: httpx.AsyncClient) -> None:
        """What must be refused with a 4xx."""
        known = self._dice.choice(self._world.names)
        nobody = f"nobody-{self._dice.randrange(10**9)}"
        kind, sent = self._dice.choice(
            (
                ("nobody", {"json": {"model": nobody, "inputs": "a"}}),
                (
                    "no such version",
                    {"json": {"model": f"{known}@{self._dice.randrange(10**4, 10**6)}", "inputs": "a"}},
                ),
                ("a number", {"json": {"model": known, "inputs": self._dice.randrange(99)}}),
                ("unknown parameter", {"json": {"model": known, "inputs": "a", "parameters": {nobody: 1}}}),
                ("unknown field", {"json": {"model": known, "inputs": "a", nobody: 1}}),
                ("half a body", {"content": b'{"model": "n1", "inputs'}),
                ("too long", {"json": {"model": known, "inputs": "a " * 40_000}}),
                ("coded", {"content": b"x", "headers": {"content-encoding": "gzip"}}),
                ("another site", {"json": {"model": known, "inputs": "a"}, "headers": {"host": f"{nobody}.example"}}),
            )
        )
        sent = {"headers": {"content-type": "application/json"} | sent.pop("headers", {}), **sent}  # type: ignore[operator]
        reply = await client.post("/v1/predict", **sent)  # type: ignore[arg-type]
        right = 400 <= reply.status_code < 500 and "error" in reply.json()
        self.counts.note(f"wrong, {kind}", reply.status_code, right, reply.text)

    async def _leave(self, _: httpx.AsyncClient) -> None:
        """A client that goes before its answer: with half a request, with a whole one, or as the answer comes."""
        host, _, port = self._address.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"model": self._dice.choice(self._world.names), "inputs": list(TEXTS)}).encode()
        head = f"POST /v1/predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        whole = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        way = self._dice.choice(("half a head", "half a body", "whole", "at the first byte"))
        cut = {"half a head": len(head) // 2, "half a body": len(whole) - len(body) // 2}.get(way, len(whole))
        writer.write(whole[:cut])
        await writer.drain()
        if way == "at the first byte":
            await reader.read(1)
        if self._dice.random() < 0.5:
            writer.transport.abort()  # a reset in place of an end
        writer.close()
        self.counts.note("left", way, True)

    async def _feedback(self, client: httpx.AsyncClient) -> None:
        """What an answer of a name under trial was worth."""
        reply = await client.post("/v1/predict", json={"model": "n0", "inputs": TEXTS[0]})
        body = {"id": reply.headers.get("x-request-id", "none"), "value": self._dice.random() < 0.5}
        reply = await client.post("/v1/feedback", json=body)
        # Two replicas do not share ids; and an answer that was not on trial has none.
        self.counts.note("feedback", reply.status_code, reply.status_code in (200, 404), reply.text)

    async def _look(self, client: httpx.AsyncClient) -> None:
        """Lists, the status, the page."""
        path = self._dice.choice(("/v1/models", "/v1/status", "/health", "/", f"/v1/models/{self._world.names[0]}"))
        reply = await client.get(path)
        self.counts.note("look", reply.status_code, reply.status_code == 200, reply.text)

    # ---------------------------------------------------------------- the store

    async def _churn(self) -> None:
        """Publish, promote, split, unload and load, delete versions, guests come and go."""
        async with httpx.AsyncClient(base_url=self._address, timeout=60) as client:
            ways = (self._publish, self._publish, self._move, self._try_two, self._guest, self._guest, self._pause_one)
            while not self._ended.is_set():
                way = self._dice.choice(ways)
                try:
                    await way(client)
                    self.changes[way.__name__.strip("_")] += 1
                except (httpx.HTTPError, RayLoraError) as error:
                    self.counts.note("change", f"{way.__name__.strip('_')}: {type(error).__name__}", False, str(error))
                await self._rest(_CHURN_S)

    def _renew(self, name: str) -> None:
        """A new version, made the champion; the oldest beyond `VERSIONS` are deleted."""
        store = self._world.store
        adapter = self._dice.choice(self._world.writers if name.startswith("w") else self._world.contents)
        store.point(name, steer.promote(store.put(adapter, name).version))
        for entry in sorted(store.list(name), key=lambda entry: entry.version)[:-VERSIONS]:
            try:
                store.remove(entry.ref)
            except RayLoraError:  # a split names it
                self.changes["still in use"] += 1

    async def _publish(self, _: httpx.AsyncClient) -> None:
        await asyncio.to_thread(self._renew, self._dice.choice([*self._world.names, *self._world.voices]))

    async def _move(self, _: httpx.AsyncClient) -> None:
        """The champion is any of the versions."""
        name = self._dice.choice(self._world.names)
        versions = [entry.version for entry in await asyncio.to_thread(self._world.store.list, name)]
        await asyncio.to_thread(self._world.store.point, name, steer.promote(self._dice.choice(versions)))

    async def _try_two(self, _: httpx.AsyncClient) -> None:
        """The first name is split over two versions, with a shadow."""
        await asyncio.to_thread(self._renew, "n0")
        versions = [entry.version for entry in await asyncio.to_thread(self._world.store.list, "n0")][-2:]
        if len(versions) == 2:
            split = steer.split(dict.fromkeys(versions, 50))
            await asyncio.to_thread(self._world.store.point, "n0", split)
            await asyncio.to_thread(self._world.store.point, "n0", steer.shadow(versions[0], 0.2))

    async def _guest(self, client: httpx.AsyncClient) -> None:
        """One comes by vLLM's route; the oldest goes, unloaded first, and the store forgets it."""
        name, folder = await asyncio.to_thread(self._world.new_guest)
        reply = await client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)})
        self.counts.note("load", reply.status_code, reply.status_code == 200, reply.text)
        self._world.guests.append(name)
        while len(self._world.guests) > GUESTS:
            gone = self._world.guests.pop(0)
            reply = await client.post("/v1/unload_lora_adapter", json={"lora_name": gone})
            self.counts.note("unload", reply.status_code, reply.status_code == 200, reply.text)
            await asyncio.to_thread(self._world.store.forget, gone)

    async def _pause_one(self, client: httpx.AsyncClient) -> None:
        """A guest is unloaded and loaded again."""
        if not self._world.guests:
            return
        name = self._dice.choice(self._world.guests)
        for route in ("unload", "load"):
            reply = await client.post(f"/v1/{route}_lora_adapter", json={"lora_name": name})
            self.counts.note(route, reply.status_code, reply.status_code == 200, reply.text)
