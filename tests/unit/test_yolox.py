"""YOLOX as a base: the public names and sizes, users' checkpoints, its folder, its convolutions, its pictures."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ray_lora import BaseSpec, load_base
from ray_lora.bases.load import describe_base
from ray_lora.bases.yolox import Letterbox, Yolox, YoloxConfig, YoloxForObjectDetection, save_checkpoint, save_folder
from ray_lora.bases.yolox.network import Predictions
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import AdapterError, BaseModelError, RecipeError
from ray_lora.recipe import LoraSpec
from tests.unit.detection import tensors_of, tiny

DETECTION = "AutoModelForObjectDetection"
PUBLISHED = {"nano": (0.25, True, 0.91), "tiny": (0.375, False, 5.06), "s": (0.5, False, 8.97)}  # millions, 80 classes


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes_are_the_published_ones(size: str) -> None:
    width, depthwise, millions = PUBLISHED[size]
    config = YoloxConfig(width=width, depthwise=depthwise)
    with torch.device("meta"):
        model = YoloxForObjectDetection(config, Yolox(config), 80)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_names_and_shapes_are_the_public_ones() -> None:
    """Some of each kind, as YOLOX-S's checkpoint of COCO has them."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors_of(YoloxConfig()).items()}
    for name, shape in {
        "backbone.backbone.stem.conv.conv.weight": (32, 12, 3, 3),
        "backbone.backbone.dark2.0.conv.weight": (64, 32, 3, 3),
        "backbone.backbone.dark2.1.m.0.conv2.bn.running_var": (32,),
        "backbone.backbone.dark3.1.m.2.conv1.conv.weight": (64, 64, 1, 1),
        "backbone.backbone.dark5.1.conv2.conv.weight": (512, 1024, 1, 1),
        "backbone.backbone.dark5.2.conv3.bn.num_batches_tracked": (),
        "backbone.lateral_conv0.conv.weight": (256, 512, 1, 1),
        "backbone.C3_p4.conv1.conv.weight": (128, 512, 1, 1),
        "backbone.reduce_conv1.bn.bias": (128,),
        "backbone.C3_p3.m.0.conv1.conv.weight": (64, 64, 1, 1),
        "backbone.bu_conv2.conv.weight": (128, 128, 3, 3),
        "backbone.C3_n3.conv3.conv.weight": (256, 256, 1, 1),
        "backbone.bu_conv1.conv.weight": (256, 256, 3, 3),
        "backbone.C3_n4.conv3.conv.weight": (512, 512, 1, 1),
        "head.stems.2.conv.weight": (128, 512, 1, 1),
        "head.cls_convs.0.1.conv.weight": (128, 128, 3, 3),
        "head.reg_convs.2.0.bn.weight": (128,),
        "head.cls_preds.0.weight": (80, 128, 1, 1),
        "head.reg_preds.1.bias": (4,),
        "head.obj_preds.2.weight": (1, 128, 1, 1),
    }.items():
        assert found[name] == shape, name
    convolutions = [name for name, shape in found.items() if len(shape) == 4]
    assert len(convolutions) == 83
    nano = tensors_of(YoloxConfig(width=0.25, depthwise=True))
    assert nano["backbone.backbone.dark2.0.dconv.conv.weight"].shape == (16, 1, 3, 3)
    assert nano["head.cls_convs.0.0.pconv.bn.weight"].shape == (64,)


@pytest.mark.parametrize(
    "config",
    [
        YoloxConfig(width=0.25, depthwise=True, image_size=(416, 416)),
        YoloxConfig(width=0.375, image_size=(416, 416), fused=True, num_labels=1),
        YoloxConfig(),
        YoloxConfig(depth=0.67, width=0.75, num_labels=3),
        YoloxConfig(depth=1.33, width=1.25),
    ],
)
def test_a_config_is_read_off_the_tensors(config: YoloxConfig) -> None:
    assert YoloxConfig.of(tensors_of(config)) == config


