"""Scenes with masks, drawn by this project: shapes on plain ground, the same on textures, lesions in tissue, emoji.

    python -m pipelines.segmentation_scenes [--out data]

    data/scenes-<plain|textured|lesions|emoji>/{train,validation,test}.parquet

    {"image": b"<PNG bytes, RGB>", "mask": b"<PNG bytes of class indices>"}

A scene is drawn from its kind, split and number, so it is the same every time. `plain` is what the small U-Net learns
before (`pipelines.segmentation_base`). `lesions` are like medical pictures in kind only, few cases of one class: they
are generated, and no picture of a person is in them. `emoji` are Twitter's (Twemoji, CC-BY-4.0, by npm's
`emoji-datasource-twitter`) on crops of scikit-learn's two photographs; an emoji is in one split alone.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFilter

from ray_lora.bases.packaged import Archive, fetch_archive

SCHEMA = pa.schema([("image", pa.binary()), ("mask", pa.binary())])
SHAPES = ("disc", "box", "triangle")
LABELS = {
    "plain": ("background", *SHAPES),
    "textured": ("background", *SHAPES),
    "lesions": ("background", "lesion"),
    "emoji": ("background", "emoji"),
}
ROWS = {  # of each split
    "plain": {"train": 400, "validation": 60, "test": 100},
    "textured": {"train": 200, "validation": 60, "test": 100},
    "lesions": {"train": 16, "validation": 24, "test": 80},
    "emoji": {"train": 200, "validation": 40, "test": 80},
}
TWEMOJI = Archive(
    "npm",
    "emoji-datasource-twitter",
    "16.0.0",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    62,
)
_SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}  # of the emoji

Scene = tuple[Image.Image, Image.Image]  # picture and mask


def write(kind: str, out: Path) -> dict[str, int]:
    """`scenes-<kind>/<split>.parquet` where it is missing; rows by split."""
    folder = out / f"scenes-{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in ROWS[kind].items():
        path = folder / f"{split}.parquet"
        if path.exists() and pq.read_metadata(path).num_rows == count:
            continue
        rows = [dict(zip(SCHEMA.names, map(_png, scene(kind, split, number)), strict=True)) for number in range(count)]
        fresh = folder / f".{split}.{os.getpid()}"
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), fresh)
        fresh.replace(path)
    return dict(ROWS[kind])


def scene(kind: str, split: str, number: int) -> Scene:
    """The same for the same arguments."""
    draw = random.Random(f"{kind}-{split}-{number}")
    return _DRAWN[kind](draw, split)


# -------------------------------------------------------------------- shapes


def _plain(draw: random.Random, split: str) -> Scene:
    """One to three shapes in strong colours on a light ground."""
    size = _size(draw)
    ground = tuple(draw.randint(190, 250) for _ in range(3))
    picture, mask = Image.new("RGB", size, ground), Image.new("L", size)
    for _ in range(draw.randint(1, 3)):
        _shape(draw, picture, mask, _strong(draw))
    return picture, mask


def _textured(draw: random.Random, split: str) -> Scene:
    """The same shapes in grey and dull colours on grain and stripes, blurred."""
    size = _size(draw)
    picture, mask = _grain(draw, size, (40, 150), 34), Image.new("L", size)
    pen, step = ImageDraw.Draw(picture), draw.randint(7, 14)
    for at in range(-size[1], size[0], step):
        pen.line((at, 0, at + size[1], size[1]), fill=tuple(draw.randint(30, 120) for _ in range(3)))
    for _ in range(draw.randint(1, 3)):
        _shape(draw, picture, mask, tuple(draw.randint(90, 200) for _ in range(3)))
    noise = _grain(draw, size, (0, 255), 60)
    return Image.blend(picture.filter(ImageFilter.GaussianBlur(0.8)), noise, 0.2), mask


def _shape(draw: random.Random, picture: Image.Image, mask: Image.Image, colour: tuple[int, ...]) -> None:
    index = draw.randint(1, len(SHAPES))
    side = draw.randint(min(picture.size) // 5, min(picture.size) // 2)
    x, y = draw.randint(0, picture.width - side), draw.randint(0, picture.height - side)
    for image, fill in ((picture, colour), (mask, index)):
        pen: Any = ImageDraw.Draw(image)
        if SHAPES[index - 1] == "disc":
            pen.ellipse((x, y, x + side, y + side), fill=fill)
        elif SHAPES[index - 1] == "box":
            pen.rectangle((x, y, x + side, y + side), fill=fill)
        else:
            pen.polygon([(x + side // 2, y), (x + side, y + side), (x, y + side)], fill=fill)


# -------------------------------------------------------------------- lesions


def _lesions(draw: random.Random, split: str) -> Scene:
    """None to three dim blots in speckled grey tissue with vessels."""
    size = _size(draw)
    picture, mask = _grain(draw, size, (70, 140), 30, grey=True), Image.new("L", size)
    pen = ImageDraw.Draw(picture)
    for _ in range(draw.randint(2, 5)):  # what only looks like something
        a, b = ([draw.randint(0, edge) for edge in size] for _ in range(2))
        pen.line((*a, *b), fill=(draw.randint(150, 190),) * 3, width=draw.randint(1, 3))
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        wide, high = draw.randint(8, 22), draw.randint(8, 22)
        x, y = draw.randint(0, size[0] - wide), draw.randint(0, size[1] - high)
        angle = [draw.uniform(0.7, 1.0) for _ in range(12)]
        points = [
            (x + wide / 2 * (1 + r * np.cos(at * np.pi / 6)), y + high / 2 * (1 + r * np.sin(at * np.pi / 6)))
            for at, r in enumerate(angle)
        ]
        pen.polygon(points, fill=(draw.randint(35, 60),) * 3)
        ImageDraw.Draw(mask).polygon(points, fill=1)
    return Image.blend(
        picture.filter(ImageFilter.GaussianBlur(1.2)), _grain(draw, size, (0, 255), 70, True), 0.15
    ), mask


# -------------------------------------------------------------------- emoji


def _emoji(draw: random.Random, split: str) -> Scene:
    """One to three emoji on a crop of a photograph; the mask is where they are opaque."""
    size = _size(draw)
    photograph = draw.choice(_photographs())
    x, y = (draw.randint(0, whole - part) for whole, part in zip(photograph.size, size, strict=True))
    picture, mask = photograph.crop((x, y, x + size[0], y + size[1])), Image.new("L", size)
    for _ in range(draw.randint(1, 3)):
        side = draw.randint(18, 44)
        with Image.open(draw.choice(_drawings(split))) as drawing:
            figure = drawing.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
        at = (draw.randint(0, size[0] - side), draw.randint(0, size[1] - side))
        picture.paste(figure, at, figure)
        mask.paste(
            1, (*at, at[0] + side, at[1] + side), figure.getchannel("A").point(lambda alpha: 255 * (alpha > 127))
        )
    return picture, mask


def _drawings(split: str) -> list[Path]:
    """The emoji of a split, by a hash of their names."""
    if not _FOUND:
        folder = fetch_archive(TWEMOJI, "package/img/twitter/64")
        for path in sorted(folder.glob("*.png")):
            place = int(hashlib.sha256(path.name.encode()).hexdigest()[:12], 16) / 16**12
            name = "train" if place < _SHARES["train"] else "validation" if place < 1 - _SHARES["test"] else "test"
            _FOUND.setdefault(name, []).append(path)
    return _FOUND[split]


def _photographs() -> list[Image.Image]:
    if not _TAKEN:
        from sklearn.datasets import load_sample_images

        _TAKEN.extend(Image.fromarray(pixels).reduce(2) for pixels in load_sample_images().images)
    return _TAKEN


_FOUND: dict[str, list[Path]] = {}
_TAKEN: list[Image.Image] = []


# -------------------------------------------------------------------- pixels


def _size(draw: random.Random) -> tuple[int, int]:
    """Pictures of unlike sizes."""
    return draw.randint(72, 112), draw.randint(72, 112)


def _strong(draw: random.Random) -> tuple[int, ...]:
    colour = [draw.randint(0, 60), draw.randint(0, 160), draw.randint(170, 255)]
    draw.shuffle(colour)
    return tuple(colour)


def _grain(
    draw: random.Random, size: tuple[int, int], levels: tuple[int, int], spread: int, grey: bool = False
) -> Image.Image:
    """Noise around a level that goes from one side to the other."""
    numbers = np.random.default_rng(draw.randrange(1 << 32))
    ramp = np.linspace(draw.uniform(*levels), draw.uniform(*levels), size[0])[None, :, None]
    noise = numbers.normal(0, spread, (size[1], size[0], 1 if grey else 3))
    return Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8).repeat(3 if grey else 1, axis=2))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


_DRAWN: dict[str, Callable[[random.Random, str], Scene]] = {
    "plain": _plain,
    "textured": _textured,
    "lesions": _lesions,
    "emoji": _emoji,
}


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Draw scenes with masks")
    options.add_argument("--out", default="data", help="folder to write to")
    asked = options.parse_args()
    for name in ROWS:
        print(f"{name}: {write(name, Path(asked.out))}")
