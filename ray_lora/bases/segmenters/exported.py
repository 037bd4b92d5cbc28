"""An ERFNet in an ONNX file that mmsegmentation's exporter wrote: batch norms behind convolutions folded, and tensors
without their names.

    save_exported(Path("net.onnx"), Path("bases/mine"), SegmenterConfig(network=ErfnetConfig(fused=True), ...))

Its layers come in the order in which the class runs them, and their shapes are checked one by one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ray_lora.bases.onnx_weights import layers
from ray_lora.bases.segmenters.config import SegmenterConfig
from ray_lora.bases.segmenters.folder import save_folder
from ray_lora.bases.segmenters.network import network
from ray_lora.errors import BaseModelError

_KINDS: dict[str, type[nn.Module]] = {
    "Conv": nn.Conv2d,
    "ConvTranspose": nn.ConvTranspose2d,
    "BatchNormalization": nn.BatchNorm2d,
}
_NORM = ("weight", "bias", "running_mean", "running_var")


def save_exported(file: Path, folder: Path, config: SegmenterConfig) -> None:
    """Make a base's folder of an ONNX file of the config's network.

    Raises:
        BaseModelError: its layers are not those of the network.
    """
    found = layers(file.read_bytes(), list(_KINDS))
    order = run_order(config)
    kinds = [_KINDS[operator] for operator, _ in found]
    if kinds != [kind for _, kind in order]:
        raise BaseModelError(
            f"{str(file)!r} has {len(found)} convolutions and norms, which are not the {len(order)} of a "
            f"{config.network.kind} in their order"
        )
    tensors: dict[str, Tensor] = {}
    for (name, kind), (_, values) in zip(order, found, strict=True):
        parts = _NORM if kind is nn.BatchNorm2d else _NORM[:2]
        tensors |= {f"{name}.{part}": torch.from_numpy(value) for part, value in zip(parts, values, strict=True)}
    save_folder(tensors, config, folder)


def run_order(config: SegmenterConfig) -> list[tuple[str, type[nn.Module]]]:
    """The network's convolutions and norms, as they are run."""
    with torch.device("meta"):
        net = network(config.network, config.num_labels).eval()
        run: list[tuple[str, type[nn.Module]]] = []

        def note(name: str, module: nn.Module) -> None:
            module.register_forward_pre_hook(lambda *_: run.append((name, type(module))))

        for name, module in net.named_modules():
            if type(module) in _KINDS.values():
                note(name, module)
        net(torch.empty(1, 3, *config.image_size))
    return run
