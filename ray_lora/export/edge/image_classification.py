"""Pictures by their files' names, or rows {"image": bytes}, and their labels."""

from __future__ import annotations

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
        if facts["crop"]:  # the shorter side to a length, then the middle
            short = min(image.size)
            longer = [int(facts["crop"] * side / short) for side in image.size]
            scaled = [facts["crop"] if side == short else long for side, long in zip(image.size, longer, strict=True)]
            image = image.resize((scaled[0], scaled[1]), card["resample"])
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        else:
            image = image.resize((width, height), card["resample"])
        pixels = np.asarray(image, np.float32) * np.float32(card["scale"])
        pixels = (pixels - np.array(card["mean"], np.float32)) / np.array(card["std"], np.float32)
        return {"pixel_values": np.ascontiguousarray(pixels.transpose(2, 0, 1))}, None

    def decode(self, outputs: dict[str, Any], row: Any, facts: dict[str, Any]) -> Any:
        logits = outputs["logits"][: len(facts["labels"])]
        scores = np.exp(logits - logits.max())
        scores = scores / scores.sum()
        best = int(scores.argmax())
        return {"label": facts["labels"][best], "score": float(scores[best])}
