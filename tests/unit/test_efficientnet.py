"""EfficientNet-Lite as a base: the public names and sizes, TensorFlow's padding, checkpoints, its folder, adapters."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from ray_lora import BaseSpec, load_base
from ray_lora.bases import converted as module
from ray_lora.bases.converted import convert, converted
from ray_lora.bases.efficientnet import (
    EfficientNet,
    EfficientNetConfig,
    EfficientNetForImageClassification,
    save_checkpoint,
    save_folder,
    save_untrained,
)
from ray_lora.bases.efficientnet.folder import public
from ray_lora.bases.efficientnet.network import _same
from ray_lora.bases.load import describe_base
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import AdapterError, BaseModelError
from ray_lora.recipe import LoraSpec

IMAGE = "AutoModelForImageClassification"
SMALL = EfficientNetConfig(width=0.25, depth=0.5, image_size=(32, 32), num_labels=3)


def tensors_of(config: EfficientNetConfig, seed: int = 0) -> dict[str, Tensor]:
    """A public state dict whose batch norms have statistics of their own."""
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = EfficientNetForImageClassification(EfficientNet(config), config.num_labels)
    found = public(model)
    for name, tensor in found.items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1, generator=draw)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=draw)
    return found


def test_names_shapes_and_sizes_are_the_public_ones() -> None:
    """Some of each kind, as the published checkpoint of Lite0 has them, and its number of parameters; Lite4's too."""
    with torch.device("meta"):
        model = EfficientNetForImageClassification(EfficientNet(EfficientNetConfig()), 1000)
        four = EfficientNetConfig(width=1.4, depth=1.8)
        large = EfficientNetForImageClassification(EfficientNet(four), 1000)
    found = {name: tuple(tensor.shape) for name, tensor in public(model).items()}
    assert len(found) == 296
    for name, shape in {
        "_conv_stem.weight": (32, 3, 3, 3),
        "_blocks.0._depthwise_conv.weight": (32, 1, 3, 3),
        "_blocks.0._project_conv.weight": (16, 32, 1, 1),
        "_blocks.3._depthwise_conv.weight": (144, 1, 5, 5),
        "_blocks.5._bn0.num_batches_tracked": (),
        "_blocks.9._expand_conv.weight": (672, 112, 1, 1),
        "_blocks.15._bn2.running_var": (320,),
        "_conv_head.weight": (1280, 320, 1, 1),
        "_bn1.running_mean": (1280,),
        "_fc.weight": (1000, 1280),
    }.items():
        assert found[name] == shape, name
    assert "_blocks.0._expand_conv.weight" not in found
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_652_008
    assert sum(parameter.numel() for parameter in large.parameters()) / 1e6 == pytest.approx(13.0, abs=0.05)


