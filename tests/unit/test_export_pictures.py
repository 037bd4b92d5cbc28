"""Bundles that answer boxes and masks: mixed rows as each alone, merged, and by the runner where no torch is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_lora.bases.base import Base
from ray_lora.bases.segmenters import ErfnetConfig, MonaiUnetConfig
from ray_lora.errors import AdapterError, RecipeError
from ray_lora.export.alike import alike
from ray_lora.export.edge import image_segmentation, object_detection
from ray_lora.export.edge.object_detection import resized
from ray_lora.export.edge.runner import Bundle
from ray_lora.export.exporting import export_refs
from ray_lora.export.kinds import kind_of
from ray_lora.recipe import LoraSpec, TaskSpec
from ray_lora.tasks.detection.answers import answer
from ray_lora.tasks.detection.geometry import grid_of
from ray_lora.tasks.detection.options import Options
from ray_lora.tasks.image_segmentation import ImageSegmentationSpec
from ray_lora.tasks.object_detection import ObjectDetectionSpec
from tests.unit import detection, segmentation
from tests.unit.exported import like, put, said

PICTURES = [row["image"] for row in detection.rows(5)]
_SHUT = (
    "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'ray', 'ray_lora'))); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); assert sys.modules['torch'] is None"
)


@dataclass(frozen=True)
class Told:
    """A base, and two adapters of one task on it."""

    make: Callable[[Path], Path]
    specs: tuple[TaskSpec, TaskSpec]
    layers: str | tuple[str, ...] = "all-convolutions"
    norms: Literal["base", "own"] = "base"


_BOXES = (ObjectDetectionSpec(labels=("a", "b")), ObjectDetectionSpec(labels=("a", "b", "c")))
_MASKS = (ImageSegmentationSpec(labels=("background", "b")), ImageSegmentationSpec(labels=("background", "b", "c")))
TOLD = {
    "boxes": Told(detection.tiny, _BOXES, ("stem.conv.conv", "conv3.conv", "conv2.conv", "cls_convs.0.0.conv")),
    "masks on U-Net": Told(segmentation.tiny, _MASKS),  # transposed convolutions among them
    "masks on U-Net with norms of their own": Told(segmentation.tiny, _MASKS, norms="own"),
    "masks on ERFNet": Told(
        lambda folder: segmentation.tiny(folder, network=ErfnetConfig(), image_size=(32, 48)),
        _MASKS,
        ("convs_layers.0", "convs.0.conv"),
    ),
    "masks on SegFormer": Told(segmentation.segformer, _MASKS, "all-layers"),
}


@pytest.mark.parametrize("name", TOLD)
def test_each_task_answers_as_the_library(name: str, tmp_path: Path) -> None:
    told, store = TOLD[name], tmp_path / "store"
    base = told.make(tmp_path / "base")
    for seed, (adapter, spec) in enumerate(zip(("one", "two"), told.specs, strict=True)):
        lora = LoraSpec(r=4 - 2 * seed, target_modules=told.layers, batch_norms=told.norms)
        put(store, base, adapter, spec, lora, seed, 0.08, 2.0)
    wanted = {adapter: said(store, adapter, _inputs()) for adapter in ("one", "two")}
    assert wanted["one"] != wanted["two"]
    assert all(any(answers) for answers in wanted.values())
    card = export_refs(["one", "two"], tmp_path / "shared", store=str(store))
    assert card["figures"]["float"]["parity"]["same"] == 1.0
    rows = [(value, adapter) for value in _inputs() for adapter in ("one", "two")]
    found = Bundle(tmp_path / "shared").answer([value for value, _ in rows], [adapter for _, adapter in rows])
    for adapter, answers in wanted.items():
        mine = [one for one, (_, owner) in zip(found, rows, strict=True) if owner == adapter]
        assert all(map(_close, mine, answers)), adapter
    export_refs(["one"], tmp_path / "merged", merge=True, store=str(store))
    assert all(map(_close, _by_the_runner(tmp_path / "merged", "one", tmp_path), wanted["one"]))
    assert all(map(_close, _by_the_runner(tmp_path / "shared", "two", tmp_path), wanted["two"]))


def test_convolutions_in_8_bits_answer_nearly_alike_beside_adapters_in_32(tmp_path: Path) -> None:
    told, store, rows = TOLD["masks on U-Net"], tmp_path / "store", tmp_path / "rows.parquet"
    base = told.make(tmp_path / "base")
    for seed, (adapter, spec) in enumerate(zip(("one", "two"), told.specs, strict=True)):
        put(store, base, adapter, spec, LoraSpec(r=4 - 2 * seed, target_modules=told.layers), seed, 0.08, 2.0)
    pq.write_table(pa.Table.from_pylist(_inputs()), rows)
    card = export_refs(["one", "two"], tmp_path / "small", int8=True, data=str(rows), store=str(store))
    whole, small = card["figures"]["float"], card["figures"]["int8"]
    assert 0.9 < small["parity"]["same"] < whole["parity"]["same"] == 1.0
    assert 0 < small["parity"]["largest"] < 0.5
    graph = onnx.load(tmp_path / "small" / "graph.onnx").graph
    held = {one.name: one.data_type for one in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    weights = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    eight = [name for name in weights if name in made and made[name].op_type == "DequantizeLinear"]
    assert len(eight) > 4
    assert {held[made[name].input[0]] for name in eight} == {onnx.TensorProto.INT8}
    assert len(eight) < len(weights)  # an adapter's are of the inputs
    assert small["bytes"] < whole["bytes"]


def _inputs() -> list[dict[str, bytes]]:
    return [{"image": image} for image in PICTURES]


def _close(given: Any, wanted: Any) -> bool:
    """The library's answer, but for a pixel that rounding moves."""
    assert [one["label"] for one in given] == [one["label"] for one in wanted]
    assert like([one["score"] for one in given], [one["score"] for one in wanted])
    return alike(given, wanted) >= 0.999


