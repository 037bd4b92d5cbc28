"""A tiny YOLOS of random weights, with the image processor that transformers has for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForObjectDetection, YolosConfig, YolosForObjectDetection
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil


def tiny(folder: Path, **options: Any) -> Path:
    """The folder of a base of three classes for pictures of 64 x 96 pixels."""
    told: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
        "image_size": [64, 96], "patch_size": 16, "num_detection_tokens": 7, "num_labels": 3,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = YolosForObjectDetection(YolosConfig(**told | options))
        for name, parameter in model.named_parameters():  # boxes and classes that differ from query to query
            if "detection_tokens" in name or "position_embeddings" in name or "layers.2" in name:
                torch.nn.init.normal_(parameter, 0, 0.3)
    model.save_pretrained(folder)
    YolosImageProcessorPil().save_pretrained(folder)
    return folder


def plain(folder: Path) -> Any:
    """The untouched class."""
    return AutoModelForObjectDetection.from_pretrained(folder, dtype=torch.float32).eval()
