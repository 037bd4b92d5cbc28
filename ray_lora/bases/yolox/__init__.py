"""YOLOX (Ge et al. 2021, arXiv 2107.08430), a detector of convolutions alone, in plain PyTorch and of our own.

    save_checkpoint(Path("yolox_tiny.pth"), Path("bases/yolox-tiny-coco"))     # a user's checkpoint as a base's folder
    load_base(BaseSpec(model="bases/yolox-tiny-coco"))

Its state dict has the names that the public checkpoints have. It knows no adapters and no tasks.
"""

from ray_lora.bases.yolox.config import YoloxConfig
from ray_lora.bases.yolox.folder import open_folder, public, save_checkpoint, save_folder, save_untrained
from ray_lora.bases.yolox.letterbox import Letterbox
from ray_lora.bases.yolox.network import Yolox, YoloxForObjectDetection

__all__ = [
    "Letterbox",
    "Yolox",
    "YoloxConfig",
    "YoloxForObjectDetection",
    "open_folder",
    "public",
    "save_checkpoint",
    "save_folder",
    "save_untrained",
]
