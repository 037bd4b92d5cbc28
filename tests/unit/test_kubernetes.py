"""The files for Kubernetes have the fields that its servers take, and a split becomes a route that gateways take."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from ray_lora.adapters.adapter import Adapter
from ray_lora.cli import main
from ray_lora.errors import RecipeError
from ray_lora.serving.args import AppArgs
from ray_lora.serving.cluster.gateway import MOST, http_route, shares
from ray_lora.serving.cluster.start import start_endpoint
from ray_lora.serving.http.routes import create_app
from ray_lora.store import open_store, steer
from tests.documents import ROOT
from tests.kubernetes import HTTP_ROUTE, RAY_JOB, RAY_SERVICE, wrong_pod
from tests.unit.serving_world import make_adapter, make_base


def file(name: str) -> Any:
    """The last document of a file, the ray.io one."""
    return list(yaml.safe_load_all((ROOT / "serve_apps" / name).read_text()))[-1]


def cluster(tree: Any) -> Any:
    return tree["spec"].get("rayClusterConfig") or tree["spec"]["rayClusterSpec"]


@pytest.mark.parametrize(("name", "schema"), [("rayservice.yaml", RAY_SERVICE), ("rayjob.yaml", RAY_JOB)])
def test_kuberay_knows_every_field(name: str, schema: Any) -> None:
    tree = file(name)
    jsonschema.Draft202012Validator(schema).validate(tree)
    groups = [cluster(tree)["headGroupSpec"], *cluster(tree)["workerGroupSpecs"]]
    assert [wrong_pod(group["template"]) for group in groups] == [[]] * len(groups)


def test_the_files_of_one_pod_fit_together() -> None:
    """What is mounted is there, and a name is a name in Kubernetes."""
    for name in ("rayservice.yaml", "rayjob.yaml"):
        for group in (cluster(file(name))["headGroupSpec"], *cluster(file(name))["workerGroupSpecs"]):
            spec = group["template"]["spec"]
            volumes = {volume["name"] for volume in spec.get("volumes", ())}
            for container in spec["containers"]:
                assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
                ports = [port["name"] for port in container.get("ports", ())]
                assert len(ports) == len(set(ports))
                assert all(len(port) <= 15 for port in ports)


def _spec_typo(tree: Any) -> None:
    tree["spec"]["shutDownAfterJobFinishes"] = tree["spec"].pop("shutdownAfterJobFinishes")


def _number(tree: Any) -> None:
    cluster(tree)["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _replicas(tree: Any) -> None:
    cluster(tree)["workerGroupSpecs"][0]["replicas"] = "3"


@pytest.mark.parametrize("spoil", [_spec_typo, _number, _replicas])
def test_a_wrong_field_of_kuberay_is_seen(spoil: Callable[[Any], None]) -> None:
    tree = copy.deepcopy(file("rayjob.yaml"))
    spoil(tree)
    assert not jsonschema.Draft202012Validator(RAY_JOB).is_valid(tree)


def test_a_wrong_field_of_a_pod_is_seen() -> None:
    template = copy.deepcopy(cluster(file("rayjob.yaml"))["headGroupSpec"]["template"])
    template["spec"]["containers"][0] |= {"imagee": "x", "image": 3}
    assert wrong_pod(template) == [
        "template.spec.containers[0].image is 3, no str",
        "template.spec.containers[0] has no field 'imagee'",
    ]


# --------------------------------------------------------------------------------------------- a split as a route


def route(*arguments: str) -> int:
    return main(["adapters", "route", "tweets", "--gateway", "public", *arguments])


def test_a_split_becomes_a_route_whose_requests_reach_their_versions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(tmp_path / "base")
    store = open_store(str(tmp_path / "store"))
    for seed in range(3):
        store.put(Adapter.load(make_adapter(base, tmp_path / str(seed), seed=seed)), "tweets")
    where = ("--store", str(tmp_path / "store"))

    def printed(*arguments: str) -> Any:
        assert route(*arguments, *where) == 0
        text = capsys.readouterr().out
        made = yaml.safe_load(text)
        jsonschema.Draft202012Validator(HTTP_ROUTE).validate(made)
        return text, made

    def weights(made: Any) -> dict[str, int]:
        backends = made["spec"]["rules"][0]["backendRefs"]
        return {one["filters"][0]["requestHeaderModifier"]["set"][0]["value"]: one["weight"] for one in backends}

    assert weights(printed()[1]) == {"tweets@3": 1}  # no split: all to what a bare name means
    store.point("tweets", steer.split({1: 90, 2: 10}))
    text, made = printed("--host", "api.example.com", "--namespace", "ml", "--service", "answers", "--port", "9000")
    assert weights(made) == {"tweets@1": 90, "tweets@2": 10}
    assert "shadow" not in text
    assert (made["metadata"], made["spec"]["hostnames"]) == (
        {"name": "ray-lora-tweets", "namespace": "ml"},
        ["api.example.com"],
    )
    assert {(one["name"], one["port"]) for one in made["spec"]["rules"][0]["backendRefs"]} == {("answers", 9000)}
    store.point("tweets", steer.shadow(3, 0.5))
    assert "# version 3 is a shadow" in printed()[0]
    assert main(["adapters", "route", "tweets@1", "--gateway", "public", *where]) == 2
    assert "give the bare name 'tweets'" in capsys.readouterr().err

    async def asked() -> list[int]:
        """As the gateway does it: what a request must have to match, with what the backend's filter sets."""
        [rule] = made["spec"]["rules"]
        [match] = rule["matches"]
        assert "/v1/predict".startswith(match["path"]["value"])
        endpoint = start_endpoint(
            AppArgs.model_validate(
                {"store": where[1], "base": str(base), "dtype": "float32", "slots": 4, "max_rank": 4}
            )
        )
        transport = httpx.ASGITransport(create_app(endpoint))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            try:
                found = []
                for backend in rule["backendRefs"]:
                    headers = {one["name"]: one["value"] for one in match["headers"]}
                    for change in backend["filters"][0]["requestHeaderModifier"]["set"]:
                        headers[change["name"]] = change["value"]
                    reply = await client.post("/v1/predict", json={"inputs": "a lovely day"}, headers=headers)
                    assert reply.status_code == 200, reply.text
                    found.append(int(reply.json()["version"]))
                return found
            finally:
                await endpoint.close()

    assert asyncio.run(asked()) == [1, 2]


