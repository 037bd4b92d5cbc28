"""One picture at a time through the endpoint, five a second: what it adds to the bare pass, and where the time goes.

    python -m benchmarks.realtime [--seconds 300] [--only object-detection]

A camera sends a picture, waits for its answer and sends the next: JPEG of 640 x 427 pixels in base64 to /v1/predict of
`ray-lora serve` with one replica behind HAProxy. Between two requests the same picture goes through the base's plain
class without an adapter in this process, from the JPEG to the answer, with the same dtype and one thread, so both
sides see the same machine.

    endpoint, bare   milliseconds at the 50th and 99th percentile, and the mean of each part: `decode` makes the picture
                     the base's input, `queue` waits for a batch, `pass` is the forward pass and the answer it gives,
                     `answer` what is left: HTTP, JSON, base64, the adapter's entry and lease
    adds             the endpoint's percentiles less the bare pass's; `pairs`: of the differences picture by picture
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from benchmarks.machine import write
from pipelines.baselines import plain_model
from ray_lora import AdapterEngine, BaseSpec, Card, load_base
from ray_lora.bases.base import Base
from ray_lora.bases.segmenters import SegmenterConfig, save_untrained
from ray_lora.recipe import LoraSpec, Recipe, TaskSpec
from ray_lora.store import open_store
from ray_lora.tasks import Task, build_task
from ray_lora.tasks.image_classification import ImageClassificationSpec
from ray_lora.tasks.image_segmentation import ImageSegmentationSpec
from ray_lora.tasks.object_detection import ObjectDetectionSpec

UNET = "unet"  # made here, not trained: what it answers takes no less time


class Kind(NamedTuple):
    """What is asked: options of a task, a base, and where LoRA goes."""

    task: TaskSpec
    base: str
    targets: tuple[str, ...]
    exclude: tuple[str, ...] = ()


THINGS = ("road", "car", "sign", "light")
KINDS = {
    "image-classification, ResNet of digits": Kind(
        ImageClassificationSpec(labels=THINGS), "data/digits-base", ("convolution",)
    ),
    "image-classification, EfficientNet-Lite0": Kind(
        ImageClassificationSpec(labels=THINGS), "efficientnet-lite0", ("_expand_conv", "_project_conv", "_conv_head")
    ),
    "object-detection, YOLOX-Tiny": Kind(ObjectDetectionSpec(labels=THINGS), "yolox-tiny", ("conv",), ("stem.conv",)),
    "image-segmentation, U-Net of 256 x 256": Kind(ImageSegmentationSpec(labels=THINGS), UNET, ("conv1", "conv2")),
}
RATE = 5  # pictures a second
MOST = {"p50": 6.0, "p99": 25.0}  # milliseconds that the endpoint may add


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=int, default=300)
    options.add_argument("--only", default="", help="tasks whose names begin so")
    options.add_argument("--serve", nargs=2, metavar=("BASE", "STORE"), help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.serve:
        serve(*asked.serve)
        return
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for name in [one for one in KINDS if one.startswith(asked.only)]:
        result[name] = measure(KINDS[name], asked.seconds)
        print(name, result[name], flush=True)
    print(write("realtime", {"what": __doc__, "seconds": asked.seconds, "rate": RATE, "most": MOST, "tasks": result}))


def measure(kind: Kind, seconds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        spec, store = BaseSpec(model=prepared(kind.base, Path(folder))), Path(folder) / "store"
        write_adapter(kind, spec, store)
        base = load_base(spec)
        task = build_task(kind.task, base.processor)
        model = plain(base, task)
        shots = pictures()
        with served(spec.model, store) as address, httpx.Client(base_url=address, timeout=60) as client:
            for shot in shots:  # the adapter into its slot, both sides warm
                ask(client, shot)
                alone(model, task, base, shot)
            return compare(client, model, task, base, shots, seconds)


def compare(
    client: httpx.Client, model: nn.Module, task: Task, base: Base, shots: Sequence[bytes], seconds: int
) -> dict[str, Any]:
    """Both sides, picture by picture."""
    endpoint: list[dict[str, float]] = []
    bare: list[dict[str, float]] = []
    began = time.perf_counter()
    for number in range(seconds * RATE):
        shot = shots[number % len(shots)]
        until(began + number / RATE)
        endpoint.append(ask(client, shot))
        until(began + (number + 0.5) / RATE)
        bare.append(alone(model, task, base, shot))
    late = time.perf_counter() - began - seconds
    sides = {"endpoint": endpoint, "bare": bare}
    wholes = {name: np.array([sum(one.values()) for one in side]) for name, side in sides.items()}
    told: dict[str, Any] = {
        name: quantiles(wholes[name])
        | {part: round(float(np.mean([one[part] for one in side])), 2) for part in side[0]}
        for name, side in sides.items()
    }
    adds = {name: round(told["endpoint"][name] - told["bare"][name], 2) for name in MOST}
    return {
        "dtype": str(base.dtype).removeprefix("torch."),
        **told,
        "adds": adds,
        "pairs": quantiles(wholes["endpoint"] - wholes["bare"]),
        "within": all(adds[name] <= most for name, most in MOST.items()),
        "late_s": round(max(0.0, late), 2),
    }


def ask(client: httpx.Client, shot: bytes) -> dict[str, float]:
    """Milliseconds of each part of one request."""
    body = {"model": "camera", "inputs": base64.b64encode(shot).decode()}
    began = time.perf_counter()
    reply = client.post("/v1/predict", json=body)
    whole = 1000 * (time.perf_counter() - began)
    reply.raise_for_status()
    told = {name: float(took) for name, took in re.findall(r"(\w+);dur=([\d.]+)", reply.headers["server-timing"])}
    inside = {"decode": told["encode"], "queue": told["queue"], "pass": told["compute"]}
    return inside | {"answer": whole - sum(inside.values())}


def alone(model: nn.Module, task: Task, base: Base, shot: bytes) -> dict[str, float]:
    """Milliseconds of each part of one pass of the plain class."""
    began = time.perf_counter()
    features = task.encode([{"image": shot}])
    read = time.perf_counter()
    with torch.inference_mode():
        batch = {
            name: tensor.to(base.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in task.collate(features).items()
        }
        task.decode(model(**batch), features, {})
    done = time.perf_counter()
    return {"decode": 1000 * (read - began), "pass": 1000 * (done - read)}


def quantiles(values: Any) -> dict[str, float]:
    return {name: round(float(np.percentile(values, float(name[1:]))), 2) for name in MOST}


def until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


# -------------------------------------------------------------------- what is asked


def pictures() -> list[bytes]:
    """Photographs that scikit-learn carries, moved a little, as JPEG."""
    found = []
    for pixels in load_sample_images().images:
        for shift in range(0, 64, 8):
            file = io.BytesIO()
            Image.fromarray(np.roll(pixels, shift, axis=1)).save(file, "JPEG", quality=85)
            found.append(file.getvalue())
    return found


def prepared(base: str, folder: Path) -> str:
    """The base's name or folder, made where it must be."""
    if base == "data/digits-base":
        from pipelines.digits_base import prepare

        prepare("data")
    if base != UNET:
        return base
    save_untrained(SegmenterConfig(image_size=(256, 256), num_labels=len(THINGS)), folder / UNET)
    return str(folder / UNET)


