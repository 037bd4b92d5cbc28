"""`serve deploy` on two nodes on this machine: adapters keep to a replica, hot ones do not, no request is lost. And two
endpoints on this machine: neither answers for the other."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import typer
import yaml

from ray_lora.cli import app
from ray_lora.data.row_cache import BOUND, FOLDER
from ray_lora.recipe import Recipe
from ray_lora.serving import AppArgs
from ray_lora.serving.cluster.identity import AWAY, server_name
from ray_lora.serving.cluster.ingress import SETTINGS, free_port
from tests.ray.test_faults import TEXTS, Load
from tests.unit.serving_world import make_adapter, make_base, peft_probabilities

ROOT = Path(__file__).parents[2]
NAMES = [f"a{number}" for number in range(8)]
BIN = Path(sys.executable).parent


class Nodes:
    """A head and a worker of one CPU each, started as an operator would, and what is deployed on them."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        ports = [f"--port={(gcs := free_port())}", f"--dashboard-port={(dashboard := free_port())}"]
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.env = os.environ | SETTINGS
        self.env |= {"PYTHONPATH": str(ROOT), "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
        self.env |= {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}
        self.env.pop("RAY_ADDRESS", None)
        common = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        # a folder of its own, else every later ray.init on this machine would join; a short one, because of sockets
        self.folder = tempfile.mkdtemp(prefix="rl-", dir="/tmp")
        head = ["--head", "--include-dashboard=true", f"--temp-dir={self.folder}", *ports]
        self.processes = [self._start(*head, *common)]
        while not self._dashboard_answers():
            assert self.processes[0].poll() is None
            time.sleep(0.2)
        self.processes.append(self._start(f"--address=127.0.0.1:{gcs}", *common))

    def deploy(self, number: int) -> None:
        """`serve deploy` of serve_apps/endpoint.yaml with this many replicas."""
        tree = yaml.safe_load((ROOT / "serve_apps" / "endpoint.yaml").read_text())
        tree["proxy_location"] = "HeadOnly"  # both nodes are this machine, which has one port 8000
        tree["http_options"]["port"] = self.port
        application = tree["applications"][0]
        application["args"] |= {"store": str(self.root / "store"), "dtype": "float32", "max_rank": 8, "slots": 8}
        application["deployments"][0]["num_replicas"] = number
        path = self.root / "deployed.yaml"
        path.write_text(yaml.safe_dump(tree))
        done = subprocess.run(
            [BIN / "serve", "deploy", path, "-a", self.dashboard],
            env=self.env, cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def replicas(self) -> dict[int, int]:
        """Replica's process -> its node's process."""
        found = {}
        for node in self.processes:
            for child in psutil.Process(node.pid).children(recursive=True):
                try:
                    if child.cmdline() and child.cmdline()[0].startswith("ray::ServeReplica"):
                        found[child.pid] = node.pid
                except psutil.Error:
                    continue
        return found

    def close(self) -> None:
        """End all of it at once; a node that is asked to end waits for its replicas first."""
        for process in self.processes:
            family = [*psutil.Process(process.pid).children(recursive=True), process]
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        with (self.root / f"node{len(options)}.log").open("wb") as log:
            return subprocess.Popen([BIN / "ray", "start", *options], env=self.env, stdout=log, stderr=log)

    def _dashboard_answers(self) -> bool:
        try:
            return httpx.get(f"{self.dashboard}/api/serve/applications/", timeout=None).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    root = tmp_path_factory.mktemp("clusters")
    base = make_base(root / "base")
    for seed, name in enumerate(NAMES):
        make_adapter(base, root / "store" / name, seed=seed)
    nodes = Nodes(root)
    try:
        nodes.deploy(2)
        known: set[str] = set()
        while len(known) < 2:  # HAProxy gives requests without a body to the replicas in turn, once it knows both
            assert all(process.poll() is None for process in nodes.processes)
            with contextlib.suppress(httpx.TransportError):
                response = httpx.get(f"{nodes.address}/v1/status", timeout=None)
                known |= {response.json()["replica"]} if response.status_code == 200 else set()
            time.sleep(0.1)
        yield nodes
    finally:
        nodes.close()


def residents(client: httpx.Client) -> dict[str, set[str]]:
    """The adapters in the slots of each replica."""
    status = client.get("/v1/status").json()
    return {
        told["replica"]: {resident["adapter"] for resident in told["residents"]} for told in (status, *status["others"])
    }


def ask(client: httpx.Client, ref: str) -> None:
    response = client.post("/v1/predict", json={"model": ref, "inputs": "a day"})
    assert (response.status_code, response.headers["x-adapter"]) == (200, f"{ref.removesuffix('@1')}@1")


def test_the_environment_s_file_is_what_the_code_sets() -> None:
    said = subprocess.run(
        ["bash", "-c", ". serve_apps/haproxy.env; env -0"], cwd=ROOT, env={}, capture_output=True, text=True, check=True
    ).stdout
    env = dict(item.partition("=")[::2] for item in said.split("\0"))
    assert {name: env.get(name) for name in SETTINGS} == SETTINGS


def test_replicas_are_on_both_nodes(nodes: Nodes) -> None:
    assert len(set(nodes.replicas().values())) == 2


def homes(client: httpx.Client, name: str) -> frozenset[str]:
    """The replicas that compute the rows of some requests for one adapter, under two refs."""

    def rows() -> dict[str, int]:
        status = client.get("/v1/status").json()
        return {told["replica"]: told["batches"]["rows"] for told in (status, *status["others"])}

    before = rows()
    for ref in (name, f"{name}@1") * 2:
        ask(client, ref)
    return frozenset(replica for replica, count in rows().items() if count > before[replica])


def test_an_adapter_keeps_to_one_replica(nodes: Nodes) -> None:
    with httpx.Client(base_url=nodes.address, timeout=None) as client:
        while len(frozenset().union(*(homes(client, name) for name in NAMES))) < 2:
            pass  # the proxy has not heard of the second replica yet
        first, second = ({name: homes(client, name) for name in NAMES} for _ in range(2))
    assert first == second
    assert all(len(replicas) == 1 for replicas in first.values())
    assert len(set(first.values())) == 2


def test_a_hot_adapter_is_spread(nodes: Nodes) -> None:
    async def flood() -> None:
        async with httpx.AsyncClient(base_url=nodes.address, timeout=None) as client:
            body = {"model": "a0", "inputs": ["a lovely day"] * 32}
            answers = await asyncio.gather(*(client.post("/v1/predict", json=body) for _ in range(48)))
            assert {answer.status_code for answer in answers} <= {200, 429}

    asyncio.run(flood())
    with httpx.Client(base_url=nodes.address, timeout=None) as client:
        assert all("a0@1" in held for held in residents(client).values())


def test_replicas_come_and_go_under_load_without_a_restart_of_the_others(nodes: Nodes) -> None:
    answers = {name: peft_probabilities(nodes.root / "base", nodes.root / "store" / name, TEXTS) for name in NAMES}
    running = Load(nodes.address, {(name, row): answers[name][row] for row in range(3) for name in NAMES})
    running.start()
    try:
        before = set(nodes.replicas())
        for number in (1, 2):
            nodes.deploy(number)
            while len(nodes.replicas()) != number:
                running.wait_for(10)
            assert set(nodes.replicas()) & before
        running.wait_for(100)
    finally:
        running.end()
    assert (running.wrong, dict(running.refused)) == ([], {})


def test_the_kuberay_file_fits_serve_s_schema_and_our_arguments() -> None:
    from ray.serve.schema import ServeDeploySchema

    tree = yaml.safe_load((ROOT / "serve_apps" / "rayservice.yaml").read_text())
    assert (tree["apiVersion"], tree["kind"]) == ("ray.io/v1", "RayService")
    [application] = ServeDeploySchema.model_validate(yaml.safe_load(tree["spec"]["serveConfigV2"])).applications
    args = AppArgs.model_validate(application.args)
    assert application.import_path == "ray_lora.serving:build_app"
    cluster: dict[str, Any] = tree["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        env = {item["name"]: item.get("value") for item in container["env"]}
        assert "RAY_LORA_API_KEYS" in env  # it listens beyond its machine
        assert {name: env[name] for name in SETTINGS if name in env} == {
            name: value for name, value in SETTINGS.items() if name in env
        }
        assert {"RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"} <= env.keys()
        assert {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"} <= env.keys()
    [workers] = cluster["workerGroupSpecs"]
    container = workers["template"]["spec"]["containers"][0]
    assert float(container["resources"]["requests"]["cpu"]) >= args.num_cpus  # a replica fits on a worker


def test_the_kuberay_job_s_recipe_and_commands_are_right() -> None:
    config, job = yaml.safe_load_all((ROOT / "serve_apps" / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    recipe = Recipe.parse(yaml.safe_load(config["data"]["reviews.yaml"]))
    commands = [shlex.split(command) for command in job["spec"]["entrypoint"].split("&&")]
    assert [command[1] for command in commands] == ["train", "predict"]
    group: Any = typer.main.get_command(app)
    for _, name, *rest in commands:
        group.commands[name].make_context(name, list(rest))  # an option that is not there is an error
    cluster = job["spec"]["rayClusterSpec"]
    [workers] = cluster["workerGroupSpecs"]
    [container] = workers["template"]["spec"]["containers"]
    assert workers["replicas"] * float(container["resources"]["requests"]["cpu"]) >= recipe.scaling.num_workers
    env = {item["name"] for item in container["env"]}
    assert {FOLDER, BOUND} <= env
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {f"/{Path(recipe.output_dir).parts[1]}", "/rows", "/recipes"} == mounted


def test_a_replica_s_name_is_the_one_that_ray_writes_for_haproxy() -> None:
    from ray.serve._private.haproxy import HAProxyManager

    safe = HAProxyManager.__ray_metadata__.modified_class.get_safe_name
    for actor in ("SERVE_REPLICA::ray_lora#Endpoint#a1b2c3d4", "SERVE_PROXY_ACTOR-fallback-0f a"):
        assert server_name(actor) == safe(actor)


class Alone:
    """`ray-lora serve` on a Ray of its own."""

    def __init__(self, store: Path) -> None:
        self.port, self.stats = free_port(), free_port()
        self.folder = tempfile.mkdtemp(prefix="rl-", dir="/tmp")
        self.env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.env |= {"RAY_TMPDIR": self.folder, "RAY_SERVE_HAPROXY_STATS_PORT": str(self.stats)}
        self.command = [sys.executable, "-m", "ray_lora", "serve", "--json", "--store", str(store)]
        self.command += ["num_cpus=0.5", "slots=2", "max_rank=8", "dtype=float32"]
        self.process = subprocess.Popen([*self.command, f"--port={self.port}"], env=self.env, stdout=subprocess.PIPE)

    def started(self) -> None:
        assert self.process.stdout is not None
        assert str(self.port) in self.process.stdout.readline().decode()

    def ask(self) -> tuple[str, str]:
        """The status and which adapter answered, or what was said instead; or why there was no answer. Not at once, so
        that whoever asks until something starts leaves a processor for it."""
        time.sleep(0.05)
        body = {"model": "movies", "inputs": "a"}
        try:
            answer = httpx.post(f"http://127.0.0.1:{self.port}/v1/predict", json=body, timeout=None)
        except httpx.TransportError as error:
            return type(error).__name__, ""
        said = answer.headers.get("x-adapter-sha256", answer.text)
        return str(answer.status_code), "not yet" if said.startswith("Path '/v1/predict' not found") else said

    def replica(self) -> tuple[psutil.Process, int]:
        """The replica and its port."""
        found = None
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # others come and go meanwhile
                found = child if child.name().startswith("ray::ServeRepli") else found
        assert found is not None
        ports = {line.laddr.port for line in found.net_connections() if line.status == psutil.CONN_LISTEN}
        [port] = ports & set(range(20000, 30000))
        return found, port

    def requests(self) -> dict[str, int]:
        """How many HAProxy has given to each server: replicas, and the Serve proxy to which Ray lets it fall back."""
        rows = csv.DictReader(httpx.get(f"http://127.0.0.1:{self.stats}/stats;csv", timeout=None).text.splitlines())
        return {row["svname"]: int(row["stot"]) for row in rows if row["svname"].startswith("SERVE_")}

    def look_at(self, port: int) -> None:
        """Let HAProxy look for its replica here, as when the replica has died and another's has its port now."""
        [name] = [name for name in self.requests() if name.startswith("SERVE_REPLICA")]
        haproxy: list[str] = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                haproxy = child.cmdline() if child.name() == "haproxy" and "-sf" in child.cmdline() else haproxy
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(Path(haproxy[haproxy.index("-f") + 1]).with_name("admin.sock")))
            line.sendall(f"set server http-ray_lora/{name} addr 127.0.0.1 port {port}\n".encode())
            said = line.makefile().read()
        assert f"to '{port}'" in said

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


def test_of_two_endpoints_neither_answers_for_the_other(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    for seed in (1, 2):
        make_adapter(base, tmp_path / f"store{seed}" / "movies", seed=seed)
    with contextlib.ExitStack() as stack:
        first, second = (Alone(tmp_path / f"store{number}") for number in (1, 2))
        for endpoint in (first, second):
            stack.callback(endpoint.close)
        starting = [second.ask()]
        while starting[-1][0] != "200":
            assert second.process.poll() is None
            starting.append(second.ask())
        for endpoint in (first, second):
            endpoint.started()
        theirs, ours = first.ask(), second.ask()
        assert theirs[0] == ours[0] == "200"
        assert theirs != ours
        nothing = {("ConnectError", ""), ("404", "not yet"), ("503", AWAY), ("RemoteProtocolError", "")}
        assert set(starting) <= nothing | {ours}

        command = [*first.command, f"--port={second.port}"]
        third = subprocess.Popen(command, env=first.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

        replica, _ = second.replica()
        _, other = first.replica()
        second.look_at(other)
        meanwhile = [second.ask()]
        while ("503", AWAY) not in meanwhile:
            meanwhile.append(second.ask())
        replica.kill()
        meanwhile.append(("503", AWAY))
        while meanwhile[-1] != ours:
            meanwhile.append(second.ask())
        assert set(meanwhile) <= {ours, ("503", AWAY), ("RemoteProtocolError", ""), ("ReadError", "")}
        assert second.replica()[0] != replica
        assert first.ask() == theirs
        said, _ = third.communicate()
        assert third.returncode == 2
        assert f"port {second.port} of '127.0.0.1' cannot be used" in said
