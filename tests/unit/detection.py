"""A tiny YOLOX of random weights, and pictures with bright rectangles on a dark ground."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ray_lora.bases.yolox import Yolox, YoloxConfig, YoloxForObjectDetection, public, save_folder
from ray_lora.bases.yolox.folder import read_config

COLOURS = {"blue": (20, 40, 230), "red": (230, 40, 20), "white": (240, 240, 240)}


def tensors_of(config: YoloxConfig, seed: int = 0) -> dict[str, Tensor]:
    """A state dict under the public names, with statistics that a fresh batch norm does not have."""
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = YoloxForObjectDetection(config, Yolox(config), config.num_labels)
    found = {}
    for full, tensor in public(model).items():
        if full.endswith(("bn.weight", "running_var")):
            tensor = 0.5 + torch.rand(tensor.shape, generator=draw)
        elif full.endswith(("bn.bias", "running_mean")):
            tensor = torch.randn(tensor.shape, generator=draw) * 0.1
        found[full] = tensor
    return found


def tiny(folder: Path, labels: Sequence[str] | None = None, **options: Any) -> Path:
    """The folder of a base of three classes for pictures of 64 x 64 pixels."""
    names = None if labels is None else dict(enumerate(labels))
    told = {"width": 0.0625, "image_size": (64, 64), "num_labels": 3, "channel_order": "rgb", "id2label": names}
    config = YoloxConfig.model_validate(told | options)
    save_folder(tensors_of(config), config, folder)
    return folder


def plain(folder: Path) -> YoloxForObjectDetection:
    """The untouched class with the folder's weights, its own prediction layers included."""
    config, tensors = read_config(folder), load_file(folder / "model.safetensors")
    model = YoloxForObjectDetection(config, Yolox(config), config.num_labels)
    model.load_state_dict(
        {name.removeprefix("head.") if "_preds." in name else f"yolox.{name}": t for name, t in tensors.items()}
    )
    return model.eval()


def objects(number: int, width: int, height: int) -> dict[str, Any]:
    """Up to two boxes beside each other; every fourth picture has none."""
    draw = random.Random(number)
    count = 0 if number % 4 == 3 else 1 + number % 2
    room = width // max(count, 1)
    boxes = []
    for at in range(count):
        wide, high = draw.randint(room // 3, room - 4), draw.randint(height // 3, height - 4)
        boxes.append([float(at * room + draw.randint(0, 3)), float(draw.randint(0, 3)), float(wide), float(high)])
    return {"bbox": boxes, "category": [draw.choice(sorted(COLOURS)) for _ in boxes]}


def scene(number: int, found: dict[str, Any], width: int, height: int) -> bytes:
    """A PNG file."""
    pixels = np.random.default_rng(number).integers(0, 60, (height, width, 3), dtype=np.uint8)
    for (x, y, wide, high), name in zip(found["bbox"], found["category"], strict=True):
        pixels[int(y) : int(y + high), int(x) : int(x + wide)] = COLOURS[name]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pictures of unlike sizes."""
    found = []
    for number in range(seed, seed + count):
        width, height = 60 + 17 * (number % 3), 44 + 9 * (number % 4)
        things = objects(number, width, height)
        found.append({"image": scene(number, things, width, height), "objects": things})
    return found


def best_answer(row: Any) -> list[dict[str, Any]]:
    return [
        {"score": 1.0, "label": name, "box": {"xmin": x, "ymin": y, "xmax": x + wide, "ymax": y + high}}
        for (x, y, wide, high), name in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True)
    ]
