"""A small ResNet pretrained on upright digits, and the same digits upright, rotated and inverted as rows.

    python -m pipelines.digits_base [--out data]

From scikit-learn's 1,797 digits (UCI, Alpaydin and Kaynak 1998) it makes, and a second run reuses,

    data/digits-<upright|rotated|inverted>/{train,validation,test}.parquet
    data/digits-base/      a plain transformers folder with a model card: ResNetForImageClassification

    {"image": b"<PNG bytes, 32 x 32, RGB>", "label": "7"}

A digit is in the same split in all variants, and the base learnt from the train split alone, so validation and test are
unseen in every sense. An adapter for rotated digits starts from a base that never saw one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from transformers import AutoImageProcessor, AutoModelForImageClassification, ResNetConfig
from transformers.utils import logging

SIZE = 32  # pixels
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
VARIANTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "upright": lambda image: image,
    "rotated": lambda image: image.transpose(Image.Transpose.ROTATE_90),  # a quarter, so that 6 does not become 9
    "inverted": ImageOps.invert,
}
SCHEMA = pa.schema([("image", pa.binary()), ("label", pa.string())])
ARCHITECTURE: dict[str, Any] = {
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 96, 128],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
TRAINING = {"seed": 0, "epochs": 12, "batch_size": 32, "learning_rate": 3e-3}
PROCESSOR = {  # ViT's: resize, rescale, normalise, and nothing else. It needs PIL alone.
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": SIZE, "width": SIZE},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
CARD = """# digits-base

A ResNet of {parameters:,} parameters (transformers `ResNetForImageClassification`), **pretrained by this project**
(`pipelines/digits_base.py`) from random weights, on the {rows:,} upright digits of the train split of scikit-learn's
digits and on nothing else: {epochs} epochs, seed {seed}. It is no ResNet that its inventors trained and never saw
ImageNet. It exists so that a convolutional base can be adapted to rotated and inverted digits without any download.

Accuracy on {held} held-out digits: {scores}.

The digits are UCI's "Optical Recognition of Handwritten Digits" as scikit-learn ships them.
"""


def prepare(out: str | Path = "data") -> Path:
    """Write the rows and pretrain the base where they are missing; print what there is. The base's folder."""
    out = Path(out)
    counts = write_rows(out)
    base = pretrain(out)
    print(f"digits, each upright, rotated and inverted: {', '.join(f'{n:,} {name}' for name, n in counts.items())}")
    record = json.loads((base / "pretraining.json").read_text())
    print(f"{base}: {record['parameters']:,} parameters; accuracy on the test split: {_say(record['accuracy'])}")
    return base


def write_rows(out: Path) -> dict[str, int]:
    """`digits-<variant>/<split>.parquet` for every variant and split; rows by split."""
    digits = split_digits()
    for variant, change in VARIANTS.items():
        folder = out / f"digits-{variant}"
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in digits.items():
            table = [{"image": _png(change(image)), "label": label} for image, label in rows]
            fresh = folder / f".{split}.{os.getpid()}"
            pq.write_table(pa.Table.from_pylist(table, schema=SCHEMA), fresh)
            fresh.replace(folder / f"{split}.parquet")
    return {split: len(rows) for split, rows in digits.items()}


def split_digits() -> dict[str, list[tuple[Image.Image, str]]]:
    """Upright digits and labels by split. The split is a hash of the 8 x 8 picture, so it never changes."""
    source = load_digits()
    found: dict[str, list[tuple[str, Image.Image, str]]] = {split: [] for split in SHARES}
    for pixels, label in zip(source.images.astype(np.uint8), source.target, strict=True):  # ink 0 to 16
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        place = int(digest[:12], 16) / 16**12
        split = "train" if place < SHARES["train"] else "validation" if place < 1 - SHARES["test"] else "test"
        grey = Image.fromarray((pixels.astype(np.float64) * 255 / 16).round().astype(np.uint8))
        image = grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR).convert("RGB")
        found[split].append((digest, image, str(label)))
    return {split: [(image, label) for _, image, label in sorted(rows, key=_first)] for split, rows in found.items()}


def pretrain(out: Path) -> Path:
    """The folder of the pretrained base, made in some ten seconds of one core where it is not there yet."""
    folder = out / "digits-base"
    making = {"architecture": ARCHITECTURE, "training": TRAINING, "processor": PROCESSOR, "shares": SHARES, "form": 1}
    record = folder / "pretraining.json"
    if record.exists() and json.loads(record.read_text())["making"] == making:
        return folder
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".digits-base-", dir=out) as scratch:
        fresh = Path(scratch) / "base"
        fresh.mkdir()
        (fresh / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2))
        scores, parameters = _train(fresh)
        digits = split_digits()
        card = CARD.format(
            parameters=parameters, rows=len(digits["train"]), held=len(digits["test"]), scores=_say(scores), **TRAINING
        )
        (fresh / "README.md").write_text(card)
        written = {"making": making, "parameters": parameters, "accuracy": scores}
        (fresh / "pretraining.json").write_text(json.dumps(written, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            fresh.rename(folder)
        except OSError:  # another process was first, and made the same
            if not record.exists():
                raise
    return folder


def _train(folder: Path) -> tuple[dict[str, float], int]:
    """Train from random weights, save beside the processor; accuracy of each variant and number of parameters."""
    digits = split_digits()
    names = sorted({label for _, label in digits["train"]})
    processor = AutoImageProcessor.from_pretrained(folder)
    images = _pixels(processor, [image for image, _ in digits["train"]])
    labels = torch.tensor([names.index(label) for _, label in digits["train"]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(TRAINING["seed"]))
        config = ResNetConfig(
            **ARCHITECTURE, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
        )
        model = AutoModelForImageClassification.from_config(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=TRAINING["learning_rate"], weight_decay=0.01)
        epochs, size = int(TRAINING["epochs"]), int(TRAINING["batch_size"])
        total = epochs * (len(labels) // size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        for _ in range(epochs):
            for rows in torch.randperm(len(labels))[: len(labels) // size * size].view(-1, size):
                model(pixel_values=images[rows], labels=labels[rows]).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
    model.eval()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    truth = [label for _, label in digits["test"]]
    scores = {}
    for variant, change in VARIANTS.items():
        with torch.inference_mode():
            logits = model(pixel_values=_pixels(processor, [change(image) for image, _ in digits["test"]])).logits
        answers = [names[i] for i in logits.argmax(-1).tolist()]
        scores[variant] = sum(a == t for a, t in zip(answers, truth, strict=True)) / len(truth)
    return scores, model.num_parameters()


def _pixels(processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    pixels: torch.Tensor = processor(list(images), return_tensors="pt")["pixel_values"]
    return pixels


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _first(row: tuple[str, Image.Image, str]) -> str:
    return row[0]


def _say(scores: dict[str, float]) -> str:
    return ", ".join(f"{variant} {score:.3f}" for variant, score in scores.items())


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Pretrain the digits base and write the digits")
    options.add_argument("--out", default="data", help="folder to write to")
    prepare(options.parse_args().out)
