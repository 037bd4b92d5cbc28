"""Adapters of random numbers in a store, what the library says with them, and a bundle's runner beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.adapters.peft_folder import PREFIX
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.inference.stored import alone, local_row
from ray_lora.recipe import BaseSpec, LoraSpec, TaskSpec
from ray_lora.store import open_store
from ray_lora.tasks import build_task

_SHUT = (
    "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'ray', 'ray_lora', 'scipy'))); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); assert sys.modules['torch'] is None"
)


def put(
    store: Path,
    base: Path,
    name: str,
    spec: TaskSpec,
    lora: LoraSpec,
    seed: int = 0,
    spread: float = 0.2,
    head: float | None = None,
) -> Adapter:
    """An adapter of random numbers in a store; `head`: the spread of its head's, where it is another."""
    opened = load_base(BaseSpec(model=str(base), dtype="float32"))
    engine = AdapterEngine(opened, slots=1, max_rank=16)
    task = build_task(spec, opened.processor)
    slot = engine.init(lora, task.head, seed, task.peft_type)
    draw = torch.Generator().manual_seed(seed)
    fresh = {
        key: value
        if "running" in key or (key.removeprefix(PREFIX).startswith(f"{opened.prefix}.") and "lora_" not in key)
        else torch.empty(value.shape).normal_(0, spread if "lora_" in key else head or spread, generator=draw)
        for key, value in engine.read(slot).items()
    }
    engine.write(slot, fresh)
    engine.refresh([slot])
    adapter = engine.export(slot, Card(task=spec, base=str(base)))
    engine.close()
    open_store(str(store)).put(adapter, name)
    return adapter


def said(store: Path, name: str, inputs: Sequence[Any]) -> list[Any]:
    """What the library answers in float32."""
    entry, adapter = open_store(str(store)).load(name)
    engine, slot, task = alone(adapter, entry.ref, dtype="float32")
    features = task.encode([local_row(task, value) for value in inputs])
    found = predict(engine, {slot: task}, features, [slot] * len(features))
    engine.close()
    return found


def like(given: Any, wanted: Any) -> bool:
    """Equal answers, but for rounding."""
    if isinstance(wanted, dict):
        return given.keys() == wanted.keys() and all(like(given[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(given) == len(wanted) and all(map(like, given, wanted))
    return given == (pytest.approx(wanted, abs=1e-5) if isinstance(wanted, float) else wanted)


def run_there(python: Path, folder: Path, name: str, inputs: Sequence[str]) -> list[Any]:
    """What a bundle's runner prints in an environment without torch."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    asked = [python, folder / "runner.py", "--adapter", name, *inputs]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, env=environment, cwd=folder.parent)
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_the_runner(folder: Path, name: str, inputs: Sequence[str]) -> list[Any]:
    """What it prints in a process in which torch cannot be imported."""
    asked = [sys.executable, "-c", _SHUT, folder / "runner.py", "--adapter", name, *inputs]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
