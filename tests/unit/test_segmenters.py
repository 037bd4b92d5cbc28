"""Segmenters as bases: their folders, MONAI's and mmsegmentation's names, ONNX, frames, and wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ray_lora import BaseSpec, load_base
from ray_lora.bases.load import describe_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.bases.segmenters import (
    CraftConfig,
    ErfnetConfig,
    Frame,
    MonaiBasicUnetConfig,
    MonaiUnetConfig,
    SegmenterConfig,
    UnetConfig,
    network,
    plain_model,
    save_checkpoint,
    save_folder,
    save_untrained,
)
from ray_lora.bases.segmenters.exported import run_order, save_exported
from ray_lora.bases.segmenters.network import LAST
from ray_lora.engine import AdapterEngine
from ray_lora.errors import AdapterError, BaseModelError
from tests.unit.segmentation import LABELS, tensors_of, tiny
from tests.unit.test_yolox_exported import field, tensor

NETWORKS: dict[str, Any] = {
    "unet": UnetConfig(channels=(4, 8)),
    "erfnet": ErfnetConfig(),
    "craft": CraftConfig(width=8),
    "monai-unet": MonaiUnetConfig(channels=(4, 8), strides=(2,), num_res_units=0),
    "monai-unet-residual": MonaiUnetConfig(channels=(4, 8), strides=(2,), num_res_units=1, norm="BATCH"),
    "monai-basic-unet": MonaiBasicUnetConfig(features=(4, 4, 4, 4, 4, 4)),
}


def config_of(kind: str, **options: Any) -> SegmenterConfig:
    return SegmenterConfig(network=NETWORKS[kind], image_size=(32, 32), num_labels=3, **options)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_checkpoint_under_the_networks_own_names_answers_as_the_network(kind: str, tmp_path: Path) -> None:
    """The class alone, and the folder's base with its classifier behind it; saved within a DataParallel."""
    config = config_of(kind)
    tensors = tensors_of(config)
    theirs = network(config.network, 3)
    theirs.load_state_dict(tensors, strict=False)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "net.pt")
    save_checkpoint(tmp_path / "net.pt", tmp_path / "base", config)
    base = load_base(BaseSpec(model=str(tmp_path / "base"), dtype="float32"))
    head = base.fresh(HeadSpec("AutoModelForSemanticSegmentation", 3))
    assert head is not None
    pixels = torch.rand(2, 3, 32, 32) * 255
    mean, std = (torch.tensor(told)[:, None, None] for told in (config.image_mean, config.image_std))
    with torch.no_grad():
        wanted = theirs.eval()((pixels / 255 - mean) / std)
        states = base.backbone(pixels).last_hidden_state
        found = head.get_submodule("classifier")(states)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert base.labels is None
    assert base.config.num_hidden_layers > 0


