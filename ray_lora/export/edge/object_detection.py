"""Pictures by their files' names, or rows {"image": bytes}, and what is where in them, best first, as YOLOX says it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps


class Rows:
    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self.card, (high, wide) = card, card["size"]
        grids = [np.mgrid[: high // s, : wide // s][::-1].reshape(2, -1).T for s in card["strides"]]
        self.cells = np.concatenate(grids).astype(np.float32)
        self.strides = np.repeat(card["strides"], [len(grid) for grid in grids]).astype(np.float32)[:, None]

    def encode(self, value: Any, facts: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        given = value["image"] if isinstance(value, dict) else value
        opened = Image.open(io.BytesIO(given) if isinstance(given, bytes) else given)
        if opened.mode.startswith(("I", "F")):
            raise SystemExit(f"{given!r} has more than 8 bits a pixel and would be cut; scale it to 8 bits")
        picture = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        height, width = self.card["size"]
        scale = min(height / picture.shape[0], width / picture.shape[1])
        high, wide = (max(int(side * scale), 1) for side in picture.shape[:2])
        scaled = resized(resized(picture, wide, 1), high, 0)
        boxed = np.full((height, width, 3), self.card["ground"], np.float32)
        boxed[:high, :wide] = scaled[..., ::-1] if self.card["channel_order"] == "bgr" else scaled
        return {"pixel_values": boxed.transpose(2, 0, 1)}, (picture.shape[1::-1], (wide, high))

    def decode(self, outputs: dict[str, Any], row: Any, facts: dict[str, Any]) -> Any:
        (extent, inside), raw, labels = row, outputs["boxes"], facts["labels"]
        logits, objectness = outputs["logits"][:, : len(labels)], outputs["objectness"][:, None]
        if not all(np.isfinite(one).all() for one in (raw, logits, objectness)):
            raise SystemExit("the graph's outputs are no numbers, so nothing can be said of the picture")
        scores = 1 / (1 + np.exp(-logits)) / (1 + np.exp(-objectness))
        middle, half = (raw[:, :2] + self.cells) * self.strides, np.exp(np.minimum(raw[:, 2:], 8)) * self.strides / 2
        size = np.array([*extent, *extent], np.float32)
        corners = np.concatenate([middle - half, middle + half], 1) * (size / np.array([*inside, *inside], np.float32))
        corners, label, best = np.clip(corners, 0, size), scores.argmax(1), scores.max(1)
        order = np.argsort(-best, kind="stable")
        area = np.prod(corners[:, 2:] - corners[:, :2], 1)
        order = order[(best[order] >= facts["threshold"]) & (area[order] > 0)]
        found: list[Any] = []
        while len(order) and len(found) < facts["top_k"]:
            first, order = order[0], order[1:]
            box = dict(zip(("xmin", "ymin", "xmax", "ymax"), corners[first].round().astype(int).tolist(), strict=True))
            found.append({"score": float(best[first]), "label": labels[label[first]], "box": box})
            far = np.minimum(corners[order, 2:], corners[first, 2:])
            shared = np.prod(np.clip(far - np.maximum(corners[order, :2], corners[first, :2]), 0, None), 1)
            share = shared / (area[order] + area[first] - shared)
            order = order[(label[order] != label[first]) | (share <= facts["iou"])]
        return found


def resized(pixels: Any, out: int, axis: int) -> Any:
    """Bilinear along one axis, rounded to 8 bits, in whole numbers as torch does it."""
    into = pixels.shape[axis]
    if into == out:
        return pixels
    at = np.maximum((np.arange(out) + 0.5) * (into / out) - 0.5, 0)
    low = np.minimum(at.astype(int), into - 1)
    share = np.where(low < into - 1, at - low, 0)
    bits = next(
        (bits for bits in range(22) if int(0.5 + max(1 - share.min(), share.max()) * 2 ** (bits + 1)) >= 2**15), 22
    )
    shape = [-1 if one == axis else 1 for one in range(3)]
    near, far = ((0.5 + one * 2**bits).astype(int).reshape(shape) for one in (1 - share, share))
    beside = np.minimum(low + 1, into - 1)
    total = near * pixels.take(low, axis).astype(int) + far * pixels.take(beside, axis).astype(int) + 2 ** (bits - 1)
    return np.clip(total >> bits, 0, 255).astype(np.uint8)
