"""A vocabulary's output layer for a few tokens: what the plain Linear gives, for any numbers of tokens and outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ray_lora.engine.tall import TallLinear, tall


@pytest.mark.parametrize("out", [8192, 8203])
@pytest.mark.parametrize("bias", [False, True])
def test_few_tokens_get_what_the_plain_layer_gives(out: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain, mine = nn.Linear(24, out, bias=bias), nn.Linear(24, out, bias=bias)
    mine.load_state_dict(plain.state_dict())
    tall(mine.requires_grad_(False))
    assert isinstance(mine.forward, TallLinear)
    for shape in [(1, 1), (2,), (1, 3), (7, 1), (9,), (2, 8), (1, 47), (48,), (1, 49), (), (0,), (2, 0)]:
        x = torch.randn(*shape, 24)
        given = mine(x)
        assert given.shape == (*shape, out)
        torch.testing.assert_close(given, plain(x), atol=1e-5, rtol=1e-5)


def test_gradients_and_other_numbers_are_the_plain_layer_s() -> None:
    mine = nn.Linear(24, 8192)
    x = torch.randn(3, 24, requires_grad=True)
    expected = torch.autograd.grad(mine(x).square().sum(), [x, mine.weight])
    tall(mine)
    for given, right in zip(torch.autograd.grad(mine(x).square().sum(), [x, mine.weight]), expected, strict=True):
        torch.testing.assert_close(given, right)
    short = mine.bfloat16()(x.detach().bfloat16())
    assert short.dtype == torch.bfloat16
    assert short.shape == (3, 8192)


def test_small_layers_and_subclasses_stay_as_they_are() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    for module in (nn.Linear(24, 100), Doubled(24, 8192)):
        tall(module)
        assert not isinstance(module.forward, TallLinear)
