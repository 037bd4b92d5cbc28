"""Never silently wrong with other people's files: thousands of requests at a live endpoint of two replicas while its
store is copied into, rewritten, spoilt, swapped and taken away, and replicas are killed. `RAY_LORA_SOAK_REQUESTS=10000`
asks for longer.

Every answer must carry the name, version and content hash of exactly what computed it, and its labels and scores, and
that must be what its ref may have meant while it was on its way; PEFT is the oracle, by content hash. What is refused
must be so for a reason: broken, being written, not there, or the store away.
"""

from __future__ import annotations

import http.client
import itertools
import json
import math
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch

from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import fingerprint
from ray_lora.errors import RayLoraError
from tests.ray.ledger import CARD, PARTS, Content, Ledger, Reply, complaint_of
from tests.ray.mischief import FLAT, Mischief
from tests.ray.test_faults import Served
from tests.unit.serving_world import card, make_adapter, make_base, peft_probabilities

TEXTS = ["a lovely day", "the film was very dull and so slow", "good", "not so bad", "loud bright glad sad plot"]
NAMES = ["crowned", "newest", "more", "mixed", FLAT]  # what is changed; "steady" is not, and "nobody" is not there
REQUESTS = int(os.environ.get("RAY_LORA_SOAK_REQUESTS", "4000"))
CLIENTS = 16
_KILL_EVERY = 70  # events


class Ended(Exception):
    """All requests were asked."""


class Traffic:
    """Clients that ask for every kind of ref and hold each answer against the ledger."""

    def __init__(self, address: str, ledger: Ledger, requests: int) -> None:
        self.ledger, self.wrong = ledger, list[str]()
        self.asked = 0
        self.seen: Counter[str] = Counter()
        self.torn: list[str] = []  # connections that broke and answers of the proxy, each asked again
        self.restless = threading.Event()  # a replica is away, or the proxy has just heard of another
        self._address, self._left = address.removeprefix("http://"), requests
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    def pause(self, more: int) -> None:
        """Until so many more requests were answered, or for a second; Ended when there are no more.

        A copy that is left half for longer than a version must rest is a folder as any other.
        """
        with self._changed:
            goal = self.asked + more
            self._changed.wait_for(lambda: self.asked >= goal or self._left <= 0, timeout=1.0)
            if self._left <= 0:
                raise Ended

    def end(self) -> None:
        """Ask no more."""
        self._left = 0

    def _client(self, number: int) -> None:
        draw = random.Random(number)
        line = http.client.HTTPConnection(self._address)
        while self._take():
            try:
                wrong, kinds = self._one(draw, line)
            except Exception as error:  # else all would wait for this client
                wrong, kinds = repr(error), []
            with self._changed:
                self.asked += 1
                self.seen.update(kinds)
                self.wrong += [wrong] if wrong else []
                self._changed.notify_all()
        line.close()

    def _one(self, draw: random.Random, line: http.client.HTTPConnection) -> tuple[str | None, list[str]]:
        """What is wrong with the answer to one request, and what kinds of answer it is one of."""
        ref = self._ref(draw)
        asked = tuple(draw.randrange(len(TEXTS)) for _ in range(draw.choice([1, 1, 1, 2, 5])))
        sent = time.monotonic()
        reply = self._ask(line, ref, asked)
        received = time.monotonic()
        complaint = self.ledger.complaint(ref, sent, received, reply)
        return complaint and f"{sent:.3f} to {received:.3f}, {ref}: {complaint}", list(self._kinds(ref, reply))

    def _take(self) -> bool:
        with self._changed:
            self._left -= 1
            return self._left >= 0

    def _ref(self, draw: random.Random) -> str:
        name = draw.choice([*NAMES, *NAMES, *NAMES, "steady", "nobody"])
        if name == "nobody":
            return name
        versions = list(self.ledger.now(name).versions) or [1]
        return draw.choice([name, name, f"{name}@canary", f"{name}@{draw.choice(versions)}", f"{name}@{max(versions)}"])

    def _ask(self, line: http.client.HTTPConnection, ref: str, asked: tuple[int, ...]) -> Reply:
        body = {"model": ref, "inputs": [TEXTS[text] for text in asked], "parameters": {"top_k": 9}}
        while True:
            try:
                line.request("POST", "/v1/predict", json.dumps(body), {"content-type": "application/json"})
                response = line.getresponse()
                headers = {name.lower(): value for name, value in response.getheaders()}
                body_text = response.read()
                if headers.get("content-type") != "application/json":  # the proxy's own page
                    raise http.client.HTTPException(f"{response.status}: {body_text[:300]!r}")
                return Reply(asked, response.status, headers, json.loads(body_text))
            except (http.client.HTTPException, OSError) as error:
                line.close()
                if not self.restless.is_set():
                    self.wrong.append(f"{ref}: no answer of ours, and no replica had been killed: {error!r}")
                self.torn.append(repr(error))

    def _kinds(self, ref: str, reply: Reply) -> Iterator[str]:
        """What this was one of, for the count at the end."""
        if reply.status != 200:
            yield f"{reply.status} {reply.body['error']['code']}"
            return
        name, _, selector = ref.partition("@")
        sha256 = reply.headers["x-adapter-sha256"]
        kind = next((one.kind for one in self.ledger.contents.values() if one.sha256 == sha256), None)
        if kind is None:
            yield "of two contents"
            return
        yield f"{kind} by {'version' if selector.isdigit() else 'alias' if selector else 'name'}"
        yield f"of {name}"
        if not selector and reply.body["version"] < max(self.ledger.now(name).versions, default=0):
            yield "older"


