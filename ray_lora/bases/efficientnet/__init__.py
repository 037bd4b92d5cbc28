"""EfficientNet-Lite (Tan and Le 2019, arXiv 1905.11946, without squeeze-and-excitation and with ReLU6) in plain PyTorch
and of our own.

    save_checkpoint(Path("efficientnet-lite0.pth"), Path("bases/lite0"))       # a public checkpoint as a base's folder
    load_base(BaseSpec(model="bases/lite0"))

Its state dict has the names that the public checkpoints have. It knows no adapters and no tasks.
"""

from ray_lora.bases.efficientnet.config import EfficientNetConfig
from ray_lora.bases.efficientnet.folder import open_folder, save_checkpoint, save_folder, save_untrained
from ray_lora.bases.efficientnet.network import EfficientNet, EfficientNetForImageClassification

__all__ = [
    "EfficientNet",
    "EfficientNetConfig",
    "EfficientNetForImageClassification",
    "open_folder",
    "save_checkpoint",
    "save_folder",
    "save_untrained",
]
