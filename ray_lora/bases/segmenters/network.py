"""A segmenter split where adapters part: `Segmenter` is shared, the classifier is each adapter's own.

    states = Segmenter(config)(pixel_values).last_hidden_state
    SegmenterForSemanticSegmentation(config, segmenter, 4)(pixel_values)["logits"]   # [rows, 4, height, width]

It knows tensors: no files, masks or labels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ray_lora.bases.segmenters.config import (
    CraftConfig,
    ErfnetConfig,
    MonaiUnetConfig,
    Network,
    SegmenterConfig,
    UnetConfig,
)
from ray_lora.bases.segmenters.craft import Craft
from ray_lora.bases.segmenters.erfnet import Erfnet
from ray_lora.bases.segmenters.unet import Unet
from ray_lora.errors import BaseModelError

# of each network, by its kind, what gives the labels: the name of the module that makes them
LAST: Mapping[str, str] = MappingProxyType(
    {
        "unet": "final",
        "erfnet": "decode_head.conv_seg",
        "craft": "conv_cls.8",
        "monai-unet": "model.2",
        "monai-basic-unet": "final_conv",
    }
)


@dataclass(frozen=True)
class Features:
    """What the shared part gives for a batch: [rows, channels, height, width], what the classifier reads."""

    last_hidden_state: Tensor


class Segmenter(nn.Module):
    """The network without its last module."""

    main_input_name = "pixel_values"

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.net = network(config.network, 1)
        self.net.set_submodule(LAST[config.network.kind], nn.Identity())

    def forward(self, pixel_values: Tensor) -> Features:
        """pixel_values: [rows, 3, height, width], from 0 to 255."""
        mean, std = (
            pixel_values.new_tensor(told)[:, None, None] for told in (self.config.image_mean, self.config.image_std)
        )
        return Features(self.net((pixel_values / 255 - mean) / std))


class SegmenterForSemanticSegmentation(nn.Module):
    """The plain class. Its classifier, the network's last module, is what an adapter has of its own."""

    def __init__(self, config: SegmenterConfig, segmenter: Segmenter, labels: int) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.classifier = network(config.network, labels).get_submodule(LAST[config.network.kind])

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """`logits`, [rows, labels, height, width]; height and width may be a whole part of the input's."""
        return {"logits": self.classifier(self.segmenter(pixel_values).last_hidden_state)}


def plain_model(config: SegmenterConfig, labels: int | None = None) -> SegmenterForSemanticSegmentation:
    """A fresh model with so many labels, the config's where none are said; from torch's own generator."""
    return SegmenterForSemanticSegmentation(config, Segmenter(config), labels or config.num_labels)


def network(config: Network, labels: int) -> nn.Module:
    """A fresh network with so many labels.

    Raises:
        BaseModelError: it is MONAI's, which is not installed.
    """
    if isinstance(config, UnetConfig):
        return Unet(config.channels, labels)
    if isinstance(config, ErfnetConfig):
        return Erfnet(labels, config.fused)
    if isinstance(config, CraftConfig):
        return Craft(labels, config.width)
    sizes: dict[str, Any] = {"spatial_dims": 2, "in_channels": 3, "out_channels": labels}
    sizes |= config.model_dump(exclude={"kind"})
    return _monai("UNet" if isinstance(config, MonaiUnetConfig) else "BasicUNet")(**sizes)


def _monai(name: str) -> Callable[..., nn.Module]:
    if importlib.util.find_spec("monai") is None:
        raise BaseModelError(
            "the base is a U-Net of MONAI's, and MONAI is not installed: pip install 'ray_lora[segmentation]'"
        )
    from monai.networks import nets

    found: Callable[..., nn.Module] = getattr(nets, name)
    return found
