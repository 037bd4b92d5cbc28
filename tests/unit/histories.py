"""A tiny SASRec of random weights, and histories of its items."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ray_lora.bases.sasrec import SasRec, SasRecConfig, SasRecForNextItem, SasRecForNextItemUntied, save_folder
from ray_lora.bases.sasrec.folder import fresh, read_config

WORDS = tuple(f"item-{number:02d}" for number in range(23))
NUMBERS = tuple(range(900, 923))


def tiny(folder: Path, items: Any = NUMBERS, positions: int = 12) -> Path:
    """The folder of a base whose weights are large enough that every layer matters."""
    config = SasRecConfig(items=items, hidden_size=16, intermediate_size=24, max_position_embeddings=positions)
    save_folder(tensors_of(config), config, folder)
    return folder


def tensors_of(config: SasRecConfig, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=draw) * (tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.2)
        + ("norm.weight" in name)
        for name, tensor in fresh(config, seed).state_dict().items()
    }


def plain(folder: Path, kind: type[Any] = SasRecForNextItem) -> Any:
    """The untouched class with the folder's weights."""
    config = read_config(folder)
    sasrec = SasRec(config)
    sasrec.load_state_dict(load_file(folder / "model.safetensors"))
    return kind(config, sasrec).eval()


def untied(folder: Path) -> SasRecForNextItemUntied:
    """The one whose output layer is an adapter's."""
    model: SasRecForNextItemUntied = plain(folder, SasRecForNextItemUntied)
    return model


def rows(count: int, items: Any = NUMBERS, seed: int = 0) -> list[dict[str, Any]]:
    """Histories of 1 to 17 items, of which the longest are cut."""
    draw = random.Random(seed)
    return [
        {"items": [draw.choice(items) for _ in range(1 + 4 * (number % 5))], "next": items[(7 * number) % len(items)]}
        for number in range(count)
    ]


def best_answer(row: Any) -> list[dict[str, Any]]:
    return [{"item": row["next"], "score": 1.0}]