def test_it_computes_what_its_folded_form_computes() -> None:
    """With statistics that are none of a fresh batch norm, and its epsilon; unlike anchors of three levels."""
    config = YoloxConfig(width=0.0625, image_size=(64, 96), num_labels=3)
    tensors = tensors_of(config, seed=3)
    folded: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if ".bn." in name:
            continue
        norm = name.replace(".conv.weight", ".bn.")
        if norm + "weight" not in tensors:
            folded[name] = tensor
            continue
        gain = tensors[norm + "weight"] / (tensors[norm + "running_var"] + 1e-3).sqrt()
        folded[name] = tensor * gain[:, None, None, None]
        folded[name.replace("weight", "bias")] = tensors[norm + "bias"] - tensors[norm + "running_mean"] * gain
    pixels = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
    outputs = []
    for options, values in (({}, tensors), ({"fused": True}, folded)):
        own = config.model_copy(update=options)
        model = YoloxForObjectDetection(own, Yolox(own), 3).eval()
        model.load_state_dict(
            {name.removeprefix("head.") if "preds" in name else f"yolox.{name}": v for name, v in values.items()}
        )
        with torch.no_grad():
            outputs.append(model(pixels))
    assert outputs[0]["logits"].shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 3)
    assert outputs[0]["objectness"].shape == (2, 126)
    assert outputs[0]["boxes"].shape == (2, 126, 4)
    for name, values in outputs[0].items():
        torch.testing.assert_close(values, outputs[1][name], atol=1e-4, rtol=1e-4)
        assert values.std() > 1e-3


def counted(config: YoloxConfig) -> dict[str, torch.Tensor]:
    """Weights that follow from their names and places, so that they are the same everywhere."""
    found = {}
    for name, tensor in tensors_of(config).items():
        at = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
        if tensor.dim() == 4:
            found[name] = torch.sin(at * 0.7 + len(name)) * (3 / tensor[0].numel()) ** 0.5
        else:
            found[name] = 0.1 * torch.cos(at + len(name)) + name.endswith(("bn.weight", "running_var"))
    return found


def test_it_computes_what_it_did_when_onnx_runtime_agreed() -> None:
    """When an exported one's answers were its own (test_yolox_exported.py, which asks for a download): the order of the
    four corners, of what is joined and of levels shows nowhere else."""
    config = YoloxConfig(width=0.0625, image_size=(64, 512), num_labels=2)
    model = YoloxForObjectDetection(config, Yolox(config), 2).double().eval()
    model.load_state_dict(
        {name.removeprefix("head.") if "preds" in name else f"yolox.{name}": v for name, v in counted(config).items()}
    )
    y, x = torch.meshgrid(torch.arange(64), torch.arange(512), indexing="ij")
    pixels = torch.stack([(x * 3 + y * (channel + 1)) % 256 for channel in range(3)])[None].double()
    with torch.no_grad():
        found = model(pixels)
    boxes = [
        [0.015926, -0.067906, -0.110953, -0.013087],
        [-1.20392, -8.432661, -2.28728, 7.468059],
        [4.783672, -2.719616, -5.955319, 0.265754],
        [2.117188, -6.578404, -4.855541, 4.571062],
    ]
    logits = [[0.09357, -0.087594], [5.80281, -1.076427], [18.830061, 2.893805]]
    expected = {"boxes": boxes, "logits": logits, "objectness": [-0.03288, -1.004711, -9.190865]}
    anchors = {"boxes": [0, 500, 600, 671], "logits": [7, 530, 650], "objectness": [33, 610, 660]}
    for name, values in expected.items():
        told = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(found[name][0, anchors[name]], told, atol=2e-6, rtol=0)


def test_prediction_layers_go_level_by_level() -> None:
    layers = Predictions(2, 3)
    levels = tuple(torch.randn(2, 2, side, side + 1) for side in (3, 2, 1))
    given = layers(levels)
    assert given.shape == (2, 12 + 6 + 2, 3)
    one = layers.get_submodule("1")(levels[1])
    assert torch.equal(given[:, 12 + 1 * 3 + 2], one[:, :, 1, 2])  # of the second level the cell in row 1, column 2


@pytest.mark.parametrize("config", [YoloxConfig(width=0.375), YoloxConfig(depth=0.67, width=0.75)])
def test_its_facts_size_a_pass(config: YoloxConfig) -> None:
    """`plan` counts 32 times hidden_size numbers a layer and patch; a pass keeps what each of its modules reads."""
    with torch.device("meta"):
        yolox, kept, layers = Yolox(config), 0, 0

        def count(_: Any, given: Any, output: Any) -> None:
            nonlocal kept, layers
            kept, layers = kept + given[0].numel() + 2 * output.numel(), layers + 1

        for module in yolox.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(count)
        yolox(torch.empty(1, 3, 320, 320))
    assert layers == config.num_hidden_layers
    assert kept == pytest.approx(layers * 20 * 20 * 32 * config.hidden_size, rel=0.35)