@pytest.mark.parametrize(("size", "kernel"), [(8, 3), (9, 3), (8, 5), (7, 5), (32, 3)])
def test_a_stride_pads_as_tensorflow_does(size: int, kernel: int) -> None:
    """A window begins at each second pixel from the first one that TensorFlow's formula says, and there are half as
    many, rounded up."""
    conv = torch.nn.Conv2d(1, 1, kernel, 2, bias=False)
    pixels = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    outputs = -(-size // 2)
    total = max((outputs - 1) * 2 + kernel - size, 0)
    with torch.no_grad():
        given = conv(_same(pixels, kernel, 2))
        wide = F.pad(pixels, (kernel, kernel, kernel, kernel))
        begin = kernel - total // 2
        for row in range(outputs):
            window = wide[0, 0, begin + 2 * row : begin + 2 * row + kernel, begin : begin + kernel]
            torch.testing.assert_close(given[0, 0, row, 0], (window * conv.weight[0, 0]).sum())
    assert given.shape[2:] == (outputs, outputs)


def test_a_checkpoint_becomes_a_folder(tmp_path: Path) -> None:
    tensors = tensors_of(SMALL)
    torch.save(tensors, tmp_path / "net.pth")
    config = save_checkpoint(tmp_path / "net.pth", tmp_path / "base", SMALL, labels=["a", "b", "c"])
    assert config.labels == ("a", "b", "c")
    base = load_base(BaseSpec(model=str(tmp_path / "base"), dtype="float32"))
    assert (base.processor.size.height, base.processor.image_mean[0]) == (32, 127 / 255)
    for name, tensor in base.backbone.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
    head = base.fresh(HeadSpec(IMAGE, 3, ("c", "A", "z")))
    assert head is not None
    own = head.get_submodule("_fc").state_dict()
    assert torch.equal(own["weight"][0], tensors["_fc.weight"][2])
    assert torch.equal(own["weight"][1], tensors["_fc.weight"][0])
    assert not torch.equal(own["weight"][2], tensors["_fc.weight"][1])
    with pytest.raises(BaseModelError, match="has 3 classes, and 1 labels are given"):
        save_checkpoint(tmp_path / "net.pth", tmp_path / "other", SMALL, labels=["a"])
    with pytest.raises(BaseModelError, match=r"do not fit an EfficientNet-Lite of width 1\.0 and depth 1\.0"):
        save_checkpoint(tmp_path / "net.pth", tmp_path / "other")
    del tensors["_bn0.bias"]
    with pytest.raises(BaseModelError, match=r"_bn0\.bias is missing"):
        save_folder(tensors, SMALL, tmp_path / "other")


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    (tmp_path / "net.pth").write_bytes(pickle.dumps({"_fc.bias": Evil()}))
    with pytest.raises(BaseModelError, match="code in it is never run"):
        save_checkpoint(tmp_path / "net.pth", tmp_path / "base")
    assert not (tmp_path / "ran").exists()


def test_a_described_base_and_other_heads(tmp_path: Path) -> None:
    save_untrained(SMALL, tmp_path / "base")
    spec = BaseSpec(model=str(tmp_path / "base"), dtype="float32")
    assert describe_base(spec).fingerprint == load_base(spec).fingerprint
    with pytest.raises(AdapterError, match="has a head of AutoModelForImageClassification"):
        load_base(spec).plain(HeadSpec("AutoModelForSequenceClassification", 2))


def test_pictures_of_other_sizes_share_the_adapter(tmp_path: Path) -> None:
    """It takes pictures of any size; those of two adapters in a pass answer as alone."""
    save_folder(tensors_of(SMALL), SMALL, tmp_path / "base")
    base = load_base(BaseSpec(model=str(tmp_path / "base"), dtype="float32"))
    engine = AdapterEngine(base, slots=2)
    spec = LoraSpec(r=2, target_modules=("_expand_conv", "_conv_head"))
    slots = [engine.init(spec, HeadSpec(IMAGE, labels), seed=labels) for labels in (3, 5)]
    for side in (32, 45):
        pixels = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(side))
        with torch.no_grad():
            for rows, outputs in engine.forward({"pixel_values": pixels}, torch.tensor(slots * 2)):
                ((_, alone),) = engine.forward(
                    {"pixel_values": pixels[rows]}, torch.tensor([slots[int(rows[0]) % 2]] * len(rows))
                )
                torch.testing.assert_close(outputs.logits, alone.logits, atol=1e-5, rtol=1e-5)
    engine.close()


def test_a_strided_convolution_may_be_wrapped_by_peft() -> None:
    """Its adapters on the stem answer as the merged weights do."""
    pixels = torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    config = LoraConfig(r=2, target_modules=["_conv_stem", "_blocks.1._project_conv"], init_lora_weights=False)
    model = EfficientNetForImageClassification(EfficientNet(SMALL), 3).eval()
    wrapped = get_peft_model(model, config)  # type: ignore[arg-type]
    with torch.no_grad():
        found = wrapped(pixel_values=pixels).logits
        merged = wrapped.merge_and_unload()(pixel_values=pixels).logits  # type: ignore[operator]
    torch.testing.assert_close(found, merged, atol=1e-5, rtol=1e-5)


def test_lite0_is_converted_once_and_called_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    (source / "pack" / "models").mkdir(parents=True)
    (source / "pack.dist-info").mkdir()
    (source / "pack.dist-info" / "LICENSE").write_text("Apache")
    torch.save(tensors_of(EfficientNetConfig()), source / "pack" / "models" / "lite0.pth")
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "fetch_archive", lambda *_: source)
    folder = convert("efficientnet-lite0")
    assert "Google trained it" in (folder / "README.md").read_text()
    assert (folder / "LICENSE").read_text() == "Apache"
    monkeypatch.setattr(module, "fetch_archive", None)
    assert convert("efficientnet-lite0") == folder


@pytest.mark.skipif(converted("efficientnet-lite0") is None, reason="it is not in the cache of this machine")
def test_lite0_knows_what_it_sees() -> None:
    """ImageNet's 442, 449 and 483 are bell cote, boathouse and castle, and 985 is daisy."""
    base = load_base(BaseSpec(model="efficientnet-lite0", dtype="float32"))
    model = base.fresh(HeadSpec(IMAGE, 1000))
    assert isinstance(model, EfficientNetForImageClassification)
    model.efficientnet = base.backbone  # type: ignore[assignment]
    seen = {}
    for name in ("china.jpg", "flower.jpg"):
        pixels = base.processor([Image.fromarray(load_sample_image(name))], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            seen[name] = model(pixels).logits[0].topk(5).indices.tolist()
    assert {442, 449, 483} <= set(seen["china.jpg"])
    assert seen["flower.jpg"][0] == 985
