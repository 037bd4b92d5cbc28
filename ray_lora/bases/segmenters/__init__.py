"""Networks of convolutions that say of every pixel what it shows: a U-Net of ours, ERFNet, CRAFT, and MONAI's U-Nets.

    save_checkpoint(Path("unet.pt"), Path("bases/unet"), config)     # a user's checkpoint as a base's folder
    load_base(BaseSpec(model="bases/unet"))

A folder is a `SegmenterConfig` and tensors under the network's own names. It knows no adapters and no tasks.
"""

from ray_lora.bases.segmenters.config import (
    CraftConfig,
    ErfnetConfig,
    MonaiBasicUnetConfig,
    MonaiUnetConfig,
    SegmenterConfig,
    UnetConfig,
)
from ray_lora.bases.segmenters.folder import open_folder, save_checkpoint, save_folder, save_untrained
from ray_lora.bases.segmenters.frame import Frame
from ray_lora.bases.segmenters.network import Segmenter, SegmenterForSemanticSegmentation, network, plain_model

__all__ = [
    "CraftConfig",
    "ErfnetConfig",
    "Frame",
    "MonaiBasicUnetConfig",
    "MonaiUnetConfig",
    "Segmenter",
    "SegmenterConfig",
    "SegmenterForSemanticSegmentation",
    "UnetConfig",
    "network",
    "open_folder",
    "plain_model",
    "save_checkpoint",
    "save_folder",
    "save_untrained",
]
