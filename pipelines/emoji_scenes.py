"""Emoji of four classes on photographs, with boxes, as parquet; and YOLOX-Tiny for pictures of their size.

    python -m pipelines.emoji_scenes [--out data]

Twemoji's drawings (Twitter and contributors, CC-BY-4.0, 64 x 64 pixels with alpha) from npm `emoji-datasource-twitter`
16.0.0, turned, mirrored and scaled, lie on crops of scikit-learn's two photographs. A drawing is in one split alone,
and so is a part of a photograph: training crops are of its left three fifths, the others of the rest. A box holds the
pixels that a drawing covers by half or more; where another drawing lies over a corner of it, it is the whole drawing's.

    data/detection/{train,validation,test}.parquet
    data/yolox-tiny-256/        the packaged base `yolox-tiny`, the same numbers, for pictures of 256 x 256 pixels

    {"image": b"<JPEG bytes, 256 x 256>", "objects": {"bbox": [[12.0, 40.0, 64.0, 61.0]], "category": ["food"]}}
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from pipelines.kept_rows import by_group, keep
from ray_lora.bases.converted import convert
from ray_lora.bases.packaged import Archive, fetch_archive

SOURCE = Archive(
    "npm",
    "emoji-datasource-twitter",
    "16.0.0",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    62,
)
CLASSES = {"Animals & Nature": "animals", "Food & Drink": "food", "Travel & Places": "travel"}
CLASSES |= {"Smileys & Emotion": "smileys"}  # the set's word: ours
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
SIZES = {"train": 1600, "validation": 160, "test": 320}
SIDE = 256  # pixels of a picture
SMALLEST, LARGEST, MOST = 32, 96, 5  # pixels of a drawing's side, drawings in a picture
_EMPTY = 16  # one picture in so many has no object
_LEFT = 0.6  # the part of a photograph that training sees
_COVERED = 0.15  # of a drawing's box at most, by each later one
_BASE = "yolox-tiny-256"


@dataclass(frozen=True)
class Drawing:
    """An emoji: its code points, its class and its picture, RGBA."""

    code: str
    label: str
    picture: Image.Image


def prepare(out: str | Path = "data") -> Path:
    """Make the rows and the base's folder where they are missing or of another making; the base's folder.

    Raises:
        DataError: the archive cannot be had.
        BaseModelError: the base cannot be had.
    """
    making = {
        "source": SOURCE.sha256, "classes": CLASSES, "shares": SHARES, "sizes": SIZES, "side": SIDE, "form": 1,
        "drawn": [SMALLEST, LARGEST, MOST],
    }  # fmt: skip
    keep(out, "detection", making, lambda: files(read_drawings(), photographs()))
    return small_base(Path(out))


def small_base(out: Path) -> Path:
    """YOLOX-Tiny for pictures of `SIDE`: the packaged base's numbers in a folder that says another size."""
    from ray_lora.bases.yolox import save_checkpoint

    source, folder = convert("yolox-tiny"), out / _BASE
    if not (folder / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        save_checkpoint(source / "model.safetensors", folder, image_size=(SIDE, SIDE))
        for name in ("README.md", "LICENSE"):
            shutil.copyfile(source / name, folder / name)
    return folder


def read_drawings() -> list[Drawing]:
    """Twemoji of the four classes that are one code point, by code."""
    known = json.loads((fetch_archive(SOURCE, "package", ("emoji.json",)) / "emoji.json").read_text())
    found = {
        one["image"]: (one["unified"], CLASSES[one["category"]])
        for one in known
        if one["has_img_twitter"] and one["category"] in CLASSES and "-" not in one["unified"].removesuffix("-FE0F")
    }
    folder = fetch_archive(SOURCE, "package/img/twitter/64", sorted(found))
    return [
        Drawing(code, label, Image.open(folder / name).convert("RGBA")) for name, (code, label) in sorted(found.items())
    ]


def photographs() -> list[Image.Image]:
    """A palace and a flower, 640 x 427 pixels."""
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def files(drawings: Sequence[Drawing], photos: Sequence[Image.Image]) -> dict[str, list[dict[str, Any]]]:
    """Rows by file."""
    splits = by_group([one.code for one in drawings], SHARES)
    found = {}
    for number, (split, count) in enumerate(SIZES.items()):
        mine = [one for one, at in zip(drawings, splits, strict=True) if at == split]
        by_class = [[one for one in mine if one.label == label] for label in CLASSES.values()]
        grounds = [_part(photo, split) for photo in photos]
        found[f"detection/{split}.parquet"] = [
            scene(np.random.default_rng([number, at]), by_class, grounds) for at in range(count)
        ]
    return found


def scene(
    draw: np.random.Generator, by_class: Sequence[Sequence[Drawing]], grounds: Sequence[Image.Image]
) -> dict[str, Any]:
    """A row: every class as often, drawings that hide little of each other."""
    picture = _crop(draw, grounds[int(draw.integers(len(grounds)))])
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[str] = []
    for _ in range(0 if draw.integers(_EMPTY) == 0 else int(draw.integers(1, MOST + 1))):
        of_class = by_class[int(draw.integers(len(by_class)))]
        drawing = of_class[int(draw.integers(len(of_class)))]
        shown, inner = _turned(draw, drawing.picture)
        room = SIDE - shown.width, SIDE - shown.height
        for _ in range(20):
            x, y = (int(draw.integers(side + 1)) for side in room)
            box = x + inner[0], y + inner[1], x + inner[2], y + inner[3]
            if all(_hidden(other, box) <= _COVERED for other in boxes):
                picture.paste(shown, (x, y), shown)
                boxes.append(box)
                labels.append(drawing.label)
                break
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    corners = [[float(x), float(y), float(right - x), float(low - y)] for x, y, right, low in boxes]
    return {"image": file.getvalue(), "objects": {"bbox": corners, "category": labels}}


def _part(photo: Image.Image, split: str) -> Image.Image:
    edge = int(photo.width * _LEFT)
    return photo.crop((0, 0, edge, photo.height) if split == "train" else (edge, 0, photo.width, photo.height))


def _crop(draw: np.random.Generator, ground: Image.Image) -> Image.Image:
    """A square of 160 pixels or more, scaled."""
    side = int(draw.integers(160, min(ground.size) + 1))
    x, y = (int(draw.integers(length - side + 1)) for length in ground.size)
    return ground.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _turned(draw: np.random.Generator, picture: Image.Image) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A drawing as it is pasted, and the corners of what it covers by half or more."""
    if draw.integers(2):
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = int(draw.integers(SMALLEST, LARGEST + 1))
    turned = picture.rotate(float(draw.uniform(-25, 25)), Image.Resampling.BICUBIC, expand=True)
    scale = side / picture.width
    shown = turned.resize((round(turned.width * scale), round(turned.height * scale)), Image.Resampling.BICUBIC)
    inner = shown.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
    assert inner is not None
    return shown, inner


def _hidden(box: Sequence[int], by: Sequence[int]) -> float:
    """The share of a box that another one covers."""
    wide, high = (min(box[at + 2], by[at + 2]) - max(box[at], by[at]) for at in (0, 1))
    return max(wide, 0) * max(high, 0) / ((box[2] - box[0]) * (box[3] - box[1]))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Prepare the scenes and the base")
    options.add_argument("--out", default="data", help="folder to write to")
    prepare(options.parse_args().out)
