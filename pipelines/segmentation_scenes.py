"""Scenes with masks, drawn by this project: shapes on plain ground, the same on textures, lesions in tissue, emoji.

    python -m pipelines.segmentation_scenes [--out data]

    data/scenes-<plain|textured|lesions|emoji>/{train,validation,test}.parquet

    {"image": b"<PNG bytes, RGB>", "mask": b"<PNG bytes of class indices>"}

A scene is drawn from its kind, split and number, so it is the same every time. `plain` is what the small U-Net learns
before (`pipelines.segmentation_base`). `lesions` are like medical pictures in kind only, few cases of one class: they
are generated, and no picture of a person is in them. `emoji` are those of `pipelines.emoji_scenes` (Twemoji, CC-BY-4.0)
on crops of scikit-learn's two photographs; an emoji is in one split alone, and so is a part of a photograph.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipelines.emoji_scenes import SHARES, SOURCE, photographs, read_drawings
from pipelines.kept_rows import by_group, keep

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
_FORM = 1  # a number that grows when something else is drawn
_LEFT = 0.6  # the part of a photograph that training sees

Scene = tuple[Image.Image, Image.Image]  # picture and mask


def prepare(kind: str, out: str | Path = "data") -> None:
    """`scenes-<kind>/<split>.parquet`, where it is missing or of another making.

    Raises:
        DataError: the emoji cannot be had.
    """
    making = {"rows": ROWS[kind], "form": _FORM} | ({"source": SOURCE.sha256} if kind == "emoji" else {})
    keep(
        out,
        f"scenes-{kind}",
        making,
        lambda: {f"scenes-{kind}/{split}.parquet": rows(kind, split) for split in ROWS[kind]},
    )


def rows(kind: str, split: str) -> list[dict[str, bytes]]:
    """All scenes of a split."""
    scenes = (scene(kind, split, number) for number in range(ROWS[kind][split]))
    return [{"image": _png(picture), "mask": _png(mask)} for picture, mask in scenes]


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
    photograph = draw.choice(_grounds(split))
    x, y = (draw.randint(0, whole - part) for whole, part in zip(photograph.size, size, strict=True))
    picture, mask = photograph.crop((x, y, x + size[0], y + size[1])), Image.new("L", size)
    for _ in range(draw.randint(1, 3)):
        side = draw.randint(18, 44)
        figure = draw.choice(_drawings()[split]).resize((side, side), Image.Resampling.LANCZOS)
        at = (draw.randint(0, size[0] - side), draw.randint(0, size[1] - side))
        picture.paste(figure, at, figure)
        mask.paste(
            1, (*at, at[0] + side, at[1] + side), figure.getchannel("A").point(lambda alpha: 255 * (alpha > 127))
        )
    return picture, mask


@lru_cache(maxsize=1)
def _drawings() -> dict[str, list[Image.Image]]:
    """The emoji of each split."""
    drawings = read_drawings()
    splits = by_group([one.code for one in drawings], SHARES)
    return {
        split: [one.picture for one, mine in zip(drawings, splits, strict=True) if mine == split] for split in SHARES
    }


@lru_cache(maxsize=3)
def _grounds(split: str) -> list[Image.Image]:
    """The photographs at half size: of each the left part trains, and the right one is held out."""
    found = []
    for photograph in photographs():
        small = photograph.reduce(2)
        edge = int(small.width * _LEFT)
        found.append(small.crop((0, 0, edge, small.height) if split == "train" else (edge, 0, *small.size)))
    return found


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
        prepare(name, asked.out)
