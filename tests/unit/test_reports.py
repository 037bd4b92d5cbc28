"""What people have reported of tools that do the same job, tried here with small inputs: see `docs/reports.md`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from ray_lora.bases.yolox import Letterbox
from ray_lora.data.rows import read_rows
from ray_lora.errors import DataError
from ray_lora.recipe import Recipe
from ray_lora.running.sources import inspect
from ray_lora.tasks.object_detection import ObjectDetection, ObjectDetectionSpec
from ray_lora.tasks.sounds import decode, is_silent, open_sound
from tests.unit.http_server import serving
from tests.unit.writing_world import Alone, make_adapter, make_base

# ------------------------------------------------------------------------------------------------------------- sounds

soundfile = pytest.importorskip("soundfile", reason="pip install 'ray_lora[speech]'")


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def test_a_stereo_sound_is_never_averaged_over_time() -> None:
    """huggingface/transformers#47886: samples by channels were taken for channels by samples."""
    draw = np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * 0.05
    stereo = np.stack([draw, draw], axis=1)
    assert decode(wav(stereo)).shape == (48_000,)
    assert np.allclose(decode(wav(stereo)), draw, atol=1e-6)
    for layout in (stereo, stereo.T):  # a bare array says neither its rate nor which axis is time
        with pytest.raises(DataError, match="give the bytes"):
            open_sound(layout)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_another_rate_is_resampled_once(rate: int) -> None:
    """huggingface/transformers#41298: the source's rate was given twice, and nothing was resampled."""
    hertz = 440.0
    tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(rate) / rate).astype(np.float32)
    found = decode(wav(tone, rate))
    assert abs(len(found) - 16_000) <= 1
    assert abs(np.argmax(np.abs(np.fft.rfft(found[:16_000]))) - hertz) <= 1


def test_a_sound_of_no_samples_is_refused_and_silence_is_a_sound() -> None:
    """octimot/StoryToolkitAI#65, SYSTRAN/faster-whisper#1060, modelscope/FunASR#1386: a traceback."""
    with pytest.raises(DataError, match="no samples"):
        decode(wav(np.zeros(0, np.float32)))
    assert is_silent(decode(wav(np.zeros(16_000, np.float32))))
    assert len(decode(wav(np.zeros(1, np.float32)))) == 1


# ---------------------------------------------------------------------------------------------------------- detection


def yolo(folder: Path, lines: str, orientation: int = 1) -> Path:
    """A YOLO's folder with one picture, 100 wide and 40 high as it is stored."""
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (100, 40), "red").save(folder / "images/train/0.jpg", exif=exif)
    (folder / "labels/train/0.txt").write_text(lines)
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n")
    return folder / "data.yaml"


def recipe(path: Path, **task: Any) -> Recipe:
    told = {"type": "object-detection", **task}
    return Recipe.parse({"base": {"model": "any"}, "task": told, "data": {"train": str(path)}})


def objects(path: Path) -> Any:
    table = read_rows(str(path), recipe(path).data, ObjectDetection.columns, "train").table
    return table.to_pylist()[0]["objects"]


@pytest.mark.parametrize(("orientation", "box"), [(1, [10, 4, 80, 16]), (6, [4, 10, 32, 40]), (3, [10, 4, 80, 16])])
def test_shares_are_of_the_picture_as_it_is_seen(tmp_path: Path, orientation: int, box: list[float]) -> None:
    """roboflow/supervision#2577, ultralytics/yolov5#405: boxes of photographs that lie on their side."""
    assert objects(yolo(tmp_path, "0 0.5 0.3 0.8 0.4\n", orientation))["bbox"] == [pytest.approx(box)]


def test_labels_that_the_annotations_do_not_have_are_named(tmp_path: Path) -> None:
    """open-mmlab/mmdetection#9359, open-mmlab/mmyolo#405: a loss of 0, and empty results, without a word."""
    path = yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(DataError, match="'cat' is not one of 'person', 'car'"):
        inspect(recipe(path, labels=["person", "car"]))