def _by_the_runner(folder: Path, name: str, place: Path) -> list[Any]:
    """In a process in which torch cannot be imported."""
    files = [place / f"{number}.png" for number in range(len(PICTURES))]
    for file, image in zip(files, PICTURES, strict=True):
        file.write_bytes(image)
    asked = [sys.executable, "-c", _SHUT, folder / "runner.py", "--adapter", name, *files]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=place)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_pictures_are_scaled_as_torch_scales_them_bit_for_bit() -> None:
    draw = np.random.default_rng(0)
    for _ in range(40):
        high, wide, to_high, to_wide = draw.integers(1, 150, 4).tolist()
        pixels = draw.integers(0, 256, (high, wide, 3), dtype=np.uint8)
        given = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        wanted = torch.nn.functional.interpolate(given, (to_high, to_wide), mode="bilinear", align_corners=False)
        found = resized(resized(pixels, to_wide, 1), to_high, 0)
        np.testing.assert_array_equal(found, wanted[0].permute(1, 2, 0).numpy())


_CARD = {"size": [64, 96], "strides": [8, 16, 32]}
_FACTS = {"labels": ["a", "b"], "threshold": 0.5, "iou": 0.65, "top_k": 100}


def test_boxes_are_decoded_as_the_library_decodes_them(tmp_path: Path) -> None:
    """Of outputs that are drawn, so that many boxes lie on each other, some beside the picture."""
    rows, grid = object_detection.Rows(tmp_path, _CARD), grid_of((64, 96), (8, 16, 32))
    counts = []
    for seed in range(20):
        draw = np.random.default_rng(seed)
        logits = draw.normal(1, 2, (len(grid.cells), 3)).astype(np.float32)  # the third is another adapter's label
        objectness = draw.normal(1, 2, len(logits)).astype(np.float32)
        raw = draw.normal(0.5, 0.8, (len(logits), 4)).astype(np.float32)
        extent, inside = [(130, 70), (50, 64), (96, 64)][seed % 3], [(96, 51), (50, 64), (96, 64)][seed % 3]
        outputs = {"logits": logits, "objectness": objectness, "boxes": raw}
        found = rows.decode(outputs, (extent, inside), _FACTS)
        scores = torch.from_numpy(logits[:, :2]).sigmoid() * torch.from_numpy(objectness).sigmoid()[:, None]
        picture = {"extent": extent, "inside": inside}
        wanted = answer(scores, grid.boxes(torch.from_numpy(raw)), picture, ["a", "b"], Options())
        assert like(found, wanted)
        counts.append((len(found), int((scores.max(1).values >= 0.5).sum())))
    assert all(5 < kept < sure for kept, sure in counts)