class Killer:
    """Kills a replica now and then, and knows whether all are back."""

    def __init__(self, served: Served, traffic: Traffic) -> None:
        self.kills, self.returns = 0, 0
        self._served, self._traffic, self._events, self._killed = served, traffic, 0, 0

    def whole(self) -> bool:
        """Whether no replica is missing; asked before each event."""
        self._events += 1
        if self._killed and self.back():
            self._killed, self._events = 0, 0
            self.returns += 1
            self._traffic.restless.clear()
        elif not self._killed and self._events > _KILL_EVERY:
            self._traffic.restless.set()
            self._killed = self._served.kill("ray::ServeReplica")
            self.kills += 1
        return not self._killed

    def back(self) -> bool:
        """Whether there are two again, and both have answered requests."""
        if len(self._served.pids("ray::ServeReplica") - {self._killed}) < 2:
            return False
        try:
            status = httpx.get(f"{self._served.address}/v1/status", timeout=None).json()
        except httpx.TransportError:
            return False
        rows = [told["batches"]["rows"] for told in (status, *status["others"])]
        return len(rows) == 2 and all(rows)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Content]]:
    """A folder for the store, and what its versions may hold."""
    root = tmp_path_factory.mktemp("never")
    base = make_base(root / "base")
    known = fingerprint(base)
    contents = []
    for seed in range(28):
        folder = make_adapter(base, root / "made" / str(seed), seed=seed, rank=1 + seed % 3, labels=2 + seed % 2)
        contents.append(content(base, folder))
        if seed < 16:
            labels = [f"{word}{seed}" for word in ("no", "yes", "perhaps")][: 2 + seed % 2]
            contents.append(content(base, card(folder, base, labels, known if seed % 2 else None)))
        if seed < 8:  # whoever copies this folder file by file shows it without its card for a while
            half = Path(shutil.copytree(folder, root / "made" / f"half{seed}"))
            (half / CARD).unlink()
            contents.append(content(base, half))
        if seed in (3, 4):
            contents.append(content(base, numberless(folder, root / "made" / f"numberless{seed}")))
    assert sum(not one.finite for one in contents) == 2
    return root, contents


def numberless(folder: Path, target: Path) -> Path:
    """Weights that are numbers and named by their card, of which no answer is a number."""
    adapter = Adapter.load(folder)
    pairs = {name: replace(pair, B=torch.full_like(pair.B, 3e38)) for name, pair in adapter.layers.items()}
    replace(adapter, layers=pairs).save(target)
    return target


