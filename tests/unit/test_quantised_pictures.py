"""Convolutions in few bits compute what the same weights compute as floats: every kind, and the bases made of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ray_lora.bases import load
from ray_lora.bases.base import Base
from ray_lora.bases.efficientnet import save_folder
from ray_lora.bases.few_bits import convolutions
from ray_lora.bases.few_bits.convolutions import HeldConvolution, Int8Convolution, Nf4Convolution
from ray_lora.bases.few_bits.rounding import nearest, unfolded
from ray_lora.bases.geometry import CONVOLUTIONS
from ray_lora.bases.load import describe_base, load_base
from ray_lora.bases.quantised import float_weight, nbytes, quantise
from ray_lora.engine import AdapterEngine
from ray_lora.recipe import BaseSpec, LoraSpec, QuantisedDtype
from tests.conformance.answers import check_mixed, check_peft_out
from tests.conformance.case import Case
from tests.conformance.packs import check_packed
from tests.unit import detection, segmentation
from tests.unit.bases import save_base, toy_base
from tests.unit.cases import detection_case, image_case, lite_case, segmentation_case
from tests.unit.test_convolutions import KINDS, pixels
from tests.unit.test_efficientnet import SMALL, tensors_of

SCHEMES: tuple[QuantisedDtype, ...] = ("int8", "nf4")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny bases' channels count as long ones, and all else is float32 on every machine."""
    monkeypatch.setattr(convolutions, "BLOCK", 10)
    monkeypatch.setattr(load, "pick_dtype", lambda name, device: torch.float32)


