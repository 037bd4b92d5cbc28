"""What each process of an endpoint holds: memory, open handles, threads, by the part that it plays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

_PARTS = {
    r"ray::ServeController": "controller",
    r"ray::HAProxyManager": "proxy (HAProxy's manager)",
    r"ray::\S*Proxy\S*": "proxy (fallback)",
    r".*haproxy$": "haproxy",
    r"ray::ServeReplica:ray_lora:(\S+?)(?:[.:]\S*)?$": r"replica of \1",
    r"ray::IDLE": "idle worker",
    r".*gcs_server$": "Ray: gcs_server",
    r".*raylet$": "Ray: raylet",
}


@dataclass(frozen=True)
class Held:
    """One look at one process. Memory is in MB (2^20 bytes): resident, its own (USS), its share (PSS)."""

    part: str
    pid: int
    rss_mb: float
    uss_mb: float
    pss_mb: float
    handles: int
    threads: int
    processor_s: float


def held(root: int) -> list[Held]:
    """A look at the process `root`, the endpoint's own, and at all that it started."""
    parent = psutil.Process(root)
    found = []
    for process in (parent, *parent.children(recursive=True)):
        try:
            with process.oneshot():
                memory, times = process.memory_full_info(), process.cpu_times()
                part = "ray-lora serve" if process.pid == root else _part(process.cmdline())
                found.append(
                    Held(
                        part,
                        process.pid,
                        *(round(size / 2**20, 2) for size in (memory.rss, memory.uss, memory.pss)),
                        process.num_fds(),
                        process.num_threads(),
                        round(times.user + times.system, 2),
                    )
                )
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def _part(command: list[str]) -> str:
    title = command[0] if command else ""
    for pattern, part in _PARTS.items():
        if match := re.fullmatch(pattern, title.strip()) or re.match(pattern, title):
            return match.expand(part)
    scripts = [Path(word) for word in command if word.endswith(".py")]
    return f"Ray: {'/'.join(scripts[0].parts[-2:])}" if scripts else Path(title).name