def write_adapter(kind: Kind, spec: BaseSpec, store: Path) -> None:
    """An adapter of rank 8 whose numbers are random: what they are takes no time."""
    base = load_base(spec)
    task = build_task(kind.task, base.processor)
    engine = AdapterEngine(base, slots=1)
    lora = LoraSpec(r=8, lora_alpha=16, target_modules=kind.targets, exclude_modules=kind.exclude)
    slot = engine.init(lora, task.head, seed=0)
    draw = torch.Generator().manual_seed(0)
    tensors = engine.read(slot)
    drawn = {key: 0.01 * torch.randn(x.shape, generator=draw) for key, x in tensors.items() if "lora" in key}
    engine.write(slot, tensors | drawn)
    engine.refresh([slot])
    open_store(str(store)).put(engine.export(slot, Card(task=task.spec, base=spec.model)), "camera")
    engine.close()


def plain(base: Base, task: Task) -> nn.Module:
    """The base's plain class with a head of the task's size, on weights of its own."""
    recipe = Recipe.parse({"base": {"model": base.id}, "task": task.spec.model_dump(mode="json")})
    model: nn.Module = plain_model(recipe, task).to(base.dtype).eval()
    return model


# -------------------------------------------------------------------- the server


@contextmanager
def served(base: str, store: Path) -> Iterator[str]:
    """The address of an endpoint in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.realtime", "--serve", base, str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    try:
        yield next(line.strip() for line in process.stdout if line.startswith("http://"))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def serve(base: str, store: str) -> None:
    """Serve until an interrupt; prints the address."""
    from ray_lora.serving.cluster.app import AppArgs, run

    stop: list[int] = []
    args = {"store": store, "base": base, "slots": 4, "port": 0, "results": f"{store}-results"}
    print(run(AppArgs.model_validate(args), block=False), flush=True)
    signal.signal(signal.SIGINT, lambda number, _: stop.append(number))
    while not stop:
        time.sleep(0.2)


if __name__ == "__main__":
    main()
