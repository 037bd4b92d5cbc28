"""A name's split as a weighted route of a Kubernetes gateway, for those who share out requests there.

    weights = shares({1: 90, 2: 10})                                              # {1: 90, 2: 10}
    http_route("tweets", weights, gateway="public", service="ray-lora-serve-svc")  # an HTTPRoute, to be written as YAML

Requests name the adapter in the header `serve-multiplexed-model-id`, and no `model` in the body. The gateway draws a
version for each by the weights and writes it into the header, so one service answers all of them. It knows no store.

The Gateway API's version is gateway.networking.k8s.io/v1; filters of a backend are among its extended features
(`HTTPRouteBackendRequestHeaderModification`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from ray_lora.errors import RecipeError
from ray_lora.recipe import Json

# Of the two spellings that the endpoint takes, the one that proxies let through which drop names with underscores.
_HEADER = "serve-multiplexed-model-id"
MOST = 1_000_000  # the Gateway API's largest weight
_FINE = 10_000  # what weights that are no whole numbers are rounded to, together
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DOMAIN = re.compile(r"(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def shares(split: Mapping[int, float]) -> dict[int, int]:
    """Weights in whole numbers: as they are where they are whole, else of ten thousand, and at least 1 each.

    Versions of weight 0 stay, and get nothing.
    """
    if all(float(weight).is_integer() and weight <= MOST for weight in split.values()):
        return {version: int(weight) for version, weight in split.items()}
    total = sum(split.values())
    return {version: max(1, round(weight / total * _FINE)) if weight else 0 for version, weight in split.items()}


def http_route(
    name: str,
    weights: Mapping[int, int],
    *,
    gateway: str,
    service: str,
    port: int = 8000,
    path: str = "/v1/",
    hosts: tuple[str, ...] = (),
    namespace: str | None = None,
) -> dict[str, Json]:
    """An HTTPRoute that spreads the requests for a name over its versions.

    Args:
        weights: version -> a whole number from 0 to `MOST`.
        gateway: the Gateway that the route belongs to.
        service: the endpoint's Service, and its port.
        path: what the paths of requests begin with.
        hosts: names of hosts that are asked for; none: any.
        namespace: of the route; None: where it is applied.

    Raises:
        RecipeError: a name is none that Kubernetes takes, or a number is out of range.
    """
    for what, given in (("gateway", gateway), ("service", service), ("namespace", namespace)):
        if given is not None and not _LABEL.fullmatch(given):
            raise RecipeError(
                f"{what} {given!r} is no name of Kubernetes'; use small letters, digits and '-', at most 63"
            )
    for host in hosts:
        if len(host) > 253 or not _DOMAIN.fullmatch(host):
            raise RecipeError(f"host {host!r} is no name of a host; write for example api.example.com or *.example.com")
    if not 1 <= port <= 65535:
        raise RecipeError(f"port {port} must be a whole number from 1 to 65535")
    if not path.startswith("/") or len(path) > 1024 or re.search(r"//|/\.\.?/|%2[fF]|#|[^!-~]", path):
        raise RecipeError(f"path {path!r} is no path of requests; write for example /v1/")
    match: Json = {
        "path": {"type": "PathPrefix", "value": path.rstrip("/") or "/"},
        "headers": [{"type": "Exact", "name": _HEADER, "value": name}],
    }
    metadata = {"name": _called(name)} | ({} if namespace is None else {"namespace": namespace})
    rule: Json = {"matches": [match], "backendRefs": [_backend(name, *one, service, port) for one in weights.items()]}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": metadata,
        "spec": {"parentRefs": [{"name": gateway}]} | ({"hostnames": list(hosts)} if hosts else {}) | {"rules": [rule]},
    }


def _backend(name: str, version: int, weight: int, service: str, port: int) -> Json:
    change = {"set": [{"name": _HEADER, "value": f"{name}@{version}"}]}
    filters = [{"type": "RequestHeaderModifier", "requestHeaderModifier": change}]
    return {"name": service, "port": port, "weight": weight, "filters": filters}


def _called(name: str) -> str:
    """The route's name; an adapter's has letters that Kubernetes does not take, and then a digest keeps two apart."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"ray-lora-{plain}" if plain == name else f"ray-lora-{plain}-{digest}"
