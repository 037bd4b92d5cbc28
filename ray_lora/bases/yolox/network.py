"""YOLOX's network, split where adapters part: `Yolox` is shared, the prediction layers are each adapter's own.

    features = Yolox(config)(pixel_values)                             # of three levels, finest first
    YoloxForObjectDetection(config, yolox, 4)(pixel_values)["logits"]  # [rows, anchors, 4]

Modules, their order and their names are those of the public checkpoints (Ge et al. 2021, arXiv 2107.08430; the trunk is
that of YOLOv4, arXiv 2011.08036, on CSPNet, arXiv 1911.11929). It knows tensors: no files, boxes or labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ray_lora.bases.yolox.config import STRIDES, YoloxConfig

_PRIOR = 0.01  # how sure fresh prediction layers are of anything (focal loss, arXiv 1708.02002, section 3.3)
_HEAD = 256  # channels of the decoupled head at width 1
_LEVELS = (256, 512, 1024)  # channels of the trunk's last three stages at width 1


@dataclass(frozen=True)
class Features:
    """What the shared part gives for a batch.

    Attributes:
        classes, boxes: what the prediction layers read, of each level [rows, channels, height, width].
        last_hidden_state: the coarsest level of the feature pyramid, for embeddings.
    """

    last_hidden_state: Tensor
    classes: tuple[Tensor, ...]
    boxes: tuple[Tensor, ...]


class Yolox(nn.Module):
    """The trunk, the feature pyramid and the decoupled head's convolutions: all but its prediction layers."""

    main_input_name = "pixel_values"

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _Pyramid(config)
        self.head = _Head(config)

    def forward(self, pixel_values: Tensor) -> Features:
        """pixel_values: [rows, 3, height, width], from 0 to 255."""
        levels = self.backbone(pixel_values)
        classes, boxes = self.head(levels)
        return Features(levels[-1], classes, boxes)


