"""Weights as numbers of few bits, and back.

codes, scale = rounded(weight)          # int8: whole numbers, -127 to 127, of a step for each output
codes, scale = nearest(weight)          # nf4: QLoRA's 4-bit numbers (arXiv 2305.14314), a scale for each block
unfolded(codes, scale, weight.shape)    # those of nf4 as floats
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 127
BLOCK = 64  # weights that share nf4's scale
NF4 = torch.tensor(  # quantiles of a normal distribution, from the QLoRA paper's appendix E
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
_PAIRS = torch.stack([NF4.repeat_interleave(16), NF4.repeat(16)], 1)  # what each byte holds, [256, 2]
_LEAST = torch.finfo(torch.float32).tiny  # of a scale: a row of zeros has one too


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers, int8 [out, ...], and their steps, [out]."""
    if weight.is_meta:
        return torch.empty_like(weight, dtype=torch.int8), weight.new_empty(len(weight))
    weight = weight.float()
    scale = weight.abs().flatten(1).amax(1).clamp_min(_LEAST) / STEPS
    return (weight / scale.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8), scale


def nearest(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes of two weights each, [numbers / 2], and the largest size in each block, [numbers / 64]."""
    blocks = -(-weight.numel() // BLOCK)
    if weight.is_meta:
        return torch.empty(blocks * BLOCK // 2, dtype=torch.uint8, device="meta"), weight.new_empty(blocks)
    flat = F.pad(weight.float().flatten(), (0, blocks * BLOCK - weight.numel())).view(blocks, BLOCK)
    scale = flat.abs().amax(1).clamp_min(_LEAST)
    between = (NF4[1:] + NF4[:-1]) / 2
    found = torch.bucketize(flat / scale[:, None], between.to(flat)).to(torch.uint8).view(-1, 2)
    return found[:, 0] << 4 | found[:, 1], scale


def unfolded(codes: Tensor, scale: Tensor, shape: Sequence[int]) -> Tensor:
    """nf4's bytes as floats of a shape."""
    pairs = _PAIRS.to(codes.device)[codes.int()]  # [bytes, 2]
    blocks = pairs.view(len(scale), -1) * scale[:, None]
    return blocks.flatten()[: torch.Size(shape).numel()].view(*shape)
