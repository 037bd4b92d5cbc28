"""Sounds by their files' names, or rows {"audio": bytes}, and what they say, a letter or nothing a frame (CTC)."""

from __future__ import annotations

import itertools
import runpy
from pathlib import Path
from typing import Any

import numpy as np


class Rows:
    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self.card = card
        self.opened = runpy.run_path(str(Path(__file__).with_name("sounds.py")))["opened"]

    def encode(self, value: Any, facts: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        samples = self.opened(value, self.card["rate"], facts["samples"])
        if self.card["normalise"]:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        short = max(0, self.card["least"] - len(samples))
        return {"input_values": np.pad(samples, (0, short)).astype(np.float32)}, None

    def decode(self, outputs: dict[str, Any], row: Any, facts: dict[str, Any]) -> Any:
        logits, card = outputs["logits"], self.card
        if not np.isfinite(logits).all():
            raise SystemExit("the graph's outputs are no numbers, so nothing can be said of the sound")
        tokens = [card["tokens"][at] for at in logits.argmax(-1)]
        said = [token for token, _ in itertools.groupby(tokens) if token != card["silent"]]
        text = "".join(card["blank"] if token == card["delimiter"] else token for token in said).strip()
        return {"text": text.lower() if card["lower"] else text}
