"""YOLOX from ONNX: a reader of its weights alone, the order of its convolutions, and the one that others trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ray_lora import BaseSpec, load_base
from ray_lora.bases import converted as module
from ray_lora.bases.converted import convert, converted
from ray_lora.bases.onnx_weights import convolutions
from ray_lora.bases.yolox import YoloxConfig
from ray_lora.bases.yolox.exported import save_exported
from ray_lora.engine import HeadSpec
from ray_lora.errors import BaseModelError
from tests.unit.detection import tensors_of

LEVEL = "stems.{}.conv cls_convs.{}.0.conv cls_convs.{}.1.conv cls_preds.{} reg_convs.{}.0.conv reg_convs.{}.1.conv"


def order() -> list[str]:
    """A small YOLOX's convolutions as its public class runs them."""

    def stage(name: str, blocks: int = 1) -> list[str]:
        inner = [f"m.{block}.conv{half}" for block in range(blocks) for half in (1, 2)]
        return [f"{name}.{part}.conv" for part in ("conv1", "conv2", *inner, "conv3")]

    trunk = ["stem.conv.conv"]
    for name, blocks in (("dark2", 1), ("dark3", 3), ("dark4", 3)):
        trunk += [f"{name}.0.conv", *stage(f"{name}.1", blocks)]
    trunk += ["dark5.0.conv", "dark5.1.conv1.conv", "dark5.1.conv2.conv", *stage("dark5.2")]
    pyramid = [f"backbone.{name}" for name in trunk]
    for before, name in (("lateral_conv0", "C3_p4"), ("reduce_conv1", "C3_p3"), ("bu_conv2", "C3_n3")):
        pyramid += [f"{before}.conv", *stage(name)]
    pyramid += ["bu_conv1.conv", *stage("C3_n4")]
    level = f"{LEVEL} reg_preds.{{}} obj_preds.{{}}".split()
    head = [f"head.{name}".format(at) for at in range(3) for name in level]
    return [*(f"backbone.{name}" for name in pyramid), *head]


# -------------------------------------------------------------------- an ONNX file, written by hand


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, values: np.ndarray, kind: int = 1) -> bytes:
    shape = b"".join(field(1, size) for size in values.shape)
    return shape + field(2, kind) + field(8, name.encode()) + field(9, values.astype("<f4").tobytes())


def onnx(pairs: list[tuple[np.ndarray, np.ndarray]], kind: int = 1) -> bytes:
    """A graph of convolutions and what lies between them; initializers come last first, as names do not tell."""
    nodes = b""
    for at in range(len(pairs)):
        inputs = b"".join(field(1, name.encode()) for name in (f"x{at}", f"w{at}", f"b{at}"))
        nodes += field(1, inputs + field(2, f"x{at + 1}".encode()) + field(4, b"Conv"))
        nodes += field(1, field(1, b"x") + field(4, b"Sigmoid"))
    tensors = b""
    for at in reversed(range(len(pairs))):
        tensors += field(5, tensor(f"b{at}", pairs[at][1], kind)) + field(5, tensor(f"w{at}", pairs[at][0], kind))
    return field(1, 6) + field(2, b"by hand") + field(7, nodes + field(2, b"graph") + tensors)


PAIRS = [(np.full((2, 3, 1, 1), 0.5), np.ones(2)), (np.arange(300.0).reshape(25, 2, 2, 3), np.zeros(25))]


def test_weights_are_read_in_the_graphs_order() -> None:
    found = convolutions(onnx(PAIRS))
    assert len(found) == 2
    for (weight, bias), (w, b) in zip(found, PAIRS, strict=True):
        assert np.array_equal(weight, w)
        assert np.array_equal(bias, b)
    with pytest.raises(BaseModelError, match="a weight is of data type 10, not float32"):
        convolutions(onnx(PAIRS, kind=10))