def test_an_object_that_stands_twice_is_named_and_a_picture_without_any_is_a_row(tmp_path: Path) -> None:
    """ultralytics/yolov5#11585, bharatsingh430/py-R-FCN-multiGPU#28: losses of NaN, a crash."""
    with pytest.raises(DataError, match=r"0\.txt.*twice|0\.txt.*line 2"):
        objects(yolo(tmp_path, "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5\n"))
    task = ObjectDetection(ObjectDetectionSpec(labels=("cat", "dog")), Letterbox((64, 64)))
    picture = io.BytesIO()
    Image.new("RGB", (9, 9)).save(picture, "PNG")
    bare = pa.Table.from_pylist([{"image": picture.getvalue(), "objects": {"bbox": [], "category": []}}])
    assert list(ObjectDetection.check(task.spec, bare)) == []
    assert len(task.encode(bare.to_pylist())[0]["boxes"]) == 0


LINES = ["0 0.5 0.5 0 0.5", "0 0.5 0.5 nan 0.5", "7 0.5 0.5 0.5 0.5", "0 0.5 0.5", "0 2 0.5 0.5 0.5"]


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_no_box_is_named(tmp_path: Path, line: str) -> None:
    """Megvii-BaseDetection/YOLOX#1765: annotations seem fine, and the mean average precision is NaN."""
    with pytest.raises(DataError, match=r"0\.(txt|jpg)"):
        inspect(recipe(yolo(tmp_path, f"1 0.5 0.5 0.5 0.5\n{line}\n")))


# --------------------------------------------------------------------------------------------------------- generation


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reports")
    make_adapter(make_base(root / "base"), root / "store" / "a", seed=0)
    return root


@pytest.fixture(scope="module")
def address(world: Path) -> Iterator[str]:
    with serving(world, slots=2) as address:
        yield address


def ask(address: str, **told: Any) -> httpx.Response:
    body = {"model": "a", "prompt": "the capital of Peru is", "temperature": 0, **told}
    return httpx.post(f"{address}/v1/completions", json=body, timeout=None)


def test_null_is_the_default(address: str) -> None:
    """vllm-project/vllm#19862: 500."""
    nulls = dict.fromkeys(("max_tokens", "top_p", "seed", "stop", "n", "logprobs", "stream", "user"))
    answer = ask(address, **nulls).json()
    assert answer["choices"][0] == ask(address).json()["choices"][0]
    assert answer["usage"]["completion_tokens"] <= 16


@pytest.mark.parametrize(
    "told",
    [{"max_tokens": 0}, {"echo": True, "max_tokens": 0, "logprobs": 1}, {"prompt_logprobs": 10}, {"max_tokens": -1}],
    ids=str,
)
def test_what_is_not_written_is_refused_and_the_next_is_answered(address: str, told: dict[str, Any]) -> None:
    """vllm-project/vllm#6521, #9336, #16836: the server ended."""
    assert ask(address, **told).status_code == 400
    assert ask(address).status_code == 200


def test_so_many_tokens_are_so_many(address: str) -> None:
    """ggml-org/llama.cpp#4790: one was asked for, and four came."""
    for most in (1, 2, 3):
        assert ask(address, max_tokens=most).json()["usage"]["completion_tokens"] == most


def test_a_seed_counts_whoever_shares_the_step(address: str) -> None:
    """ggml-org/llama.cpp#7381, #19981: a seed that was passed over, or did not decide."""
    drawn = [ask(address, temperature=2, seed=seed, max_tokens=8).json()["choices"][0]["text"] for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    beside = ask(address, temperature=2, seed=1, max_tokens=8, n=1, prompt=["who", "the capital of Peru is"])
    assert len(beside.json()["choices"]) == 2


def test_stops_are_no_part_of_what_is_streamed(address: str, world: Path) -> None:
    """ggml-org/llama.cpp#10914, vllm-project/vllm#11089: text twice before a stop, or none at all."""
    whole = Alone(world / "base", world / "store" / "a").text("the capital of Peru is", 12)
    words = whole.split(" ")
    stops = [f"{words[2]} {words[3]}", "that never comes"]
    wanted = whole[: whole.index(stops[0])]
    assert wanted
    assert ask(address, max_tokens=12, stop=stops).json()["choices"][0]["text"] == wanted
    told = {"model": "a", "prompt": "the capital of Peru is", "temperature": 0, "max_tokens": 12, "stop": stops}
    heard = ""
    with httpx.stream("POST", f"{address}/v1/completions", json={**told, "stream": True}, timeout=None) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                heard += httpx.Response(200, text=line[6:]).json()["choices"][0]["text"]
    assert heard == wanted