def test_weights_become_whole_numbers() -> None:
    assert shares({1: 90.0, 2: 10.0, 3: 0}) == {1: 90, 2: 10, 3: 0}
    assert shares({1: 0.9, 2: 0.1}) == {1: 9000, 2: 1000}
    assert shares({1: 1.0, 2: 1e-9}) == {1: 10000, 2: 1}  # never none, where it was asked for some
    assert shares({1: 3.0 * MOST, 2: 1.0 * MOST}) == {1: 7500, 2: 2500}


def test_names_that_kubernetes_does_not_take_stay_apart() -> None:
    names = ["tweets", "Tweets", "tweets.", "my_tweets", "my-tweets", "x" * 100, "x" * 99]
    made = [http_route(name, {1: 1}, gateway="public", service="answers") for name in names]
    for one in made:
        jsonschema.Draft202012Validator(HTTP_ROUTE).validate(one)
    assert len({one["metadata"]["name"] for one in made}) == len(names)  # type: ignore[index]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"gateway": "Public"}, "gateway 'Public' is no name"),
        ({"service": "a_b"}, "service 'a_b' is no name"),
        ({"namespace": "x" * 64}, "namespace 'x+' is no name"),
        ({"hosts": ("http://a",)}, "host 'http://a' is no name of a host"),
        ({"port": 0}, "port 0 must be"),
        ({"path": "v1"}, "path 'v1' is no path"),
        ({"path": "/v1/../x"}, "is no path"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_before(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        http_route("tweets", {1: 1}, **({"gateway": "public", "service": "answers"} | wrong))
