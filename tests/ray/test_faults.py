"""Replica, HAProxy and Serve's controller killed under load, and updates under load: no answer is ever wrong."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ray_lora.serving import AppArgs
from tests.unit.serving_world import make_adapter, make_base, peft_probabilities

ROOT = Path(__file__).parents[2]
TEXTS = ["a lovely day", "the film was very dull and so slow", "good"]
NAMES = ["a", "b", "c", "d"]
_REST_S = 0.1  # between a connection's requests, else no processor is left for whoever starts meanwhile


class Served:
    """An endpoint of two replicas in a process of its own."""

    def __init__(self, root: Path, slots: int = 2, num_cpus: float = 0.5) -> None:
        self.args = AppArgs(
            store=str(root / "store"),
            dtype="float32",
            slots=slots,
            max_rank=8,
            port=0,
            num_replicas=2,
            num_cpus=num_cpus,
        )
        self.folder = tempfile.mkdtemp(prefix="rl-", dir="/tmp")  # of its Ray; sockets need a short one
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray.served", self.args.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={n: v for n, v in os.environ.items() if n != "RAY_ADDRESS"} | {"RAY_TMPDIR": self.folder},
        )
        self.address = self.said()

    def said(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # Ray writes there too when an actor dies
            if line.startswith(("http://", "deployed")):
                return line.strip()
        raise AssertionError(f"the endpoint's process ended: {self.process.wait()}")

    def deploy(self, **changes: object) -> None:
        """Deploy with these arguments changed; returns when it is done."""
        assert self.process.stdin is not None
        print(self.args.model_copy(update=changes).model_dump_json(), file=self.process.stdin, flush=True)
        assert self.said() == "deployed"

    def pids(self, name: str) -> set[int]:
        """The processes of this endpoint whose name begins so."""
        found = set()
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                title = child.cmdline()[0] if child.cmdline() else ""
            except psutil.Error:
                continue
            if Path(title).name.startswith(name) or title.startswith(name):
                found.add(child.pid)
        return found

    def kill(self, name: str) -> int:
        """Kill one such process as the machine would; returns its number."""
        pid = min(self.pids(name))
        os.kill(pid, signal.SIGKILL)
        return pid

    def close(self) -> None:
        self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


class Load:
    """Requests over some connections, again and again; each answer is compared with PEFT's."""

    def __init__(self, address: str, expected: dict[tuple[str, int], list[float]], connections: int = 6) -> None:
        self.right = 0
        self.refused: Counter[str] = Counter()
        self.again = 0  # requests asked twice, at most one a connection
        self.wrong: list[str] = []
        self._address, self._expected, self._connections = address, expected, connections
        self._ended, self._changed = threading.Event(), threading.Condition()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    def wait_for(self, more: int) -> None:
        """Until this many more answers were right."""
        with self._changed:
            goal = self.right + more
            self._changed.wait_for(lambda: self.right >= goal or self.wrong)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    async def _main(self) -> None:
        await asyncio.gather(*(self._connection(number) for number in range(self._connections)))

    async def _connection(self, number: int) -> None:
        turns = itertools.cycle(self._expected.items())
        async with httpx.AsyncClient(base_url=self._address, timeout=None) as client:
            for (name, row), expected in itertools.islice(turns, 5 * number, None):
                if self._ended.is_set():
                    return
                body = {"model": name, "inputs": TEXTS[row], "parameters": {"top_k": 10}}
                try:
                    response = await self._ask(client, body)
                except httpx.TransportError as error:
                    self.refused[type(error).__name__] += 1
                    await asyncio.sleep(0.05)
                    continue
                self._note(name, expected, response)
                await asyncio.sleep(_REST_S)

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        """An answer. As it loads another configuration the proxy may close an idle connection at the very moment that
        the next request leaves; HTTP's clients then ask again, and so do these, unless the answer had begun."""
        response = None
        while response is None:
            try:
                response = await client.send(client.build_request("POST", "/v1/predict", json=body), stream=True)
            except (httpx.RemoteProtocolError, httpx.ReadError):
                if self.again == self._connections:
                    raise
                self.again += 1
        await response.aread()
        return response

    def _note(self, name: str, expected: list[float], response: httpx.Response) -> None:
        if response.status_code in (500, 502, 503, 504):
            self.refused[str(response.status_code)] += 1
            return
        with self._changed:
            if response.status_code != 200 or response.headers["x-adapter"] != f"{name}@1":
                self.wrong.append(f"{name}: {response.status_code} {response.headers} {response.text}")
            else:
                scores = {item["label"]: item["score"] for item in response.json()["predictions"][0]}
                if [scores[f"LABEL_{i}"] for i in range(len(expected))] == pytest.approx(expected, abs=1e-5):
                    self.right += 1
                else:
                    self.wrong.append(f"{name}: {scores}, not {expected}")
            self._changed.notify_all()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("faults")
    base = make_base(root / "base")
    for seed, name in enumerate(NAMES):
        make_adapter(base, root / "store" / name, seed=seed, labels=2 + seed)
    return root


