"""The end of an endpoint: its address takes nobody more, who is inside is answered, and only then Serve goes.

Serve kills HAProxy, and with it what is in flight. HAProxy itself can close a door and say who is still inside; it
listens for that at a socket of Ray's. Where it is not there (`RAY_SERVE_ENABLE_HA_PROXY=0`) nothing is done here.
"""

from __future__ import annotations

import csv
import os
import socket
import time
from pathlib import Path

_SOCKET = "RAY_SERVE_HAPROXY_SOCKET_PATH"
_DEFAULT = "/tmp/haproxy-serve/admin.sock"  # Ray's
_DOOR = "http_frontend"  # as Ray calls it
_PAUSE_S = 0.05


def drain(within_s: float) -> None:
    """Have this node's HAProxy refuse new connections and wait until it has answered what it holds, at most `within_s`
    seconds."""
    import ray

    path = Path(os.environ.get(_SOCKET, _DEFAULT))
    door = path.parent / ray.get_runtime_context().get_node_id() / path.name
    until = time.monotonic() + within_s
    try:
        ask(door, f"disable frontend {_DOOR}")
        while inside(ask(door, "show stat")) and time.monotonic() < until:
            time.sleep(_PAUSE_S)
    except OSError:  # no HAProxy, or it is gone
        return


def inside(stats: str) -> int:
    """How many requests the backends have, of `show stat`; the line of each backend counts its servers too."""
    rows = csv.DictReader(stats.lstrip("# ").splitlines())
    return sum(int(row["scur"] or 0) for row in rows if row["svname"] == "BACKEND")


def ask(door: Path, command: str) -> str:
    """What HAProxy answers to a command. OSError where nobody listens."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(5)
        line.connect(str(door))
        line.sendall(f"{command}\n".encode())
        told = b""
        while part := line.recv(1 << 16):
            told += part
    return told.decode()
