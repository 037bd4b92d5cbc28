"""What every result file says about where it was measured."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from ray_lora.running.doctor import gflops

_FLAGS = ("avx", "avx2", "avx_vnni", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "amx_bf16", "amx_int8")
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, its flags and speed, cores, memory and the versions that matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "flags": [
            flag for flag in _FLAGS if any(f" {flag} " in f"{line} " for line in lines if line.startswith("flags"))
        ],
        "gflops_one_thread": {name: gflops(getattr(torch, name)) for name in ("float32", "bfloat16")},
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "ray", "mlflow")},
    }


def write(name: str, result: dict[str, Any]) -> Path:
    """Write `results/NAME.json` with the machine beside the figures."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    return path