@pytest.mark.parametrize("kind", ["erfnet", "craft", "monai-unet-residual", "monai-basic-unet"])
def test_adapters_sit_on_every_convolution(kind: str, tmp_path: Path) -> None:
    """Transposed and dilated ones too."""
    save_untrained(config_of(kind), tmp_path / "base")
    engine = AdapterEngine(load_base(BaseSpec(model=str(tmp_path / "base"), dtype="float32")), slots=2, max_rank=2)
    convolutions = [m for m in engine.base.backbone.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert len(engine.layers) == len(convolutions) >= 4
    engine.close()


def test_a_head_begins_as_the_folders_own(tmp_path: Path) -> None:
    """By name where both sides have names, else as it is where there are as many."""
    folder = tiny(tmp_path / "named", LABELS)
    trained = load_file(folder / "model.safetensors")["final.weight"]
    base = load_base(BaseSpec(model=str(folder), dtype="float32"))

    def weights(*labels: str) -> Tensor:
        model = base.fresh(HeadSpec("AutoModelForSemanticSegmentation", len(labels), labels))
        assert model is not None
        return model.state_dict()["classifier.weight"]

    assert torch.equal(weights(*LABELS), trained)
    assert torch.equal(weights("Red", "sky", "background")[[0, 2]], trained[[2, 0]])
    assert not torch.equal(weights("a", "b", "c"), trained)
    nameless = load_base(BaseSpec(model=str(tiny(tmp_path / "nameless")), dtype="float32"))
    model = nameless.fresh(HeadSpec("AutoModelForSemanticSegmentation", 3, ("a", "b", "c")))
    assert model is not None
    assert torch.equal(model.state_dict()["classifier.weight"], trained)
    with pytest.raises(AdapterError, match="a segmenter has a head of AutoModelForSemanticSegmentation"):
        nameless.plain(HeadSpec("AutoModelForImageClassification", 3))


def test_wrong_folders_say_why(tmp_path: Path) -> None:
    config = config_of("unet")
    tensors = tensors_of(config)
    with pytest.raises(BaseModelError, match=r"1 of \d+ tensors do not fit a unet .* final.bias is missing"):
        save_folder({name: value for name, value in tensors.items() if name != "final.bias"}, config, tmp_path / "a")
    folder = tiny(tmp_path / "b")
    told = json.loads((folder / "config.json").read_text())
    for change, why in (
        ({"image_std": [0.0, 1.0, 1.0]}, "image_std .* three positive numbers"),
        ({"network": {"kind": "vnet"}}, "kind|vnet"),
        ({"id2label": {"1": "a"}}, "id2label must name the outputs 0, 1, 2"),
    ):
        (folder / "config.json").write_text(json.dumps(told | change))
        with pytest.raises(BaseModelError, match=why):
            describe_base(BaseSpec(model=str(folder)))
    (folder / "config.json").write_text(json.dumps(told | {"num_labels": 4}))
    with pytest.raises(BaseModelError, match=r"final.bias is \(3,\), not \(4,\)"):
        describe_base(BaseSpec(model=str(folder)))
    with pytest.raises(ValueError, match=r"image_size \[36, 32\] must be two multiples of 8"):
        SegmenterConfig(network=ErfnetConfig(), image_size=(36, 32))
    with pytest.raises(ValueError, match="strides must be 3 numbers"):
        MonaiUnetConfig(strides=(2,))
    (tmp_path / "code.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(BaseModelError, match="cannot be read as tensors alone"):
        save_checkpoint(tmp_path / "code.pt", tmp_path / "c", config)
    save_file(tensors, tmp_path / "net.safetensors")
    save_checkpoint(tmp_path / "net.safetensors", tmp_path / "d", config)
    assert (tmp_path / "d" / "config.json").exists()


def test_monai_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match=r"pip install 'ray_lora\[segmentation\]'"):
        plain_model(config_of("monai-unet"))


def test_an_erfnet_is_read_from_onnx_in_the_order_in_which_it_runs(tmp_path: Path) -> None:
    """A file as mmsegmentation's exporter writes it: nodes in order, tensors under names that say nothing."""
    config = SegmenterConfig(network=ErfnetConfig(fused=True), image_size=(32, 32), num_labels=3)
    tensors = tensors_of(config)
    order = run_order(config)
    assert len(order) == 80
    assert order[0][0] == "backbone.encoder.0.conv"
    assert order[-1][0] == LAST["erfnet"]
    nodes = held = b""
    operators = {nn.Conv2d: b"Conv", nn.ConvTranspose2d: b"ConvTranspose", nn.BatchNorm2d: b"BatchNormalization"}
    for at, (name, kind) in enumerate(order):
        parts = ("weight", "bias", "running_mean", "running_var")[: 4 if kind is nn.BatchNorm2d else 2]
        inputs = b"".join(field(1, word.encode()) for word in ("x", *(f"{at}-{part}" for part in parts)))
        nodes += field(1, inputs + field(4, operators[kind])) + field(1, field(1, b"x") + field(4, b"Relu"))
        held += b"".join(field(5, tensor(f"{at}-{part}", tensors[f"{name}.{part}"].numpy())) for part in parts)
    (tmp_path / "net.onnx").write_bytes(field(7, nodes + held))
    save_exported(tmp_path / "net.onnx", tmp_path / "base", config)
    found = load_file(tmp_path / "base" / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    other = config.model_copy(update={"network": UnetConfig()})
    with pytest.raises(BaseModelError, match=r"has 80 convolutions and norms, which are not the .* of a unet"):
        save_exported(tmp_path / "net.onnx", tmp_path / "other", other)


@pytest.mark.parametrize("size", [(64, 32), (20, 90), (7, 7), (300, 200)])
def test_a_picture_is_framed_in_the_upper_left_corner(size: tuple[int, int]) -> None:
    frame = Frame((32, 48), fill=(9, 8, 7))
    pixels, (wide, high) = frame(Image.new("RGB", size, (200, 100, 50)))
    assert pixels.shape == (3, 32, 48)
    assert wide == 48 or high == 32
    assert abs(wide / high - size[0] / size[1]) < size[0] / size[1] * (1 / wide + 1 / high)
    assert (pixels[:, :high, :wide].permute(1, 2, 0).numpy() == np.array([200, 100, 50])).all()
    outside = torch.cat([pixels[:, high:].flatten(1), pixels[:, :, wide:].flatten(1)], 1)
    assert (outside == torch.tensor([9, 8, 7])[:, None]).all()


def test_craft_reads_what_its_authors_vgg_gives() -> None:
    """The authors' class on a VGG as torchvision lays it out, whose ReLUs change in place the maps that were kept."""
    width, layers, channels = 8, [], 3
    for number, at in enumerate((1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8)):
        if at == 0:
            layers.append(nn.MaxPool2d(2))
        else:
            torch.manual_seed(number)
            layers += [nn.Conv2d(channels, at * width, 3, padding=1), nn.BatchNorm2d(at * width), nn.ReLU(inplace=True)]
            channels = at * width
    theirs = nn.Sequential(*layers).eval()
    ours = network(CraftConfig(width=width), 2).get_submodule("basenet").eval()
    slices = {f"slice{number}": range(*ends) for number, ends in enumerate(((0, 12), (12, 19), (19, 29), (29, 39)), 1)}
    for name, places in slices.items():
        named = {f"{at}.{key}": value for at in places for key, value in theirs[at].state_dict().items()}
        ours.get_submodule(name).load_state_dict(named)
    pixels, kept = torch.randn(1, 3, 64, 96), []
    with torch.no_grad():
        x = pixels.clone()
        for places in slices.values():
            for at in places:
                x = theirs[at](x)
            kept.append(x)
        found = ours(pixels)
    assert [tuple(one.shape[2:]) for one in found] == [(32, 48), (16, 24), (8, 12), (4, 6), (4, 6)]
    for one, other in zip(found, kept, strict=False):
        torch.testing.assert_close(one, other)