@given(st.integers(0, len(onnx(PAIRS)) - 1), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_broken_file_is_an_error_of_ours(at: int, byte: int) -> None:
    data = onnx(PAIRS)
    for broken in (data[:at], data[:at] + bytes([byte]) + data[at + 1 :], bytes([byte]) * at):
        try:
            convolutions(broken)
        except BaseModelError:
            continue


def test_an_exported_yolox_becomes_a_folder(tmp_path: Path) -> None:
    config = YoloxConfig(width=0.0625, fused=True, num_labels=2, image_size=(64, 64))
    tensors = tensors_of(config)
    pairs = [(tensors[f"{name}.weight"].numpy(), tensors[f"{name}.bias"].numpy()) for name in order()]
    (tmp_path / "net.onnx").write_bytes(onnx(pairs))
    assert save_exported(tmp_path / "net.onnx", tmp_path / "base", (64, 64)) == config
    found = load_file(tmp_path / "base" / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    (tmp_path / "short.onnx").write_bytes(onnx(pairs[:-1]))
    with pytest.raises(BaseModelError, match="has 82 convolutions, which no YOLOX has"):
        save_exported(tmp_path / "short.onnx", tmp_path / "other", (64, 64))
    turned = [*pairs[:-3], pairs[-2], pairs[-3], pairs[-1]]
    (tmp_path / "turned.onnx").write_bytes(onnx(turned))
    with pytest.raises(BaseModelError, match="tensors do not fit a YOLOX"):
        save_exported(tmp_path / "turned.onnx", tmp_path / "other", (64, 64))


# -------------------------------------------------------------------- the one in ddddocr


def test_it_is_converted_once_and_called_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = YoloxConfig(width=0.0625, fused=True, num_labels=1, image_size=(416, 416))
    tensors = tensors_of(config)
    source = tmp_path / "source"
    (source / "ddddocr").mkdir(parents=True)
    (source / "ddddocr-1.6.1.dist-info" / "licenses").mkdir(parents=True)
    (source / "ddddocr-1.6.1.dist-info" / "licenses" / "LICENSE").write_text("MIT")
    pairs = [(tensors[f"{name}.weight"].numpy(), tensors[f"{name}.bias"].numpy()) for name in order()]
    (source / "ddddocr" / "common_det.onnx").write_bytes(onnx(pairs))
    monkeypatch.setenv("RAY_LORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "fetch_archive", lambda *_: source)
    base = load_base(BaseSpec(model="yolox-tiny", dtype="float32"))
    assert base.processor.size == (416, 416)
    assert base.folder == converted("yolox-tiny")
    card = (base.folder / "README.md").read_text()
    assert "sml2h3\ntrained it" in card
    assert "It is not\nthe detector of COCO's 80 classes" in card
    assert (base.folder / "LICENSE").read_text() == "MIT"
    monkeypatch.setattr(module, "fetch_archive", None)
    assert convert("yolox-tiny") == base.folder


@pytest.mark.skipif(converted("yolox-tiny") is None, reason="yolox-tiny is not in the cache of this machine")
def test_its_answers_are_those_of_onnx_runtime() -> None:
    """Numbers that ONNX Runtime 1.32 gave for this picture from the file itself: for three anchors x, y, log of width
    and height, and objectness and class after the sigmoid; and the mean of each over all 3,549 anchors."""
    base = load_base(BaseSpec(model="yolox-tiny", dtype="float32"))
    model = base.fresh(HeadSpec("AutoModelForObjectDetection", 1))
    assert model is not None
    model.yolox = base.backbone
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_024_202
    y, x = np.mgrid[0:416, 0:416]
    pixels = np.stack([(x * 3 + y * (channel + 1)) % 256 for channel in range(3)]).astype(np.float32)
    pixels[:, 100:180, 60:140], pixels[:, 220:300, 250:330] = 250, 5
    with torch.no_grad():
        found = model(torch.from_numpy(pixels)[None])
    own = torch.cat([found["boxes"], found["objectness"].sigmoid()[..., None], found["logits"].sigmoid()], -1)[0]
    theirs = torch.tensor(
        [
            [0.6307384, 0.3007613, -0.2488650, 0.3672662, 0.3301785, 0.7311840],
            [0.2819000, 0.6831441, 0.3108266, 1.1223948, 0.2427242, 0.6856264],
            [0.2836039, -0.2891100, 0.3613321, 1.0535696, 0.2367287, 0.6957968],
        ]
    )
    torch.testing.assert_close(own[[3379, 2651, 2703]], theirs, atol=2e-5, rtol=0)
    means = torch.tensor([0.46733215, 0.5867030, 0.98153728, 1.1060438, 7.2540267e-04, 0.45007497])
    torch.testing.assert_close(own.mean(0), means, atol=2e-5, rtol=0)
