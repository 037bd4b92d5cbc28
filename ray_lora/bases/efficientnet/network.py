"""EfficientNet-Lite's network, split where adapters part: `EfficientNet` is shared, the last layer is each adapter's.

    features = EfficientNet(config)(pixel_values)                              # [rows, 1280, height / 32, width / 32]
    EfficientNetForImageClassification(efficientnet, 4)(pixel_values).logits                 # [rows, 4]

Modules, their order and their names are those of the public checkpoints. Padding is TensorFlow's SAME, in which the
weights were trained: where a stride leaves a pixel over, it goes to the right and below. It knows tensors: no files and
no labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from ray_lora.bases.efficientnet.config import STEM, EfficientNetConfig

_TOP = 1280  # channels of the last convolution, at any width
_EPSILON = 1e-3  # of batch norms, as they were trained


@dataclass(frozen=True)
class Features:
    """What the shared part gives for a batch.

    Attributes:
        last_hidden_state: [rows, channels, height, width].
        pooler_output: its mean over the picture, [rows, channels], for the head and for embeddings.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor


class EfficientNet(nn.Module):
    """All but the last layer."""

    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.config = config
        self._walk = 3, 2
        self._conv_stem = _conv(3, STEM, *self._walk)
        self._bn0 = nn.BatchNorm2d(STEM, eps=_EPSILON)
        blocks: list[nn.Module] = []
        into, inner = STEM, iter(config.inner)
        for stage in config.stages:
            for at in range(stage.blocks):
                stride = stage.stride if at == 0 else 1
                blocks.append(_Block(into, next(inner), stage.channels, stage.kernel, stride, stage.expansion != 1))
                into = stage.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _conv(into, _TOP, 1)
        self._bn1 = nn.BatchNorm2d(_TOP, eps=_EPSILON)

    def forward(self, pixel_values: Tensor) -> Features:
        """pixel_values: [rows, 3, height, width]."""
        x = F.relu6(self._bn0(self._conv_stem(_same(pixel_values, *self._walk))))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return Features(x, x.mean((2, 3)))


class EfficientNetForImageClassification(nn.Module):
    """The plain class. Its last layer `_fc` is what an adapter has of its own (`modules_to_save`)."""

    def __init__(self, efficientnet: EfficientNet, labels: int) -> None:
        super().__init__()  # without an attribute `config`, which PEFT would take for a transformers one
        self.efficientnet = efficientnet
        self._fc = nn.Linear(_TOP, labels)

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """pixel_values: [rows, 3, height, width]."""
        return ImageClassifierOutput(logits=self._fc(self.efficientnet(pixel_values).pooler_output))


class _Block(nn.Module):
    """MBConvBlock: widen by 1 x 1, one convolution of each channel for itself, narrow by 1 x 1; added to what came in
    where that has its shape."""

    def __init__(self, into: int, wide: int, out: int, kernel: int, stride: int, expands: bool) -> None:
        super().__init__()
        self._expands, self._adds = expands, stride == 1 and into == out
        self._walk = kernel, stride  # a layer that PEFT wraps tells neither
        if self._expands:
            self._expand_conv = _conv(into, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, eps=_EPSILON)
        self._depthwise_conv = _conv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=_EPSILON)
        self._project_conv = _conv(wide, out, 1)
        self._bn2 = nn.BatchNorm2d(out, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(_same(y, *self._walk))))
        narrow: Tensor = self._bn2(self._project_conv(y))
        return x + narrow if self._adds else narrow


def _conv(into: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that pads by itself unless its stride makes the padding depend on the picture: a plain one either
    way, so that PEFT's low-rank pair is its twin."""
    return nn.Conv2d(into, out, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False)


def _same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """What a convolution with a stride reads, padded as TensorFlow's SAME does."""
    if stride == 1:
        return x
    high, wide = (max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:])
    return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
