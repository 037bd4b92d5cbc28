"""A YOLOX in an ONNX file that its own exporter wrote: batch norms folded, and tensors without their names.

    save_exported(Path("yolox.onnx"), Path("bases/mine"), image_size=(416, 416))

Its convolutions come in the order in which the public class runs them, and their shapes are checked one by one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ray_lora.bases.onnx_weights import convolutions
from ray_lora.bases.yolox.config import STRIDES, YoloxConfig
from ray_lora.bases.yolox.folder import save_folder
from ray_lora.bases.yolox.network import Yolox
from ray_lora.errors import BaseModelError

_HEAD = (
    "stems.{}.conv cls_convs.{}.0.conv cls_convs.{}.1.conv cls_preds.{} "
    "reg_convs.{}.0.conv reg_convs.{}.1.conv reg_preds.{} obj_preds.{}"
).split()  # of each level, one after the other


def save_exported(file: Path, folder: Path, image_size: tuple[int, int]) -> YoloxConfig:
    """Make a base's folder of an ONNX file of a YOLOX without depthwise convolutions.

    Raises:
        BaseModelError: its convolutions are not such a YOLOX's.
    """
    found = convolutions(file.read_bytes())
    first = next((weight.shape[0] for weight, _ in found), 0)
    for blocks in range(1, 5):
        config = YoloxConfig(
            depth=round(blocks / 3, 2), width=max(first, 1) / 64, fused=True, image_size=image_size, num_labels=1
        )
        names = [*_pyramid(config), *(f"head.{name.format(level)}" for level in range(len(STRIDES)) for name in _HEAD)]
        if len(names) == len(found):
            break
    else:
        raise BaseModelError(f"{str(file)!r} has {len(found)} convolutions, which no YOLOX has")
    tensors: dict[str, Tensor] = {}
    for name, (weight, bias) in zip(names, found, strict=True):
        tensors |= {f"{name}.weight": torch.from_numpy(weight), f"{name}.bias": torch.from_numpy(bias)}
    config = config.model_copy(update={"num_labels": tensors["head.cls_preds.0.weight"].shape[0]})
    save_folder(tensors, config, folder)
    return config


def _pyramid(config: YoloxConfig) -> list[str]:
    """The convolutions before the head, as they are run."""
    with torch.device("meta"):
        pyramid = Yolox(config).backbone
        run: list[str] = []

        def note(name: str) -> None:
            module = pyramid.get_submodule(name)
            module.register_forward_pre_hook(lambda *_: run.append(f"backbone.{name}"))

        for name, module in pyramid.named_modules():
            if isinstance(module, nn.Conv2d):
                note(name)
        pyramid(torch.empty(1, 3, *config.image_size))
    return run