def floats(model: Any, scheme: QuantisedDtype) -> Any:
    """The same module, its convolutions' weights as their few bits say them."""
    for module in model.modules():
        if type(module) in CONVOLUTIONS:
            module.weight = nn.Parameter(float_weight(convolutions.of(module, scheme)), requires_grad=False)
    return model


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_gradients_are_those_of_the_same_weights_as_floats(kind: str, scheme: QuantisedDtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module: Any = KINDS[kind]().requires_grad_(False)
    x = pixels(module, 3).double()
    held = convolutions.of(module, scheme)
    assert isinstance(held, type(module))
    assert isinstance(held, HeldConvolution)
    assert isinstance(held, Nf4Convolution if scheme == "nf4" and module.weight[0].numel() >= 10 else Int8Convolution)
    assert 0 < (float_weight(held) - module.weight).abs().max() < (0.1 if scheme == "nf4" else 0.01) * 2
    plain = floats(copy.deepcopy(module), scheme).double()
    found = []
    for one in (held.double(), plain):
        given = x.clone().requires_grad_()
        answer = one(given)
        answer.square().sum().backward()
        with torch.no_grad():
            assert torch.equal(one(x), answer)
        found.append((answer.detach(), given.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["up, odd", "up in groups"])
def test_a_transposed_one_may_be_asked_for_a_size(kind: str) -> None:
    module: Any = KINDS[kind]().requires_grad_(False)
    x, least = pixels(module, 2), {"up, odd": (15, 26), "up in groups": (14, 16)}[kind]
    plain = floats(copy.deepcopy(module), "int8")
    asked = convolutions.of(module, "int8")(x, output_size=least)
    assert asked.shape[2:] == least
    torch.testing.assert_close(asked, plain(x, output_size=least))


def test_a_channel_shorter_than_a_block_is_held_in_int8() -> None:
    """Channels in groups of their own and a first layer's: a block there would hold several channels."""
    depthwise, wide = nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(8, 32, 3)
    assert isinstance(convolutions.of(depthwise, "nf4"), Int8Convolution)
    held = convolutions.of(wide, "nf4")
    assert isinstance(held, Nf4Convolution)
    codes, scale = nearest(wide.weight.detach())
    assert torch.equal(held.float_weight(), unfolded(codes, scale, wide.weight.shape))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_norm_behind_one_is_a_part_of_it(scheme: QuantisedDtype) -> None:
    """Also a transposed one's in groups, whose weight holds its output channels in groups."""

    class Normed(nn.Module):
        base_model_prefix = "model"

        def __init__(self) -> None:
            super().__init__()
            self.down, self.one = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.up, self.two = nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6)

        def forward(self, pixel_values: Tensor) -> Any:
            return {"last_hidden_state": self.two(self.up(self.one(self.down(pixel_values)).relu()))}

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = Normed()
        for norm in (model.one, model.two):
            for value in (norm.running_mean, norm.weight.data, norm.bias.data):
                value.normal_()
            norm.running_var.uniform_(0.5, 2)
        x = torch.randn(3, 4, 6, 5)
    model.requires_grad_(False).eval()
    plain = floats(copy.deepcopy(model), scheme).double()
    quantise(model, scheme, "it")
    assert nbytes(model) < sum(tensor.nbytes for tensor in plain.state_dict().values()) / 4
    engine = AdapterEngine(toy_base(model, lambda draw: {"pixel_values": torch.randn(4, 6, 5)}), slots=1, max_rank=1)
    assert type(model.one.forward).__name__ == "function"  # folded: it gives what it is given
    slot = engine.init(LoraSpec(r=1, target_modules=("down", "up")), None, seed=0)
    for owners in ([0, 0, 0], [slot, 0, slot]):  # B is zero
        mixed = engine.hidden({"pixel_values": x}, torch.tensor(owners))["last_hidden_state"]
        torch.testing.assert_close(mixed.double(), plain(x.double())["last_hidden_state"], atol=1e-4, rtol=1e-4)
    engine.close()
    again = model(x)["last_hidden_state"].double()
    torch.testing.assert_close(again, plain(x.double())["last_hidden_state"], atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------- bases made of them


def in_few_bits(case: Case, folder: Path, scheme: QuantisedDtype) -> Case:
    def open_() -> Base:
        base = load_base(BaseSpec(model=str(folder), dtype=scheme))
        base.backbone.to(torch.float64)
        assert any(isinstance(module, HeldConvolution) for module in base.backbone.modules())
        return replace(base, dtype=torch.float64)

    def plain() -> nn.Module:
        model: Any = case.plain()
        floats(getattr(model, open_().prefix), scheme)
        return model  # type: ignore[no-any-return]

    return replace(case, open=open_, plain=plain, close=1e-5)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Case, Path]]:
    from transformers import ViTImageProcessor

    bases = tmp_path_factory.mktemp("bases")
    resnet = save_base("resnet", bases / "resnet")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(resnet)
    yolox, unet, lite = detection.tiny(bases / "yolox"), segmentation.tiny(bases / "unet"), bases / "lite"
    save_folder(tensors_of(SMALL), SMALL, lite)
    return {
        "ResNet": (image_case(resnet), resnet),
        "EfficientNet": (lite_case(lite), lite),
        "YOLOX": (detection_case(yolox), yolox),
        "U-Net": (segmentation_case(unet), unet),
    }


@pytest.mark.parametrize("check", [check_packed, check_mixed, check_peft_out])
@pytest.mark.parametrize(
    ("name", "scheme"), [("ResNet", "int8"), ("EfficientNet", "nf4"), ("YOLOX", "nf4"), ("U-Net", "int8")]
)
def test_adapters_on_them_are_those_on_the_same_weights_as_floats(
    cases: dict[str, tuple[Case, Path]],
    name: str,
    scheme: QuantisedDtype,
    check: Callable[[Case, Path], None],
    tmp_path: Path,
) -> None:
    check(in_few_bits(*cases[name], scheme), tmp_path)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["ResNet", "YOLOX", "U-Net"])
def test_it_is_described_as_it_is_loaded(
    cases: dict[str, tuple[Case, Path]], name: str, scheme: QuantisedDtype
) -> None:
    spec = BaseSpec(model=str(cases[name][1]), dtype=scheme)
    loaded, described = load_base(spec), describe_base(spec)
    assert nbytes(loaded.backbone) == nbytes(described.backbone)
    assert (loaded.fingerprint, loaded.quantised) == (described.fingerprint, scheme)
    floats_ = load_base(spec.model_copy(update={"dtype": "float32"}))
    assert nbytes(loaded.backbone) < 0.6 * nbytes(floats_.backbone)  # tiny: norms and biases count
    assert loaded.origin == floats_.fingerprint != loaded.fingerprint