# -------------------------------------------------------------------- folders and checkpoints


def test_a_users_checkpoint_becomes_a_base(tmp_path: Path) -> None:
    config = YoloxConfig(width=0.0625, image_size=(416, 416), num_labels=4)
    tensors = tensors_of(config)
    torch.save({"start_epoch": 300, "model": tensors}, tmp_path / "mine.pth")
    save_file(tensors, tmp_path / "mine.safetensors")
    names = ["car", "bus", "cat", "dog"]
    for file in ("mine.pth", "mine.safetensors"):
        told = save_checkpoint(tmp_path / file, tmp_path / file.replace(".", "-"), labels=names, image_size=(64, 96))
        assert told == config.model_copy(update={"image_size": (64, 96), "id2label": dict(enumerate(names))})
    base = load_base(BaseSpec(model=str(tmp_path / "mine-pth"), dtype="float32"))
    assert base.labels == tuple(names)
    assert base.processor == Letterbox((64, 96))
    assert (base.prefix, base.folder) == ("yolox", tmp_path / "mine-pth")
    for name, value in base.backbone.state_dict().items():
        assert torch.equal(value, tensors[name]), name
    assert not base.backbone.training
    described = describe_base(BaseSpec(model=str(tmp_path / "mine-pth"), dtype="float32"))
    assert described.fingerprint == base.fingerprint
    assert all(tensor.is_meta for tensor in described.backbone.state_dict().values())
    other = tensors | {"head.cls_preds.0.bias": tensors["head.cls_preds.0.bias"] + 1}
    save_folder(other, told, tmp_path / "other")
    assert load_base(BaseSpec(model=str(tmp_path / "other"))).fingerprint != base.fingerprint


class _Code:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_what_is_no_checkpoint_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = tensors_of(YoloxConfig(width=0.0625, num_labels=2))
    torch.save({"model": tensors, "args": _Code()}, "code.pth")
    Path("pickled.pth").write_bytes(pickle.dumps(_Code()))
    torch.save({"model": [1, 2]}, "list.pth")
    torch.save({"conv.weight": torch.ones(2)}, "other.pth")
    torch.save({name: value for name, value in tensors.items() if "lateral" not in name}, "part.pth")
    save_file(tensors, "right.safetensors")
    for file, why in {
        "code.pth": "cannot be read as tensors alone",
        "pickled.pth": "cannot be read as tensors alone",
        "list.pth": "holds no state dict",
        "other.pth": "are no YOLOX's",
        "part.pth": "6 of .* tensors do not fit a YOLOX of depth 0.33 and width 0.0625 .*lateral_conv0.* is missing",
        "none.pth": "cannot be read as tensors alone .*No such file",
    }.items():
        with pytest.raises(BaseModelError, match=why):
            save_checkpoint(Path(file), tmp_path / "out")
    assert not Path("ran").exists()
    with pytest.raises(BaseModelError, match="has 2 classes, and 1 labels are given"):
        save_checkpoint(Path("right.safetensors"), tmp_path / "out", labels=["a"])
    with pytest.raises(BaseModelError, match="multiples of 32"):
        save_checkpoint(Path("right.safetensors"), tmp_path / "out", image_size=(100, 64))
    assert not Path("out").exists()


def test_a_folder_that_is_no_yolox_says_why(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "yolox", "widht": 0.5}')
    with pytest.raises(BaseModelError, match=r"config.json' is no YOLOX's: widht .*save_checkpoint"):
        load_base(BaseSpec(model=str(folder)))
    (folder / "config.json").write_text('{"model_type": "yolox", "width": 0.5}')
    with pytest.raises(
        BaseModelError, match=r"tensors do not fit a YOLOX of depth 0\.33 and width 0\.5 with 80 classes"
    ):
        load_base(BaseSpec(model=str(folder)))
    with pytest.raises(BaseModelError, match="do not fit"):
        save_folder({name: value[:1] for name, value in tensors.items() if value.dim()}, YoloxConfig(), tmp_path / "x")


# -------------------------------------------------------------------- on the engine


