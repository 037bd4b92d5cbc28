"""Pictures by their files' names, or rows {"image": bytes}, and a mask for each label in them, a PNG in base64."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps


class Rows:
    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self.card = card

    def encode(self, value: Any, facts: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        given = value["image"] if isinstance(value, dict) else value
        opened = Image.open(io.BytesIO(given) if isinstance(given, bytes) else given)
        if opened.mode.startswith(("I", "F")):
            raise SystemExit(f"{given!r} has more than 8 bits a pixel and would be cut; scale it to 8 bits")
        image, card, (height, width) = ImageOps.exif_transpose(opened).convert("RGB"), self.card, facts["size"]
        inside = (width, height)
        if card["fill"]:  # in the upper left corner, the rest filled up
            scale = min(height / image.height, width / image.width)
            inside = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        scaled = np.asarray(image if image.size == inside else image.resize(inside, card["resample"]), np.float32)
        pixels = np.full((height, width, 3), card["fill"] or 0, np.float32)
        pixels[: inside[1], : inside[0]] = scaled
        if not card["fill"]:
            pixels = pixels * np.float32(card["scale"])
            pixels = (pixels - np.array(card["mean"], np.float32)) / np.array(card["std"], np.float32)
        return {"pixel_values": np.ascontiguousarray(pixels.transpose(2, 0, 1))}, (image.size, inside, (height, width))

    def decode(self, outputs: dict[str, Any], row: Any, facts: dict[str, Any]) -> Any:
        (width, height), inside, size = row
        logits = outputs["logits"][: len(facts["labels"])]
        if not np.isfinite(logits).all():
            raise SystemExit("the graph's outputs are no numbers, so nothing can be said of the picture")
        if inside[::-1] != size:  # a part of the input is the picture
            logits = resized(logits, size)[:, : inside[1], : inside[0]]
        logits = resized(logits, (height, width))
        best, top = logits.argmax(0), logits.max(0)
        sure = 1 / np.exp(logits - top).sum(0)
        return [
            {"score": float(sure[best == index].mean()), "label": facts["labels"][index], "mask": png(best == index)}
            for index in np.unique(best).tolist()
        ]


def resized(maps: Any, size: tuple[int, int]) -> Any:
    """Bilinear, [..., height, width], each point in the middle of its pixel."""
    for axis, out in ((1, size[0]), (2, size[1])):
        into = maps.shape[axis]
        if into != out:
            at = np.maximum((np.arange(out) + 0.5) * (into / out) - 0.5, 0)
            low = np.minimum(at.astype(int), into - 1)
            share = (at - low).astype(np.float32).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
            maps = maps.take(low, axis) * (1 - share) + maps.take(np.minimum(low + 1, into - 1), axis) * share
    return maps


def png(here: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(here.astype(np.uint8) * 255).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
