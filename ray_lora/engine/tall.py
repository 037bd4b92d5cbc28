"""A vocabulary's output layer for a few tokens at a time, as writing asks for it.

A plain product of a few tokens and a weight of 50,000 rows is computed by one core, or lays the weight out anew: 10 ms
for one token of SmolLM2, 22 for two, 18 for sixteen. The weight may not be packed (`packed.py`), as the base's table of
tokens is the same one. Cut into blocks of rows that are multiplied one by one it is read once, where it lies: 3, 3 and
11 ms. It knows linear layers, not slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BLOCKS = 32
_MOST = 48  # tokens; the plain product of more is as fast
_LEAST = 8192  # outputs
_EVEN = 8  # more tokens than these are filled up to a multiple


class TallLinear:
    """What a frozen Linear computes; takes the place of the module's `forward`."""

    def __init__(self, module: nn.Linear) -> None:
        self._module = module

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self._module.weight, self._module.bias
        tokens = x.shape[:-1].numel()
        few = 0 < tokens <= _MOST and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
        if not few or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
            return F.linear(x, weight, bias)
        product = _product(x.reshape(tokens, -1), weight)
        return (product if bias is None else product + bias).view(*x.shape[:-1], -1)


def tall(module: nn.Module) -> None:
    """Have a vocabulary's output layer compute a few tokens so, where it is a plain Linear."""
    if type(module) is nn.Linear and module.out_features >= _LEAST and not isinstance(module.forward, TallLinear):
        module.forward = TallLinear(module)  # type: ignore[method-assign, assignment]


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x [tokens, in] times the transpose of weight [out, in]."""
    tokens, out = len(x), len(weight)
    if tokens > _EVEN and tokens % _EVEN:
        x = F.pad(x, (0, 0, 0, -tokens % _EVEN))
    even = out - out % _BLOCKS
    blocks = torch.bmm(weight[:even].view(_BLOCKS, -1, weight.shape[1]), x.t().expand(_BLOCKS, -1, -1))
    product = blocks.flatten(0, 1).t()[:tokens]
    return product if even == out else torch.cat([product, F.linear(x[:tokens], weight[even:])], 1)
