"""Tiny segmenters of random weights, and pictures with bright shapes on a dark ground."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from ray_lora.bases.segmenters import (
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    UnetConfig,
    plain_model,
    save_folder,
)
from ray_lora.bases.segmenters.folder import public, read_config
from ray_lora.bases.segmenters.network import LAST

LABELS = ("background", "blue", "red")
COLOURS = ((20, 40, 230), (230, 40, 20))
SMALL = UnetConfig(channels=(8, 16))


def tensors_of(config: SegmenterConfig, seed: int = 0) -> dict[str, Tensor]:
    """A state dict under the network's own names, with statistics that a fresh batch norm does not have."""
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = plain_model(config)
    found = {}
    for name, tensor in public(model, config).items():
        if name.endswith("running_var"):
            tensor = 0.5 + torch.rand(tensor.shape, generator=draw)
        elif name.endswith("running_mean"):
            tensor = torch.randn(tensor.shape, generator=draw) * 0.1
        found[name] = tensor
    return found


def tiny(folder: Path, labels: Sequence[str] | None = None, **options: Any) -> Path:
    """The folder of a base of three classes for pictures of 32 x 32 pixels."""
    names = None if labels is None else dict(enumerate(labels))
    told = {"network": SMALL, "image_size": (32, 32), "num_labels": 3, "id2label": names}
    config = SegmenterConfig.model_validate(told | options)
    save_folder(tensors_of(config), config, folder)
    return folder


def plain(folder: Path) -> SegmenterForSemanticSegmentation:
    """The untouched class with the folder's weights, its own classifier included."""
    config, tensors = read_config(folder), load_file(folder / "model.safetensors")
    model, last = plain_model(config), LAST[config.network.kind] + "."
    named = {
        f"classifier.{name.removeprefix(last)}" if name.startswith(last) else f"segmenter.net.{name}": tensor
        for name, tensor in tensors.items()
    }
    model.load_state_dict(named, strict=False)
    return model.eval()


def segformer(folder: Path, labels: int = 3) -> Path:
    """A tiny SegFormer with its image processor, as `save_pretrained` writes a whole one."""
    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        num_attention_heads=[1, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=12,
        num_labels=labels,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.SegformerForSemanticSegmentation(config).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, parameter[0].numel() ** -0.5)
            elif "bias" in name:
                parameter.data.normal_(0, 0.1)
        norm = model.decode_head.batch_norm
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    transformers.SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def row(number: int, width: int, height: int) -> dict[str, Any]:
    """A picture with up to two shapes, and its mask; every fourth shows nothing, every third has unknown pixels."""
    draw = random.Random(number)
    pixels = np.random.default_rng(number).integers(0, 60, (height, width, 3), dtype=np.uint8)
    picture, mask = Image.fromarray(pixels), Image.new("L", (width, height))
    for at in range(0 if number % 4 == 3 else 1 + number % 2):
        index = draw.randint(1, 2)
        x, y = draw.randint(0, width // 2), draw.randint(0, height // 2)
        box = (x, y, x + width // 3, y + height // 3)
        shape = ("ellipse", "rectangle")[at % 2]
        getattr(ImageDraw.Draw(picture), shape)(box, fill=COLOURS[index - 1])
        getattr(ImageDraw.Draw(mask), shape)(box, fill=index)
    if number % 3 == 0:
        ImageDraw.Draw(mask).rectangle((0, height - 3, width, height), fill=255)
    return {"image": png(picture), "mask": png(mask)}


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pictures of unlike sizes."""
    return [row(number, 40 + 17 * (number % 3), 30 + 9 * (number % 4)) for number in range(seed, seed + count)]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def mask_of(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.array(Image.open(io.BytesIO(data)))


def best_answer(given: Any) -> dict[str, Any]:
    """The map that is right, and sure of it; what nobody knows is answered as the background."""
    mask = mask_of(given["mask"])
    right = Image.fromarray(np.where(mask == 255, 0, mask).astype(np.uint8))
    sure = Image.fromarray(np.full_like(mask, 255))
    return {"score": 1.0} | {
        name: base64.b64encode(png(one)).decode() for name, one in (("map", right), ("sure", sure))
    }
