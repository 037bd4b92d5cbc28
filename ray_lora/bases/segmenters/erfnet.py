"""ERFNet: an encoder and a decoder of factorised, dilated convolutions, made for driving scenes.

    Erfnet(3)(torch.randn(2, 3, 128, 128))      # logits, [2, 3, 64, 64]

Romera, Alvarez, Bergasa and Arroyo 2018, "ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic
Segmentation" (IEEE T-ITS 19.1). Modules, their order and their names are those of mmsegmentation's backbone `ERFNet`
and its head `FCNHead` of one convolution. It knows tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPS = 1e-3  # of the batch norms, mmsegmentation's
_CHANNELS = 128  # of the head


class Erfnet(nn.Module):
    """Args: fused: whether the batch norms behind convolutions are folded into them, which then have a bias."""

    def __init__(self, labels: int, fused: bool = False) -> None:
        super().__init__()
        self.backbone = _Backbone(fused)
        self.decode_head = _Head(labels, fused)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, 3, height, width], both multiples of 8 -> [rows, labels, height / 2, width / 2]"""
        logits: Tensor = self.decode_head(self.backbone(x))
        return logits


class _Backbone(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        wide = [_Residual(128, dilation, fused) for _ in range(2) for dilation in (2, 4, 8, 16)]
        self.encoder = nn.ModuleList(
            [_Down(3, 16), _Down(16, 64), *(_Residual(64, 1, fused) for _ in range(5)), _Down(64, 128), *wide]
        )
        self.decoder = nn.ModuleList(
            part
            for into, out in ((128, 64), (64, 16))
            for part in (_Up(into, out), *(_Residual(out, 1, fused) for _ in range(2)))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[rows, 16, height / 2, width / 2]"""
        for part in [*self.encoder, *self.decoder]:
            x = part(x)
        return x


class _Head(nn.Module):
    def __init__(self, labels: int, fused: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(_ConvModule(16, _CHANNELS, fused))
        self.conv_seg = nn.Conv2d(_CHANNELS, labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv_seg(self.convs(x))
        return logits


class _ConvModule(nn.Module):
    def __init__(self, into: int, out: int, fused: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, 3, padding=1, bias=fused)
        self.bn = nn.Identity() if fused else nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x)).relu()
        return y


class _Down(nn.Module):
    """DownsamplerBlock: a convolution of stride 2 beside the input's maxima."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out - into, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(out, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(torch.cat([self.conv(x), nn.functional.max_pool2d(x, 2)], 1)).relu()
        return y


class _Up(nn.Module):
    """UpsamplerBlock."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(into, out, 3, stride=2, padding=1, output_padding=1)
        self.bn = nn.BatchNorm2d(out, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x)).relu()
        return y


class _Residual(nn.Module):
    """NonBottleneck1d: 3 x 1 and 1 x 3, and both once more, dilated."""

    def __init__(self, channels: int, dilation: int, fused: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for apart in (1, dilation):
            down = nn.Conv2d(channels, channels, (3, 1), padding=(apart, 0), dilation=(apart, 1))
            right = nn.Conv2d(channels, channels, (1, 3), padding=(0, apart), dilation=(1, apart))
            norm = nn.Identity() if fused else nn.BatchNorm2d(channels, eps=_EPS)
            layers += [down, nn.ReLU(), right, norm, nn.ReLU()]
        self.convs_layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (self.convs_layers(x) + x).relu()
        return y
