"""What a machine has for adapters: versions, processors, how fast they multiply, memory, and whether what a run needs
answers.

    for line in examine(store="./store"):
        print(line.mark, line.what, line.found, line.advice)

It starts nothing but a few products.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ray_lora.errors import RayLoraError

if TYPE_CHECKING:
    import torch

_PACKAGES = ("ray_lora", "torch", "transformers", "peft", "ray", "mlflow", "pyarrow")
_SIZE = 384  # of the products that are timed: seconds where bfloat16 is emulated
_LOW_BYTES = 4 << 30


@dataclass(frozen=True)
class Line:
    """One thing that was looked at. `ok` is None of what is said and neither right nor wrong."""

    what: str
    found: str
    ok: bool | None = None
    advice: str = ""

    @property
    def mark(self) -> str:
        return {True: "ok", False: "!!", None: ""}[self.ok]


def examine(store: str | None = None, tracking_uri: str | None = None, port: int = 8000) -> list[Line]:
    """Look at this machine, and at a store and an MLflow where they are named."""
    lines = [_versions(), *_extras(), _processors(), *_products(), _memory(), _disk(), _gpu(), _ray(), _port(port)]
    if store is not None:
        lines.append(_answers("store", store, lambda: _count(store, tracking_uri)))
    if tracking_uri is not None:
        lines.append(_answers("MLflow", tracking_uri, lambda: _experiments(tracking_uri)))
    return lines


def _versions() -> Line:
    found = {name: _version(name) for name in _PACKAGES}
    missing = [name for name, version in found.items() if version is None]
    said = ", ".join(f"{name} {version}" for name, version in found.items() if version is not None)
    advice = f"pip install {' '.join(missing)}" if missing else ""
    return Line("packages", f"Python {platform.python_version()}, {said}", not missing, advice)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extras() -> Iterator[Line]:
    """Those that the package itself declares, but what its tests need."""
    declared: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("ray_lora") or ():
        if found := re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", line):
            declared.setdefault(found[2], []).append(found[1])
    for extra in sorted(set(declared) - {"test"}):
        if any(_version(name) is None for name in declared[extra]):
            yield Line(f"extra {extra}", "not installed", None, f"pip install 'ray_lora[{extra}]'")


def _processors() -> Line:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    told = f"{cores} cores, OMP_NUM_THREADS {threads or 'not set'}"
    if threads == "1":
        return Line("processors", told, True)
    return Line("processors", told, None, "export OMP_NUM_THREADS=1: threads of several processes slow each other down")


def _products() -> Iterator[Line]:
    """How fast one thread multiplies in each dtype; bfloat16 that is far slower is emulated."""
    import torch

    from ray_lora.bases.load import pick_dtype

    speeds = {dtype: gflops(dtype, _SIZE) for dtype in (torch.float32, torch.bfloat16)}
    auto = pick_dtype("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for dtype, speed in speeds.items():
        name = str(dtype).removeprefix("torch.")
        slow = speed < speeds[torch.float32] / 2
        advice = "slow here: leave base.dtype at auto" if slow else ""
        yield Line(name, f"{speed:,.0f} GFLOP/s, one thread", None, advice)
    yield Line("base.dtype auto", str(auto).removeprefix("torch."))


def gflops(dtype: torch.dtype, size: int = 768) -> float:
    """Billions of operations a second of a square product on one thread, the best of some."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    torch.set_num_threads(threads)
    return round(2 * size**3 / best / 1e9, 1)


def _memory() -> Line:
    told = psutil.virtual_memory()
    low = told.available < _LOW_BYTES
    advice = "a base of 22 M parameters trains in about 2 GB; end what is not needed" if low else ""
    return Line("memory", f"{told.available / 1e9:.1f} of {told.total / 1e9:.1f} GB free", not low, advice)


def _disk() -> Line:
    free = shutil.disk_usage(Path.cwd()).free
    low = free < _LOW_BYTES
    return Line(
        "disk here", f"{free / 1e9:,.1f} GB free", not low, "runs, stores and caches grow; make room" if low else ""
    )


def _gpu() -> Line:
    import torch

    if not torch.cuda.is_available():
        return Line("GPU", "none: everything runs on processors")
    names = {torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
    return Line("GPU", f"{torch.cuda.device_count()}: {', '.join(sorted(names))}", None, "scaling.use_gpu: true")


def _ray() -> Line:
    """A cluster that runs join: the one of RAY_ADDRESS, or the last that was started here."""
    told = os.environ.get("RAY_ADDRESS")
    written = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    with contextlib.suppress(OSError):
        told = told or written.read_text().strip()
    return Line("Ray", f"runs at {told}; runs join it" if told else "none runs; a run starts one")


def _port(port: int) -> Line:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        return Line(f"port {port}", f"taken ({error.strerror})", False, "ray-lora serve --port 0 takes a free one")
    return Line(f"port {port}", "free", True)


def _answers(what: str, where: str, ask: Callable[[], str]) -> Line:
    began = time.perf_counter()
    try:
        found = ask()
    except RayLoraError as error:
        return Line(what, str(error).splitlines()[0], False, "see that it runs and that it can be reached")
    return Line(what, f"{where}: {found}, {time.perf_counter() - began:.1f} s", True)


def _count(store: str, tracking_uri: str | None) -> str:
    from ray_lora.store import open_store

    return f"{len(open_store(store, tracking_uri).names())} adapters"


def _experiments(uri: str) -> str:
    from ray_lora.store.mlflow_client import connect
    from ray_lora.store.mlflow_line import address, answering, require

    require(uri)
    with answering(uri):
        return f"{len(connect(address(uri)).search_experiments())} experiments"
