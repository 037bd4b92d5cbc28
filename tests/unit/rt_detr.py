"""A tiny RT-DETR of random weights, with the image processor that transformers has for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from ray_lora.bases.rt_detr import RtDetrForObjectDetection, without_classes

SIZE = {"height": 64, "width": 96}
QUERIES = 9


def tiny(folder: Path, **options: Any) -> Path:
    """The folder of a base of three classes, whose processor stretches pictures to 64 x 96 pixels."""
    backbone = RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[16, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    told: dict[str, Any] = {
        "backbone_config": backbone, "encoder_in_channels": [16, 24, 32], "encoder_hidden_dim": 32, "d_model": 32,
        "decoder_in_channels": [32, 32, 32], "num_queries": QUERIES, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 2,
        "decoder_n_points": 2, "num_labels": 3,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RTDetrForObjectDetection(RTDetrConfig(**told | options))
        for name, parameter in model.named_parameters():  # boxes and classes that differ from query to query
            if "_embed" in name or "enc_score_head" in name:
                torch.nn.init.normal_(parameter, 0, 0.3)
    model.save_pretrained(folder)
    RTDetrImageProcessorPil(size=SIZE).save_pretrained(folder)
    return folder


def theirs(folder: Path) -> Any:
    """Transformers' class, untouched."""
    return RTDetrForObjectDetection.from_pretrained(folder, dtype=torch.float32).eval()


def plain(folder: Path) -> Any:
    """The plain class with all that the folder knows, classes included."""
    model = theirs(folder)
    classes = model.model.decoder.class_embed
    found = RtDetrForObjectDetection(model.config, without_classes(model), model.config.num_labels).eval()
    found.class_embed.load_state_dict(classes.state_dict())
    return found