@pytest.fixture(scope="module")
def expected(world: Path) -> dict[tuple[str, int], list[float]]:
    answers = {name: peft_probabilities(world / "base", world / "store" / name, TEXTS) for name in NAMES}
    return {(name, row): answers[name][row] for row in range(len(TEXTS)) for name in NAMES}


@pytest.fixture(scope="module")
def served(world: Path) -> Iterator[Served]:
    served = Served(world)
    yield served
    served.close()


@contextmanager
def load(served: Served, expected: dict[tuple[str, int], list[float]]) -> Iterator[Load]:
    """Load that runs before, while and after the block does what it does; nothing of it is ever wrong."""
    load = Load(served.address, expected)
    load.start()
    try:
        load.wait_for(50)
        yield load
        load.wait_for(200)
    finally:
        load.end()
    assert load.wrong == []


def test_a_killed_replica_is_replaced_and_its_requests_are_answered_by_the_other(
    served: Served, expected: dict[tuple[str, int], list[float]]
) -> None:
    with load(served, expected) as running:
        before = served.pids("ray::ServeReplica")
        assert len(before) == 2
        killed = served.kill("ray::ServeReplica")
        while len(served.pids("ray::ServeReplica") - {killed}) < 2:
            running.wait_for(10)
    # an answer that had begun cannot be asked for again: its connection breaks, and there were six
    assert set(running.refused) <= {"RemoteProtocolError", "ReadError"}
    assert running.refused.total() <= 6


def test_a_killed_haproxy_comes_back(served: Served, expected: dict[tuple[str, int], list[float]]) -> None:
    with load(served, expected) as running:
        killed = served.kill("haproxy")
        running.wait_for(200)
        assert served.pids("haproxy") - {killed}
    assert set(running.refused) <= {"RemoteProtocolError", "ReadError", "ConnectError", "503"}


def test_a_killed_controller_is_not_noticed(served: Served, expected: dict[tuple[str, int], list[float]]) -> None:
    with load(served, expected) as running:
        killed = served.kill("ray::ServeController")
        while not served.pids("ray::ServeController") - {killed}:
            running.wait_for(10)
    assert not running.refused


def test_a_rolling_update_loses_no_request(served: Served, expected: dict[tuple[str, int], list[float]]) -> None:
    with load(served, expected) as running:
        served.deploy(slots=3)
        slots = {httpx.get(f"{served.address}/v1/status", timeout=None).json()["slots"] for _ in range(20)}
        assert slots == {3}
        running.wait_for(200)
    assert not running.refused


def test_a_redeploy_with_fewer_and_more_replicas_loses_no_request(
    served: Served, expected: dict[tuple[str, int], list[float]]
) -> None:
    with load(served, expected) as running:
        for number in (1, 2):
            served.deploy(num_replicas=number)
            while len(served.pids("ray::ServeReplica")) != number:
                running.wait_for(10)
    assert not running.refused


def test_who_is_inside_at_the_end_is_answered(served: Served) -> None:  # the last one: it ends the endpoint
    answered: Counter[int] = Counter()

    async def client(told: asyncio.Event) -> None:
        """Asks on a new connection each time, until none is taken; a broken one is an error."""
        async with httpx.AsyncClient(base_url=served.address, timeout=None) as line:
            while True:
                body = {"model": "a", "inputs": TEXTS * 8}
                try:
                    response = await line.post("/v1/predict", json=body, headers={"connection": "close"})
                except httpx.ConnectError:
                    return
                answered[response.status_code] += 1
                if answered.total() == 30:
                    told.set()

    async def main() -> None:
        told = asyncio.Event()
        clients = asyncio.gather(*(client(told) for _ in range(4)))
        await told.wait()
        assert served.process.stdin is not None
        served.process.stdin.close()
        served.process.stdin = None
        await clients

    asyncio.run(main())
    assert set(answered) == {200}