class YoloxForObjectDetection(nn.Module):
    """The plain class. Its three lists of prediction layers are what an adapter has of its own (`modules_to_save`)."""

    def __init__(self, config: YoloxConfig, yolox: Yolox, labels: int) -> None:
        super().__init__()
        channels = int(_HEAD * config.width)
        self.yolox = yolox
        self.cls_preds = Predictions(channels, labels, prior=_PRIOR)
        self.reg_preds = Predictions(channels, 4)
        self.obj_preds = Predictions(channels, 1, prior=_PRIOR)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Of every anchor, level by level and row by row of its grid: `logits` [rows, anchors, labels], `objectness`
        [rows, anchors] and `boxes` [rows, anchors, 4], which are the middle's distance from the cell's upper left
        corner in cells (x, y) and the logarithm of width and height in cells."""
        features = self.yolox(pixel_values)
        return {
            "logits": self.cls_preds(features.classes),
            "objectness": self.obj_preds(features.boxes).squeeze(-1),
            "boxes": self.reg_preds(features.boxes),
        }


class Predictions(nn.Module):
    """A 1 x 1 convolution for each level, "0", "1", "2"; no ModuleList, which PEFT saves no copy of."""

    def __init__(self, channels: int, outputs: int, prior: float | None = None) -> None:
        super().__init__()
        for level in range(len(STRIDES)):
            layer = nn.Conv2d(channels, outputs, 1)
            if prior is not None and layer.bias is not None:
                nn.init.constant_(layer.bias, -math.log((1 - prior) / prior))
            self.add_module(str(level), layer)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """[rows, anchors of all levels, outputs]"""
        maps = [layer(level) for layer, level in zip(self.children(), features, strict=True)]
        return torch.cat([values.flatten(2).transpose(1, 2) for values in maps], 1)


# -------------------------------------------------------------------- trunk and pyramid


class _Pyramid(nn.Module):
    """YOLOPAFPN: features of three levels, first from coarse to fine, then from fine to coarse."""

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__()
        fine, middle, coarse = (int(channels * config.width) for channels in _LEVELS)
        self.backbone = _Trunk(config)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral_conv0 = _Conv(config, coarse, middle, 1)
        self.C3_p4 = _Stage(config, 2 * middle, middle, shortcut=False)
        self.reduce_conv1 = _Conv(config, middle, fine, 1)
        self.C3_p3 = _Stage(config, 2 * fine, fine, shortcut=False)
        self.bu_conv2 = _conv3(config, fine, fine, 2)
        self.C3_n3 = _Stage(config, 2 * fine, middle, shortcut=False)
        self.bu_conv1 = _conv3(config, middle, middle, 2)
        self.C3_n4 = _Stage(config, 2 * middle, coarse, shortcut=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, middle, coarse = self.backbone(x)
        top = self.lateral_conv0(coarse)
        down = self.C3_p4(torch.cat([self.upsample(top), middle], 1))
        across = self.reduce_conv1(down)
        small = self.C3_p3(torch.cat([self.upsample(across), fine], 1))
        medium = self.C3_n3(torch.cat([self.bu_conv2(small), across], 1))
        large = self.C3_n4(torch.cat([self.bu_conv1(medium), top], 1))
        return small, medium, large


class _Trunk(nn.Module):
    """CSPDarknet."""

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__()
        first, blocks = int(64 * config.width), config.blocks
        self.stem = _Focus(config, first)
        self.dark2 = _descend(config, first, blocks)
        self.dark3 = _descend(config, 2 * first, 3 * blocks)
        self.dark4 = _descend(config, 4 * first, 3 * blocks)
        last = 16 * first
        self.dark5 = nn.Sequential(
            _conv3(config, 8 * first, last, 2), _Pools(config, last), _Stage(config, last, last, shortcut=False)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.dark3(self.dark2(self.stem(x)))
        middle = self.dark4(fine)
        return fine, middle, self.dark5(middle)


class _Focus(nn.Module):
    """Four neighbouring pixels as channels of one."""

    def __init__(self, config: YoloxConfig, channels: int) -> None:
        super().__init__()
        self.conv = _Conv(config, 12, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., down::2, right::2] for right in (0, 1) for down in (0, 1)]
        mixed: Tensor = self.conv(torch.cat(corners, 1))
        return mixed


class _Pools(nn.Module):
    """SPPBottleneck: what is near, from three distances."""

    def __init__(self, config: YoloxConfig, channels: int) -> None:
        super().__init__()
        self.conv1 = _Conv(config, channels, channels // 2, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(size, stride=1, padding=size // 2) for size in (5, 9, 13))
        self.conv2 = _Conv(config, channels // 2 * 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        mixed: Tensor = self.conv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))
        return mixed


class _Stage(nn.Module):
    """CSPLayer: bottlenecks on one half of the channels."""

    def __init__(
        self, config: YoloxConfig, into: int, out: int, blocks: int | None = None, shortcut: bool = True
    ) -> None:
        super().__init__()
        hidden = int(out * 0.5)
        self.conv1 = _Conv(config, into, hidden, 1)
        self.conv2 = _Conv(config, into, hidden, 1)
        self.conv3 = _Conv(config, 2 * hidden, out, 1)
        count = config.blocks if blocks is None else blocks
        self.m = nn.Sequential(*(_Bottleneck(config, hidden, shortcut) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        half, other = self.conv1(x), self.conv2(x)
        mixed: Tensor = self.conv3(torch.cat([self.m(half), other], 1))
        return mixed


class _Bottleneck(nn.Module):
    def __init__(self, config: YoloxConfig, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = _Conv(config, channels, channels, 1)
        self.conv2 = _conv3(config, channels, channels, 1)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class _Head(nn.Module):
    """The decoupled head up to its prediction layers: two convolutions for classes and two for boxes, a level."""

    def __init__(self, config: YoloxConfig) -> None:
        super().__init__()
        channels = int(_HEAD * config.width)

        def branch() -> nn.Sequential:
            return nn.Sequential(_conv3(config, channels, channels, 1), _conv3(config, channels, channels, 1))

        self.stems = nn.ModuleList(_Conv(config, int(size * config.width), channels, 1) for size in _LEVELS)
        self.cls_convs = nn.ModuleList(branch() for _ in _LEVELS)
        self.reg_convs = nn.ModuleList(branch() for _ in _LEVELS)

    def forward(self, levels: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        stems = [stem(level) for stem, level in zip(self.stems, levels, strict=True)]
        classes = tuple(convs(stem) for convs, stem in zip(self.cls_convs, stems, strict=True))
        return classes, tuple(convs(stem) for convs, stem in zip(self.reg_convs, stems, strict=True))


# -------------------------------------------------------------------- convolutions


class _Conv(nn.Module):
    """BaseConv: convolution, batch norm (folded into it where the config says so), SiLU."""

    def __init__(self, config: YoloxConfig, into: int, out: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, size, stride, (size - 1) // 2, groups=groups, bias=config.fused)
        if not config.fused:
            self.bn = nn.BatchNorm2d(out, eps=1e-3, momentum=0.03)  # the public training's numbers
        self.fused = config.fused

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return nn.functional.silu(y if self.fused else self.bn(y))


class _Depthwise(nn.Module):
    """DWConv: a convolution of each channel for itself, and one of 1 x 1 over all of them."""

    def __init__(self, config: YoloxConfig, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.dconv = _Conv(config, into, into, 3, stride, groups=into)
        self.pconv = _Conv(config, into, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pconv(self.dconv(x))
        return y


def _conv3(config: YoloxConfig, into: int, out: int, stride: int) -> nn.Module:
    return _Depthwise(config, into, out, stride) if config.depthwise else _Conv(config, into, out, 3, stride)


def _descend(config: YoloxConfig, channels: int, blocks: int) -> nn.Sequential:
    """A stage of the trunk: half the height and width, twice the channels."""
    return nn.Sequential(_conv3(config, channels, 2 * channels, 2), _Stage(config, 2 * channels, 2 * channels, blocks))