def test_outputs_that_are_no_numbers_are_no_empty_picture(tmp_path: Path) -> None:
    rows = object_detection.Rows(tmp_path, _CARD)
    count = len(rows.cells)
    shapes = {"logits": (count, 2), "objectness": (count,), "boxes": (count, 4)}
    outputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    outputs["boxes"][0, 0] = np.nan
    with pytest.raises(SystemExit, match="outputs are no numbers"):
        rows.decode(outputs, ((64, 64), (64, 64)), _FACTS)
    with pytest.raises(SystemExit, match="outputs are no numbers"):
        image_segmentation.Rows(tmp_path, {}).decode(
            {"logits": np.full((2, 4, 4), np.nan, np.float32)}, ((4, 4), (4, 4), (4, 4)), _FACTS
        )


def test_answers_are_alike_by_pixels_and_corners() -> None:
    def masks(rows: Sequence[Sequence[int]]) -> list[Any]:
        from ray_lora.tasks.segmentation.answers import encoded

        here = np.array(rows, np.uint8)
        return [
            {"score": 0.5, "label": name, "mask": encoded((here == index) * np.uint8(255))}
            for index, name in enumerate("ab")
        ]

    assert alike(masks([[0, 1], [1, 1]]), masks([[0, 1], [1, 1]])) == 1.0
    assert alike(masks([[0, 1], [1, 1]]), masks([[0, 0], [1, 1]])) == 0.75
    box = {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}
    one: list[Any] = [{"score": 0.9, "label": "a", "box": box}]
    assert alike(one, [{"score": 0.8, "label": "a", "box": box | {"xmax": 4}}]) == 1.0
    assert alike(one, [{"score": 0.8, "label": "a", "box": box | {"xmax": 5}}]) == 0.0
    assert alike(one, []) == 0.0


def test_what_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    store = tmp_path / "store"
    lora = LoraSpec(r=2, target_modules="all-convolutions")
    monai = segmentation.tiny(tmp_path / "monai", network=MonaiUnetConfig(channels=(8, 16), strides=(2,)))
    put(store, monai, "others", _MASKS[0], lora)
    with pytest.raises(RecipeError, match="a segmenter of the kind 'monai-unet' was not compared"):
        export_refs(["others"], tmp_path / "out", store=str(store))
    base = segmentation.tiny(tmp_path / "base")
    for name, size in (("small", (32, 32)), ("large", (64, 48))):
        put(store, base, name, ImageSegmentationSpec(labels=("background", "b"), image_size=size), lora)
    with pytest.raises(AdapterError, match=r"one graph reads pictures of one size, and the adapters read \[32, 32\]"):
        export_refs(["small", "large"], tmp_path / "out", store=str(store))
    with pytest.raises(RecipeError, match="--int8 of image-segmentation takes each layer's range from rows"):
        export_refs(["small"], tmp_path / "out", int8=True, store=str(store))


def test_a_task_without_a_runner_is_refused_by_name() -> None:
    task: Any = SimpleNamespace(spec=SimpleNamespace(type="tea-leaves"))
    with pytest.raises(RecipeError, match="export of tea-leaves is not supported yet; supported: text"):
        kind_of(task, cast("Base", None))


def test_a_picture_of_more_than_8_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 4000, np.uint16)).save(path)
    card = {"size": [32, 32], "strides": [8], "fill": None}
    for reader in (object_detection, image_segmentation):
        with pytest.raises(SystemExit, match="more than 8 bits"):
            reader.Rows(tmp_path, card).encode({"image": path.read_bytes()}, {"size": [32, 32]})
