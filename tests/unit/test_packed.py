"""Packed weights compute what plain ones do, and come back bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ray_lora.engine.packed import Packing, can_pack

DTYPES = [torch.float32, torch.bfloat16]
_PACKS = [dtype for dtype in DTYPES if can_pack(torch.empty(2, 2, dtype=dtype))]


class Tied(nn.Module):
    """Two layers of one weight, a plain one, and attention that reads its output layer's weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.plain = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4, bias=False)
        self.second.weight = self.first.weight
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain(self.second(self.first(x)) + self.attention(x, x, x)[0])


def stack(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.GELU(), Conv1D(32, 64), nn.Linear(32, 16, bias=False))
    nn.init.normal_(model[2].bias)
    return model.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", _PACKS)
@pytest.mark.parametrize("shape", [(48,), (1, 48), (3, 7, 48), (0, 48)], ids=str)
def test_outputs_and_input_gradients_are_those_of_plain_weights(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    model, x = stack(dtype), torch.randn(shape).to(dtype).requires_grad_()
    expected = model(x)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    packing = Packing(model, train=True)
    assert {name for name, p in model.named_parameters() if p.is_meta} == {"0.weight", "2.weight", "3.weight"}
    output = model(x)
    (grad,) = torch.autograd.grad(output.sum(), x)
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(output, expected, **close)
    torch.testing.assert_close(grad, wanted, **close)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected, **close)
    packing.undo()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("dtype", _PACKS)
def test_weights_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    model = stack(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Packing(model, train=False).undo()
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.skipif(not _PACKS, reason="this machine has no packed products")
def test_weights_that_others_read_stay_plain() -> None:
    model, x = Tied().requires_grad_(False), torch.randn(5, 3, 8)
    expected = model(x)
    packing = Packing(model, train=False)
    assert [name for name, p in model.named_parameters() if p.is_meta] == ["plain.weight"]
    torch.testing.assert_close(model(x), expected)
    packing.undo()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    "weight",
    [torch.empty(2, 2, dtype=torch.float64), torch.empty(2, 2, device="meta"), torch.empty(2, 2, requires_grad=True)],
    ids=["float64", "not on a CPU", "trained"],
)
def test_what_has_no_packed_form_stays_plain(weight: torch.Tensor) -> None:
    assert not can_pack(weight)
