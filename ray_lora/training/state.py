"""A job's checkpoint: one safetensors file with its trained tensors, its optimizer's moments and its place in the data.

It is written whole or not at all, and reads into an engine of any number of slots, so a job can go on in another pack.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ray_lora.bounds import short
from ray_lora.engine import AdapterEngine, SlotOptimizer
from ray_lora.errors import AdapterError, CapacityError
from ray_lora.training.member import Best

_FILE = "state.safetensors"


def save_state(
    folder: Path,
    engine: AdapterEngine,
    optimizer: SlotOptimizer,
    slot: int,
    step: int,
    losses: list[float],
    best: Best | None = None,
) -> None:
    """Write the slot's checkpoint, replacing the last one atomically.

    Args:
        best: of its evaluations until then, where the job ends with that.

    Raises:
        CapacityError: it cannot be written, as on a full disk; the last one stands, and nothing of this one lies about.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done, moments = optimizer.state(slot)
    tensors = {f"value/{key}": value for key, value in engine.read(slot).items()} | moments
    place: dict[str, Any] = {"step": step, "done": done, "losses": losses}
    if best is not None:
        tensors |= {f"best/{key}": value for key, value in best.values.items()}
        place["best"] = {"score": best.score, "step": best.step}
    meta = {"place": json.dumps(place)}
    fresh = folder / f".{os.getpid()}.tmp"
    try:
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, fresh, metadata=meta)
        fresh.replace(folder / _FILE)
    except (OSError, SafetensorError) as error:
        raise CapacityError(
            f"the checkpoint of step {step} cannot be written to {str(folder)!r}: {short(str(error), 200)}; make room "
            "there and give the same command again: it goes on from the checkpoint before"
        ) from error
    finally:
        fresh.unlink(missing_ok=True)


def has_state(folder: Path) -> bool:
    """Whether a checkpoint was written into the folder."""
    return (folder / _FILE).exists()


def step_of(folder: Path) -> int | None:
    """The step at which the folder's checkpoint was written; None where there is none.

    Raises:
        AdapterError: the checkpoint is torn.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads(file.metadata()["place"])["step"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"checkpoint {str(path)!r} is torn or no checkpoint: {error}") from None


def load_state(
    folder: Path, engine: AdapterEngine, optimizer: SlotOptimizer, slot: int
) -> tuple[int, list[float], Best | None]:
    """Restore a slot; returns the step it had reached, the losses not yet reported, and the best of its evaluations.

    Raises:
        AdapterError: the checkpoint is torn, or of another adapter.
    """
    path = folder / _FILE
    if not path.exists():
        return 0, [], None
    try:
        tensors, place = _read(path)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise AdapterError(
            f"checkpoint {str(path)!r} is torn or no checkpoint: {error}; remove it to begin the job again"
        ) from None
    values = {key.removeprefix("value/"): value for key, value in tensors.items() if key.startswith("value/")}
    try:
        engine.write(slot, values)
    except AdapterError as error:
        raise AdapterError(f"checkpoint {str(path)!r} is of another adapter: {error}; use another name") from None
    moments = {key: value for key, value in tensors.items() if key.startswith("exp_avg")}
    optimizer.restore(slot, int(place["done"]), moments)
    engine.refresh([slot])
    kept = {key.removeprefix("best/"): value for key, value in tensors.items() if key.startswith("best/")}
    told = place.get("best")
    best = Best(float(told["score"]), int(told["step"]), kept) if told is not None else None
    return int(place["step"]), [float(loss) for loss in place["losses"]], best


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint's tensors, and its place in the job."""
    with safe_open(path, framework="pt") as file:
        place: dict[str, Any] = json.loads(file.metadata()["place"])
        return {key: file.get_tensor(key) for key in file.keys()}, place  # noqa: SIM118
