"""A YOLOX nano pretrained on drawn shapes, for tries and tests of detectors: a small base with names of its own.

    python -m pipelines.detection_base [--out data]

    data/shapes/{train,validation,test}.parquet     scenes: one to four shapes on plain ground, none in one of ten
    data/detection-base/                            a base's folder with a model card, made once

    {"image": b"<PNG bytes, RGB>", "objects": {"bbox": [[12.0, 40.0, 64.0, 61.0]], "category": ["disc"]}}

It is the nano of this project alone: it has seen no photograph, and none of COCO's 80 classes.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pipelines.kept_rows import keep
from pipelines.made_bases import made_once
from ray_lora.bases.fingerprint import fingerprint
from ray_lora.bases.yolox import Letterbox, Yolox, YoloxConfig, YoloxForObjectDetection, public, save_folder
from ray_lora.tasks.object_detection import ObjectDetection, ObjectDetectionSpec

SHAPES = ("box", "disc", "triangle")
ROWS = {"train": 480, "validation": 60, "test": 100}
NANO: dict[str, Any] = {"depth": 0.33, "width": 0.25, "depthwise": True, "image_size": [128, 128]}
TRAINING = {"seed": 0, "steps": 800, "batch_size": 16, "learning_rate": 5e-3}
CARD = """# detection-base

A YOLOX nano of {parameters:,} parameters (`ray_lora.bases.yolox`), **pretrained by this project**
(`pipelines/detection_base.py`) from random weights on {rows:,} drawn scenes: boxes, discs and triangles in strong
colours on light, plain ground. {steps} steps of {batch_size}, seed {seed}, pictures of 128 x 128. It never saw a
photograph. It is not the YOLOX-Nano that Megvii trained on COCO and that is known by this name.

On {held} held-out scenes: map {map:.3f}, map_50 {map_50:.3f}. sha256 of its weights: {fingerprint}.
"""
_FORM = 1  # a number that grows when something else is drawn or trained
_APART = 4  # pixels between two shapes at least
_TRIES = 20


def prepare(out: str | Path = "data") -> Path:
    """Draw the scenes and pretrain the base where they are missing; print what there is. The base's folder."""
    out = Path(out)
    making = {"rows": ROWS, "form": _FORM}
    keep(out, "shapes", making, lambda: {f"shapes/{split}.parquet": rows(split) for split in ROWS})
    folder = pretrain(out)
    told = json.loads((folder / "pretraining.json").read_text())
    print(f"{folder}: {told['parameters']:,} parameters; on the test split map {told['map']:.3f}")
    return folder


def rows(split: str) -> list[dict[str, Any]]:
    """All scenes of a split, the same every time."""
    return [scene(random.Random(f"{split}-{number}")) for number in range(ROWS[split])]


def scene(draw: random.Random) -> dict[str, Any]:
    """One scene: its picture, and the boxes and names of its shapes, of which none touches another."""
    size = draw.randint(96, 160), draw.randint(96, 160)
    picture = Image.new("RGB", size, tuple(draw.randint(190, 250) for _ in range(3)))
    boxes: list[tuple[int, int, int, int]] = []
    names = []
    for _ in range(0 if draw.random() < 0.1 else draw.randint(1, 4)):
        if (corners := _free(draw, size, boxes)) is not None:
            names.append(draw.choice(SHAPES))
            boxes.append(corners)
            _shape(draw, picture, names[-1], corners)
    file = io.BytesIO()
    picture.save(file, "PNG")
    found = [[float(x), float(y), float(far - x), float(low - y)] for x, y, far, low in boxes]
    return {"image": file.getvalue(), "objects": {"bbox": found, "category": names}}


def _free(
    draw: random.Random, size: tuple[int, int], taken: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    """Corners of a place where nothing is; None where none was found."""
    for _ in range(_TRIES):
        wide, high = draw.randint(16, 64), draw.randint(16, 64)
        x, y = draw.randint(0, size[0] - wide), draw.randint(0, size[1] - high)
        far, low = x + wide, y + high
        apart = (
            x >= right + _APART or far + _APART <= left or y >= under + _APART or low + _APART <= top
            for left, top, right, under in taken
        )
        if all(apart):
            return x, y, far, low
    return None


def _shape(draw: random.Random, picture: Image.Image, name: str, corners: tuple[int, int, int, int]) -> None:
    """What is drawn covers the pixels from x to far - 1."""
    colour = [draw.randint(0, 60), draw.randint(0, 160), draw.randint(170, 255)]
    draw.shuffle(colour)
    x, y, far, low = corners[0], corners[1], corners[2] - 1, corners[3] - 1
    pen, fill = ImageDraw.Draw(picture), tuple(colour)
    if name == "disc":
        pen.ellipse((x, y, far, low), fill=fill)
    elif name == "box":
        pen.rectangle((x, y, far, low), fill=fill)
    else:
        pen.polygon([((x + far) // 2, y), (far, low), (x, low)], fill=fill)


def pretrain(out: Path) -> Path:
    """The folder of the pretrained base, made in a minute or two of one core where it is not there yet."""
    folder = out / "detection-base"
    making = {"network": NANO, "training": TRAINING, "form": _FORM}

    def make(fresh: Path) -> dict[str, Any]:
        told = _train(out / "shapes", fresh)
        (fresh / "README.md").write_text(CARD.format(**told, **TRAINING))
        return told

    return made_once(folder, making, make)


def _train(scenes: Path, folder: Path) -> dict[str, Any]:
    """Train from random weights and save; what the card says of it."""
    config = YoloxConfig(**NANO, num_labels=len(SHAPES), id2label=dict(enumerate(SHAPES)))
    task = ObjectDetection(ObjectDetectionSpec(labels=SHAPES), Letterbox(config.image_size))
    found, held = (task.encode(pq.read_table(scenes / f"{split}.parquet").to_pylist()) for split in ("train", "test"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(TRAINING["seed"]))
        model = YoloxForObjectDetection(config, Yolox(config), config.num_labels).train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        steps, size = int(TRAINING["steps"]), int(TRAINING["batch_size"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TRAINING["learning_rate"], steps)
        for _ in range(steps):
            batch = [found[at] for at in torch.randperm(len(found))[:size].tolist()]
            sums, terms = task.loss(model(**task.collate(batch)), batch)
            loss: Tensor = sums.sum() / terms.sum().clamp(min=1)
            loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        answers = task.decode(model(**task.collate(held)), held, task.scoring)
    save_folder(public(model), config, folder)
    return {
        "rows": len(found),
        "held": len(held),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "fingerprint": fingerprint(folder),
        **task.score(answers, held),
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Pretrain the small YOLOX and draw its scenes")
    options.add_argument("--out", default="data", help="folder to write to")
    prepare(options.parse_args().out)
