"""A small U-Net pretrained on drawn scenes, for bases of convolutions that say of every pixel what it shows.

    python -m pipelines.segmentation_base [--out data]

It makes `data/scenes-plain/` (`pipelines.segmentation_scenes`) and, which a second run reuses,

    data/segmentation-base/      a base's folder with a model card

An adapter for textures or lesions starts from a base that never saw one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipelines.made_bases import made_once
from pipelines.segmentation_scenes import LABELS
from pipelines.segmentation_scenes import prepare as draw
from ray_lora.bases.fingerprint import fingerprint
from ray_lora.bases.segmenters import Frame, SegmenterConfig, UnetConfig, plain_model, save_folder
from ray_lora.bases.segmenters.folder import public
from ray_lora.tasks.image_segmentation import ImageSegmentation
from ray_lora.tasks.segmentation.options import ImageSegmentationSpec

ARCHITECTURE: dict[str, Any] = {"channels": (12, 24, 48, 96)}
IMAGE_SIZE = (64, 64)
TRAINING = {"seed": 0, "steps": 160, "batch_size": 16, "learning_rate": 5e-3}
CARD = """# segmentation-base

A U-Net of {parameters:,} parameters (`ray_lora.bases.segmenters.unet`), **pretrained by this project**
(`pipelines/segmentation_base.py`) from random weights on the {rows:,} training scenes of `scenes-plain`, which
`pipelines/segmentation_scenes.py` draws: discs, boxes and triangles in strong colours on light, plain ground. {steps}
steps of {batch_size}, seed {seed}. It never saw a photograph, and it is no U-Net that anybody published.

Dice on {held} held-out plain scenes: {dice:.3f}. sha256 of its weights: {fingerprint}.
"""


def prepare(out: str | Path = "data") -> Path:
    """Draw the scenes and pretrain the base where they are missing; print what there is. The base's folder."""
    out = Path(out)
    draw("plain", out)
    folder = pretrain(out)
    record = json.loads((folder / "pretraining.json").read_text())
    print(f"{folder}: {record['parameters']:,} parameters; Dice on the test split: {record['dice']:.3f}")
    return folder


def pretrain(out: Path) -> Path:
    """The folder of the pretrained base, made in some twenty seconds of one core where it is not there yet."""
    folder = out / "segmentation-base"
    making = {"architecture": list(ARCHITECTURE["channels"]), "training": TRAINING, "size": list(IMAGE_SIZE), "form": 1}

    def make(fresh: Path) -> dict[str, Any]:
        told = _train(out / "scenes-plain", fresh)
        (fresh / "README.md").write_text(CARD.format(**told, **TRAINING))
        return told

    return made_once(folder, making, make)


def _train(scenes: Path, folder: Path) -> dict[str, Any]:
    """Train from random weights and save; what the card says of it."""
    labels = LABELS["plain"]
    config = SegmenterConfig(
        network=UnetConfig(**ARCHITECTURE),
        image_size=IMAGE_SIZE,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
    )
    task = ImageSegmentation(ImageSegmentationSpec(labels=labels), Frame(IMAGE_SIZE, config.network.cell))
    rows, held = (task.encode(pq.read_table(scenes / f"{split}.parquet").to_pylist()) for split in ("train", "test"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(TRAINING["seed"]))
        model = plain_model(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        steps, size = int(TRAINING["steps"]), int(TRAINING["batch_size"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TRAINING["learning_rate"], steps)
        for _ in range(steps):
            batch = [rows[at] for at in torch.randperm(len(rows))[:size].tolist()]
            loss: Tensor = task.loss(model(**task.collate(batch)), batch)[0].mean()
            loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        answers = task.decode(model(**task.collate(held)), held, task.scoring)
    save_folder(public(model, config), config, folder)
    return {
        "rows": len(rows),
        "held": len(held),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dice": task.score(answers, held)["dice"],
        "fingerprint": fingerprint(folder),
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Pretrain the small U-Net and draw its scenes")
    options.add_argument("--out", default="data", help="folder to write to")
    prepare(options.parse_args().out)