def test_a_head_begins_as_the_bases_own(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "named", labels=["car", "bus", "cat"])
    tensors = load_file(folder / "model.safetensors")
    engine = AdapterEngine(load_base(BaseSpec(model=str(folder), dtype="float32")), slots=3, max_rank=2)

    def head(names: tuple[str, ...], seed: int = 0) -> dict[str, torch.Tensor]:
        spec = HeadSpec(DETECTION, len(names), names)
        slot = engine.init(LoraSpec(r=1, target_modules=("lateral_conv0.conv",)), spec, seed=seed)
        read = {key.removeprefix("base_model.model."): value.clone() for key, value in engine.read(slot).items()}
        engine.evict(slot)
        return read

    found = head(("bus", "kite", "Car", "door"))
    for level in range(3):
        for kind in ("reg_preds", "obj_preds"):
            name = f"{kind}.{level}.weight"
            assert torch.equal(found[name], tensors[f"head.{name}"])
        own, trained = found[f"cls_preds.{level}.weight"], tensors[f"head.cls_preds.{level}.weight"]
        assert torch.equal(own[[0, 2]], trained[[1, 0]])
        assert not any(torch.equal(row, other) for row in own[[1, 3]] for other in trained)
        assert found[f"cls_preds.{level}.bias"][3] == pytest.approx(-4.595, abs=1e-3)  # 1 % sure
    assert torch.equal(
        head(("bus", "kite"), 1)["cls_preds.0.weight"][1], head(("bus", "kite"), 1)["cls_preds.0.weight"][1]
    )
    assert not torch.equal(
        head(("bus", "kite"), 1)["cls_preds.0.weight"][1], head(("bus", "kite"), 2)["cls_preds.0.weight"][1]
    )
    engine.close()
    engine = AdapterEngine(
        load_base(BaseSpec(model=str(tiny(tmp_path / "bare")), dtype="float32")), slots=3, max_rank=2
    )
    trained = load_file(tmp_path / "bare" / "model.safetensors")["head.cls_preds.1.weight"]
    assert torch.equal(head(("x", "y", "z"))["cls_preds.1.weight"], trained)
    assert not torch.equal(head(("x", "y"))["cls_preds.1.weight"], trained[:2])


def test_other_heads_and_layers_are_refused_by_name(tmp_path: Path) -> None:
    base = load_base(BaseSpec(model=str(tiny(tmp_path / "tiny", depthwise=True)), dtype="float32"))
    with pytest.raises(AdapterError, match="a YOLOX has a head of AutoModelForObjectDetection, Finder was asked for"):
        base.plain(HeadSpec("Finder", 2))
    engine = AdapterEngine(base, slots=1, max_rank=2)
    head = HeadSpec(DETECTION, 2)
    with pytest.raises(RecipeError, match="its layers are conv"):
        engine.init(LoraSpec(r=1), head, seed=0)
    with pytest.raises(
        RecipeError, match=r"target 'yolox.backbone.backbone.stem.conv' cannot hold an adapter: it is a _Conv"
    ):
        engine.init(LoraSpec(r=1, target_modules=("conv",)), head, seed=0)
    every = LoraSpec(r=1, target_modules="all-convolutions")
    layers = {key.split(".lora")[0] for key in engine.read(engine.init(every, head, seed=0)) if "lora_A" in key}
    assert len(layers) == sum(isinstance(module, torch.nn.Conv2d) for module in base.backbone.modules())


# -------------------------------------------------------------------- pictures


@pytest.mark.parametrize(("width", "height"), [(64, 48), (30, 90), (200, 10), (1, 1), (1000, 1), (33, 47)])
def test_a_letterbox_holds_the_whole_picture(width: int, height: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    boxed, (wide, high) = Letterbox((64, 96))(Image.fromarray(pixels))
    assert boxed.shape == (3, 64, 96)
    assert boxed.dtype == torch.uint8
    scale = min(64 / height, 96 / width)
    assert (wide, high) == (max(int(width * scale), 1), max(int(height * scale), 1))
    assert (boxed[:, high:] == 114).all()
    assert (boxed[:, :, wide:] == 114).all()


def test_a_letterbox_gives_the_networks_colours() -> None:
    picture = Image.new("RGB", (64, 64), (200, 100, 50))
    assert Letterbox((64, 64))(picture)[0][:, 5, 5].tolist() == [50, 100, 200]
    assert Letterbox((64, 64), "rgb")(picture)[0][:, 5, 5].tolist() == [200, 100, 50]
    exact = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    same = Letterbox((64, 64), "rgb")(Image.fromarray(exact))[0]
    assert np.array_equal(same.permute(1, 2, 0).numpy(), exact)