def content(base: Path, folder: Path) -> Content:
    """What a folder holds, by plain PEFT."""
    adapter = Adapter.load(folder)
    files = {part: (folder / part).read_bytes() for part in PARTS if (folder / part).exists()}
    scores = tuple(tuple(row) for row in peft_probabilities(base, folder, TEXTS))
    task = adapter.card.task
    labels = tuple(task.describe()["labels"]) if task else tuple(f"LABEL_{index}" for index in range(len(scores[0])))
    return Content(files, adapter.sha256, labels, scores, all(map(math.isfinite, itertools.chain(*scores))))


def mixed_answers(base: Path, desk: Path, ledger: Ledger) -> Iterator[str]:
    """What is wrong with answers by files of two contents, which a machine that is busy lets lie for long."""
    made: dict[tuple[bytes | None, ...], Content | str] = {}
    for files in {files for mixed in ledger.mixed for files in mixed.files}:
        folder = desk / f"mixed{len(made)}"
        folder.mkdir()
        for part, data in zip(PARTS, files, strict=True):
            if data is not None:
                (folder / part).write_bytes(data)
        try:
            made[files] = content(base, folder)
        except (RayLoraError, RuntimeError) as error:  # of neither content's shape: to be refused, not answered
            made[files] = str(error)
    for reply, those in ledger.mixed:
        found = [made[files] for files in those]
        right = [one for one in found if isinstance(one, Content) and one.sha256 == reply.headers["x-adapter-sha256"]]
        complaint = complaint_of(reply, right[0]) if right else f"of none of {[str(one)[:200] for one in found]}"
        if complaint:
            yield f"{reply.headers['x-adapter']}: {complaint}"


def test_every_answer_is_of_what_lay_there(world: tuple[Path, list[Content]], monkeypatch: pytest.MonkeyPatch) -> None:
    root, contents = world
    ledger = Ledger({tuple(one.files.get(part) for part in PARTS): one for one in contents})
    assert len(ledger.contents) == len(contents)
    assert len({(one.sha256, one.labels, one.scores) for one in contents}) == len({one.sha256 for one in contents})
    (root / "desk").mkdir()
    mischief = Mischief(root / "store", root / "desk", ledger, contents, NAMES, seed=21)
    for name, aliases in {"crowned": {"champion": 1, "canary": 1}, "more": {"canary": 1}}.items():
        mischief.first(name, mischief.pick("carded"), aliases)
    for name, kind in {"newest": "carded", "steady": "carded", "mixed": "plain", FLAT: "plain"}.items():
        mischief.first(name, mischief.pick(kind), {})
    monkeypatch.setenv("RAY_LORA_SETTLE_S", "2")  # as it is outside of the tests
    served = Served(root, slots=6)  # some stay in their slots while their files change, some leave
    try:
        with Traffic(served.address, ledger, REQUESTS) as traffic:
            killer = Killer(served, traffic)
            try:
                while not killer.back():  # a replica that has not seen the store cannot miss it
                    traffic.pause(20)
                mischief.play(traffic.pause, killer.whole)
            except Ended:
                pass
            finally:
                traffic.end()
    finally:
        served.close()
    told = f"{dict(traffic.seen)}, {dict(mischief.happened)}, {killer.kills} killed, {traffic.torn} torn"
    print(told)
    assert traffic.wrong[:5] == [], f"{len(traffic.wrong)} of {traffic.asked} wrong; {told}"
    assert traffic.asked == REQUESTS
    assert list(mixed_answers(root / "base", root / "desk", ledger))[:5] == []
    # it did happen, and every kind of answer and of refusal was among them
    assert min(mischief.happened.get(kind, 0) for kind in mischief.kinds) >= REQUESTS // 2000, told
    assert killer.kills >= max(1, killer.returns), told
    assert killer.returns >= REQUESTS // 10_000, told
    assert len(traffic.torn) <= CLIENTS * killer.kills, told
    kinds = {f"{kind} by {how}" for kind in ("carded", "plain") for how in ("name", "alias", "version")}
    kinds |= {"400 invalid_adapter", "404 model_not_found", "503 unavailable", "older"}
    kinds |= {f"of {name}" for name in (*NAMES, "steady")}
    assert min(traffic.seen[kind] for kind in kinds) >= REQUESTS // 1000, told
