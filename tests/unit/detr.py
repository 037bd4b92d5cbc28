"""Tiny DETRs of random weights, with the image processor that transformers has for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    TableTransformerConfig,
    TableTransformerForObjectDetection,
)
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

KINDS = ("detr", "table-transformer")
_CLASSES: dict[str, tuple[Any, Any]] = {
    "detr": (DetrConfig, DetrForObjectDetection),
    "table-transformer": (TableTransformerConfig, TableTransformerForObjectDetection),
}
SIZE = {"shortest_edge": 64, "longest_edge": 96}


def tiny(folder: Path, kind: str = "detr", size: dict[str, int] = SIZE, **options: Any) -> Path:
    """The folder of a base of three classes, whose processor scales pictures to 64 pixels, at most 96."""
    config, model_class = _CLASSES[kind]
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    told: dict[str, Any] = {
        "backbone_config": backbone, "use_timm_backbone": False, "use_pretrained_backbone": False, "num_queries": 7,
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_labels": 3,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config(**told | options))
        for name, parameter in model.named_parameters():  # boxes and classes that differ from query to query
            if "query_position_embeddings" in name or "bbox_predictor.layers.2" in name:
                torch.nn.init.normal_(parameter, 0, 0.5)
    model.save_pretrained(folder)
    DetrImageProcessorPil(size=size).save_pretrained(folder)
    return folder
