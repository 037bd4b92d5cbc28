"""Frozen convolutions and norms, rewritten: results and gradients are the plain class's, in float64."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ray_lora.engine import AdapterEngine
from ray_lora.engine.frozen import Frozen
from ray_lora.recipe import LoraSpec
from tests.unit.bases import toy_base


def settle(module: nn.Module) -> nn.Module:
    """Norms with statistics of some data, and weights that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._NormBase) and part.running_mean is not None:
                part.running_mean.normal_()
                assert part.running_var is not None
                part.running_var.uniform_(0.5, 2)
                if part.affine:
                    part.weight.data.normal_()
                    part.bias.data.normal_()
    return module.requires_grad_(False).eval()


class _Net(nn.Module):
    """Convolutions with norms behind them, of which some can be folded."""

    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), nn.BatchNorm2d(4)
        self.deep, self.deep_norm = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4, affine=False)
        self.twice, self.twice_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.read, self.read_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.up, self.up_norm = nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), nn.BatchNorm2d(6)
        self.clipped, self.clipped_norm = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.lone = nn.InstanceNorm2d(6, track_running_stats=True)
        self.last = nn.Conv2d(6, 5, 3)

    def forward(self, pixel_values: Tensor) -> Any:
        x = self.deep_norm(self.deep(torch.relu_(self.first_norm(self.first(pixel_values)))))
        x = self.twice_norm(self.twice(self.twice_norm(self.twice(x))))
        y = self.read(x)
        x = self.up_norm(self.up(self.read_norm(y) + y))
        x = self.lone(self.clipped_norm(torch.clamp_(self.clipped(x), max=0.5)))
        return SimpleNamespace(last_hidden_state=self.last(x))


FOLDED = {"first", "deep", "up"}


def net() -> _Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return settle(_Net())  # type: ignore[return-value]


def pictures(rows: int) -> Tensor:
    return torch.randn(rows, 3, 8, 9, generator=torch.Generator().manual_seed(1))


def test_what_goes_to_a_norm_alone_is_folded_and_nothing_else() -> None:
    plain, x = net(), pictures(3)
    rewritten = copy.deepcopy(plain)
    frozen = Frozen(rewritten, lambda: {"pixel_values": x[:1]})
    assert set(frozen.after) == FOLDED
    assert frozen.innermost
    mine = x.contiguous(memory_format=torch.channels_last)
    answer, wanted = rewritten(mine).last_hidden_state, plain.double()(x.double()).last_hidden_state
    torch.testing.assert_close(answer.double(), wanted, atol=2e-5, rtol=2e-5)
    frozen.undo()
    untouched = net()
    assert torch.equal(rewritten(x).last_hidden_state, untouched(x).last_hidden_state)
    for name, parameter in rewritten.named_parameters():
        assert parameter.is_contiguous()
        assert torch.equal(parameter, untouched.get_parameter(name))


@pytest.mark.parametrize("rows", [1, 2])
def test_adapters_before_norms_get_the_gradients_of_the_plain_class(rows: int) -> None:
    """Also where the gradient of one row's states lies transposed, which torch's own kernel misreads."""
    plain, x = net().double(), pictures(rows)
    base = toy_base(net(), lambda draw: {"pixel_values": torch.randn(3, 8, 9, generator=draw)})
    engine = AdapterEngine(base, slots=2, max_rank=2, train=True)
    slots = [engine.init(LoraSpec(r=2, target_modules="all-convolutions"), None, seed=seed) for seed in range(2)]
    for slot in slots:
        engine.write(slot, {key: value + 0.1 for key, value in engine.read(slot).items()})
    ((_, outputs),) = engine.forward({"pixel_values": x}, torch.tensor(slots[:rows]))
    states = outputs.last_hidden_state
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    (states.flatten(2).transpose(1, 2) * weights.flatten(2).transpose(1, 2)).sum().backward()
    for row, slot in enumerate(slots[:rows]):
        tensors = {key: value.double().requires_grad_() for key, value in engine.read(slot).items()}
        changed = {}
        for name, module in plain.named_modules():
            a = tensors.get(f"base_model.model.{name}.lora_A.weight")
            if a is not None:
                conv: Any = module
                b = tensors[f"base_model.model.{name}.lora_B.weight"]
                change = 8 * (b.flatten(1) @ a.flatten(1)).view(-1, conv.in_channels // conv.groups, *conv.kernel_size)
                if conv.transposed:
                    change = change.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)
                changed[f"{name}.weight"] = conv.weight + change
        answer = torch.func.functional_call(plain, changed, (x[row : row + 1].double(),)).last_hidden_state
        torch.testing.assert_close(states[row : row + 1].double(), answer, atol=1e-4, rtol=1e-4)
        (answer * weights[row : row + 1].double()).sum().backward()
        for key, grad in engine.read(slot, [engine.grad]).items():
            theirs = tensors[key].grad
            assert theirs is not None
            torch.testing.assert_close(grad.double(), theirs, atol=1e-3, rtol=1e-3)


class _Transposing(nn.Module):
    """Norms called where nothing is folded, before something that hands gradients back transposed."""

    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix = nn.Conv2d(3, 6, 1), nn.Linear(6, 6)
        self.norm: nn.Module = nn.BatchNorm2d(6)

    def forward(self, pixel_values: Tensor) -> Any:
        x = self.norm(torch.relu(self.first(pixel_values)))
        return SimpleNamespace(last_hidden_state=self.mix(x.flatten(2).transpose(1, 2)))


class _Named(nn.BatchNorm2d):
    """A norm with a forward of its own, which is not rewritten."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, _Named])
def test_one_rows_gradient_through_a_frozen_norm_is_right(kind: type[nn.BatchNorm2d]) -> None:
    module = _Transposing()
    module.norm = kind(6)
    settle(module)
    x = pictures(2)[:1].clone().requires_grad_()
    exact = pictures(2).double().requires_grad_()  # of one row the fault is in float64 too
    copy.deepcopy(module).double()(exact).last_hidden_state.square().sum().backward()
    frozen = Frozen(module, lambda: None)
    module(x).last_hidden_state.square().sum().backward()
    assert x.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad[:1], atol=1e-5, rtol=1e-5)
    frozen.undo()


class _Viewing(nn.Module):
    """A class that asks for the layout that it is used to."""

    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)

    def forward(self, pixel_values: Tensor) -> Any:
        x = self.two(self.norm(self.one(pixel_values)))
        return SimpleNamespace(last_hidden_state=x.view(len(x), -1))


def test_a_class_that_views_its_tensors_keeps_their_layout() -> None:
    module: Any = settle(_Viewing())
    frozen = Frozen(module, lambda: {"pixel_values": pictures(1)})
    assert not frozen.innermost
    assert set(frozen.after) == {"one"}


class _Numbers(nn.Module):
    """A class that looks at numbers, so that it does not run without them."""

    base_model_prefix = "model"

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, pixel_values: Tensor) -> Any:
        x = self.norm(self.one(pixel_values))
        return SimpleNamespace(last_hidden_state=x if x.sum() > 0 else -x)


def test_a_class_that_does_not_run_without_numbers_is_folded_nowhere() -> None:
    module: Any = settle(_Numbers())
    wanted = module(pictures(2)).last_hidden_state
    frozen = Frozen(module, lambda: {"pixel_values": pictures(1)})
    assert frozen.after == {}
    torch.testing.assert_close(module(pictures(2)).last_hidden_state, wanted)
