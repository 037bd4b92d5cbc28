"""Sounds by their files' names, or rows {"audio": bytes}, and the text that they say, as Whisper writes it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer


class Rows:
    def __init__(self, folder: Path, card: dict[str, Any]) -> None:
        self.tokenizer, self.card = Tokenizer.from_file(str(folder / "tokenizer.json")), card
        self.filters = np.load(folder / "mel.npy", allow_pickle=False).T  # [mel, frequencies]
        self.opened = runpy.run_path(str(Path(__file__).with_name("sounds.py")))["opened"]

    def encode(self, value: Any, facts: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        samples = self.opened(value, self.card["rate"], facts["samples"])
        row = {"tokens": facts["begin"], "most": facts["most"]}
        return {"input_features": self.spectrogram(samples)[None]}, row

    def spectrogram(self, samples: Any) -> Any:
        """Logarithms of a whole window's energies, float32 [mel, frames], within 80 dB of the loudest."""
        size, hop = self.card["fft"], self.card["hop"]
        whole = np.pad(samples.astype(float), (0, self.card["window"] - len(samples)))
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(whole, size // 2, mode="reflect"), size)[::hop][:-1]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
        energies = np.abs(np.fft.rfft(frames * hann)) ** 2
        found = np.log10(np.maximum(self.filters @ energies.T, 1e-10))
        return ((np.maximum(found, found.max() - 8) + 4) / 4).astype(np.float32)

    def decode(self, tokens: list[int], row: Any, facts: dict[str, Any]) -> Any:
        said = [token for token in tokens if token < self.card["times"]]  # what is no text is left out
        return {"text": self.tokenizer.decode(said, skip_special_tokens=True)}
