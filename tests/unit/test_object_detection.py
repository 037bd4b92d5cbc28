"""Object detection: which anchors learn what, what is answered in whose pixels, the measure, and wrong rows."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from PIL import Image
from torch import Tensor

from ray_lora import BaseSpec, load_base
from ray_lora.bases.yolox import Letterbox
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.answer_columns import AnswerColumns
from ray_lora.inference.finite import NotFiniteError, is_finite
from ray_lora.inference.predict import predict
from ray_lora.inference.tables import Answer
from ray_lora.recipe import LoraSpec, TrainingSpec
from ray_lora.tasks import plain_spec
from ray_lora.tasks.detection.assignment import assign
from ray_lora.tasks.detection.geometry import grid_of, in_input, in_picture, keep_best
from ray_lora.tasks.detection.losses import picture_loss
from ray_lora.tasks.detection.objects import clipped, objects_of, outside
from ray_lora.tasks.object_detection import ObjectDetection, ObjectDetectionSpec
from ray_lora.training.head_start import fits, say_start
from ray_lora.training.job import Job
from ray_lora.training.shards import Split, Splits
from tests.unit.bases import quiet_peft
from tests.unit.detection import COLOURS, best_answer, plain, rows, tiny
from tests.unit.packs import WatchedPack

LABELS = tuple(sorted(COLOURS))
SIZE, STRIDES = (64, 96), (8, 16, 32)
GRID = grid_of(SIZE, STRIDES)


def detector(size: tuple[int, int] = SIZE, order: Any = "rgb") -> ObjectDetection:
    return ObjectDetection(ObjectDetectionSpec(labels=LABELS), Letterbox(size, order))


def shared_area(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union, slowly."""
    across = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    both = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - across * down
    return across * down / both


def some_boxes(count: int, draw: torch.Generator, size: tuple[int, int] = SIZE) -> Tensor:
    corner = torch.rand(count, 2, generator=draw, dtype=torch.float64) * torch.tensor([size[1], size[0]]) * 0.7
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=draw, dtype=torch.float64) * 30], 1)


# -------------------------------------------------------------------- anchors


def test_anchors_lie_level_by_level_and_row_by_row() -> None:
    assert GRID.cells.shape == (8 * 12 + 4 * 6 + 2 * 3, 2)
    assert GRID.cells[13].tolist() == [1, 1]  # the second row of twelve cells
    assert GRID.strides[[0, 95, 96, 119, 120, 125]].tolist() == [8, 8, 16, 16, 32, 32]
    assert GRID.middles[125].tolist() == [80, 48]
    raw = torch.zeros(2, 126, 4)
    raw[1, 97] = torch.tensor([0.5, 0.25, math.log(2), math.log(3)])
    assert GRID.boxes(raw)[1, 97].tolist() == pytest.approx([24 - 16, 4 - 24, 24 + 16, 4 + 24])
    assert GRID.boxes(raw)[0, 0].tolist() == [-4, -4, 4, 4]


def test_anchors_that_an_evaluation_made_serve_training() -> None:
    grid_of.cache_clear()
    task = detector()
    features = task.encode(rows(1))
    with torch.inference_mode():
        task.decode(outputs_of(task, 1), features, {})
    outputs = {name: value.requires_grad_() for name, value in outputs_of(task, 1).items()}
    task.loss(outputs, features)[0].sum().backward()
    assert outputs["boxes"].grad is not None


def simota(scores: Any, boxes: Any, objects: Any, classes: Any) -> dict[int, int]:
    """The paper's assignment, anchor by anchor: the object that each learning anchor learns."""
    anchors, cost, shares = range(len(boxes)), {}, {}
    near: dict[int, list[int]] = {}
    for number, (left, top, right, bottom) in enumerate(objects):
        for anchor in anchors:
            stride, (x, y) = float(GRID.strides[anchor]), GRID.middles[anchor].tolist()
            if abs(x - (left + right) / 2) < 1.5 * stride and abs(y - (top + bottom) / 2) < 1.5 * stride:
                near.setdefault(anchor, []).append(number)
    for anchor in near:
        for number, box in enumerate(objects):
            shares[number, anchor] = shared_area(boxes[anchor], box)
            surprise = sum(
                -max(math.log(score) if kind == classes[number] else math.log(1 - score), -100)
                for kind, score in enumerate(scores[anchor])
            )
            far = 0 if number in near[anchor] else 1e6
            cost[number, anchor] = surprise - 3 * math.log(shares[number, anchor] + 1e-8) + far
    wants: dict[int, list[int]] = {}
    for number in range(len(objects)):
        best = sorted((shares[number, anchor] for anchor in near), reverse=True)[:10]
        for anchor in sorted(near, key=lambda one: cost[number, one])[: max(int(sum(best)), 1)]:
            wants.setdefault(anchor, []).append(number)
    return {anchor: min(numbers, key=lambda one: cost[one, anchor]) for anchor, numbers in wants.items()}


@pytest.mark.parametrize("seed", range(12))
def test_simota_is_the_slow_one(seed: int) -> None:
    """Of objects that overlap and boxes that are near them, so that several objects want one anchor."""
    draw = torch.Generator().manual_seed(seed)
    count = 1 + seed % 5
    objects = some_boxes(count, draw)
    objects[-1] = objects[0] + 2 * (seed % 2)
    classes = torch.randint(3, (count,), generator=draw)
    middle = GRID.middles.double() + torch.randn(126, 2, generator=draw, dtype=torch.float64)
    half = 4 + torch.rand(126, 2, generator=draw, dtype=torch.float64) * 14
    boxes = torch.cat([middle - half, middle + half], 1)
    scores = torch.rand(126, 3, generator=draw, dtype=torch.float64)
    found = assign(scores, boxes, objects, classes, GRID.to(boxes))
    expected = simota(scores.tolist(), boxes.tolist(), objects.tolist(), classes.tolist())
    assert dict(zip(found.anchors.tolist(), found.objects.tolist(), strict=True)) == expected
    assert len(expected) >= 1
    for anchor, number, share in zip(found.anchors, found.objects, found.shared, strict=True):
        assert float(share) == pytest.approx(shared_area(boxes[anchor].tolist(), objects[number].tolist()))


def test_an_anchor_learns_no_object_that_is_far_from_it() -> None:
    """However well its box fits: only those around the object's middle may."""
    objects = torch.tensor([[4.0, 4.0, 20.0, 20.0], [70.0, 40.0, 86.0, 56.0]])
    boxes = GRID.boxes(torch.zeros(126, 4))
    far = int((GRID.middles - torch.tensor([76.0, 44.0])).norm(dim=1).argmin())
    boxes[far] = objects[0]
    found = assign(torch.full((126, 1), 0.5), boxes, objects, torch.zeros(2, dtype=torch.long), GRID)
    assert not any(one == far and number == 0 for one, number in zip(found.anchors, found.objects, strict=True))
    assert set(found.objects.tolist()) == {0, 1}


def test_an_object_of_any_size_is_learnt_by_an_anchor() -> None:
    for box in ([0.0, 0.0, 0.5, 0.5], [95.5, 63.5, 96.0, 64.0], [0.0, 0.0, 96.0, 64.0], [40.0, 0.0, 40.1, 64.0]):
        objects = torch.tensor([box])
        found = assign(torch.full((126, 1), 0.5), GRID.boxes(torch.zeros(126, 4)), objects, torch.tensor([0]), GRID)
        assert len(found.anchors) >= 1


# -------------------------------------------------------------------- the loss


def slow_loss(logits: Tensor, objectness: Tensor, boxes: Tensor, objects: Tensor, classes: Tensor) -> tuple[float, int]:
    sure = (logits.sigmoid() * objectness.sigmoid()[:, None]).sqrt()
    learns = simota(sure.tolist(), boxes.tolist(), objects.tolist(), classes.tolist())
    total = 0.0
    for anchor in range(len(boxes)):
        held = 1 / (1 + math.exp(-float(objectness[anchor])))
        total -= math.log(held if anchor in learns else 1 - held)
        if anchor not in learns:
            continue
        share = shared_area(boxes[anchor].tolist(), objects[learns[anchor]].tolist())
        total += 5 * (1 - share**2)
        for kind, logit in enumerate(logits[anchor].tolist()):
            wanted, p = share * (kind == classes[learns[anchor]]), 1 / (1 + math.exp(-logit))
            total -= wanted * math.log(p) + (1 - wanted) * math.log(1 - p)
    return total, max(len(learns), 1)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_the_loss_is_the_sum_of_its_three(count: int) -> None:
    draw = torch.Generator().manual_seed(count)
    logits, objectness = (torch.randn(126, size, generator=draw, dtype=torch.float64) for size in (3, 1))
    raw = torch.randn(126, 4, generator=draw, dtype=torch.float64) * 0.5
    objects, classes = some_boxes(count, draw), torch.randint(3, (count,), generator=draw)
    grid = GRID.to(raw)
    total, terms = picture_loss(logits, objectness[:, 0], grid.boxes(raw), objects, classes, grid)
    wanted = slow_loss(logits, objectness[:, 0], grid.boxes(raw), objects, classes)
    assert float(total) == pytest.approx(wanted[0])
    assert float(terms) == wanted[1]


def test_a_box_wider_than_any_picture_has_a_gradient() -> None:
    """Float32 has no number for its area otherwise, and one bad step would end a training."""
    task = detector()
    features = task.encode(rows(1))
    outputs = outputs_of(task, 1)
    outputs["boxes"][..., 2:] += 60
    leaves = {name: value.requires_grad_() for name, value in outputs.items()}
    total, _ = task.loss(leaves, features)
    total.sum().backward()
    assert total.isfinite().all()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in leaves.values())


def outputs_of(task: ObjectDetection, count: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"logits": (count, 126, 3), "objectness": (count, 126), "boxes": (count, 126, 4)}
    return {name: (torch.randn(shape, generator=draw) * 0.3).to(dtype) for name, shape in shapes.items()}


def test_a_loss_of_half_precision_is_computed_in_single() -> None:
    task = detector()
    features = task.encode(rows(4))
    half = outputs_of(task, 4, torch.bfloat16)
    losses = task.loss(half, features)
    assert [part.dtype for part in losses] == [torch.float32] * 2
    exact = task.loss({name: value.float() for name, value in half.items()}, features)
    assert all(torch.equal(one, other) for one, other in zip(losses, exact, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("name", ["logits", "objectness", "boxes"])
def test_numbers_out_of_range_stay_in_their_row(name: str, value: float) -> None:
    task = detector()
    features = task.encode(rows(3))
    good, bad = outputs_of(task, 3), outputs_of(task, 3)
    bad[name][1] = value
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in bad.items()}
    sums, counts = task.loss(leaves, features)
    expected, terms = task.loss(good, features)
    assert torch.equal(sums.detach()[[0, 2]], expected[[0, 2]])
    assert torch.equal(counts[[0, 2]], terms[[0, 2]])
    sums.sum().backward()
    assert all(tensor.grad is not None and tensor.grad[[0, 2]].isfinite().all() for tensor in leaves.values())
    answers = task.decode(bad, features, task.full)
    assert is_finite(answers[1]) == math.isfinite(value)
    assert [answers[0], answers[2]] == [task.decode(good, features, task.full)[row] for row in (0, 2)]


def test_one_adapters_nan_is_its_own(tmp_path: Path) -> None:
    base = load_base(BaseSpec(model=str(tiny(tmp_path / "tiny")), dtype="float32"))
    task = ObjectDetection(ObjectDetectionSpec(labels=LABELS), base.processor)
    engine = AdapterEngine(base, slots=2, max_rank=2, train=True)
    spec = LoraSpec(r=2, target_modules="all-convolutions")
    good, bad = (engine.init(spec, task.head, seed=seed) for seed in range(2))
    features = task.encode(rows(4))
    alone = predict(engine, {good: task}, features[::2], [good] * 2, [task.full] * 2)
    engine.write(bad, {key: torch.full_like(value, float("nan")) for key, value in engine.read(bad).items()})
    engine.refresh([bad])
    slots = [good, bad, good, bad]
    with pytest.raises(NotFiniteError) as caught:
        predict(engine, {good: task, bad: task}, features, slots, [task.full] * 4)
    assert caught.value.slots == {bad}
    ((_, outputs),) = engine.forward(task.collate(features), torch.tensor(slots))
    sums, _ = task.loss(outputs, features)
    assert sums.isfinite().tolist() == [True, False, True, False]
    sums.sum().backward()
    assert engine.grad[good].isfinite().all()
    assert engine.grad[good].any()
    assert all(grad[good].isfinite().all() for grad in engine.head_grad.values())
    assert predict(engine, {good: task}, features[::2], [good] * 2, [task.full] * 2) == alone
    engine.close()


# -------------------------------------------------------------------- answers


def slow_suppression(boxes: list[list[float]], labels: list[int], most: float) -> list[int]:
    kept: list[int] = []
    for at, box in enumerate(boxes):
        if all(labels[at] != labels[other] or shared_area(box, boxes[other]) <= most for other in kept):
            kept.append(at)
    return kept


@given(st.integers(0, 2**20), st.integers(0, 30), st.sampled_from([0.0, 0.2, 0.5, 0.65, 1.0]))
@settings(max_examples=60, deadline=None)
def test_suppression_is_the_slow_one(seed: int, count: int, most: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    boxes, labels = some_boxes(count, draw, (30, 30)), torch.randint(2, (count,), generator=draw)
    slow = slow_suppression(boxes.tolist(), labels.tolist(), most)
    assert keep_best(boxes, labels, most).tolist() == slow
    assert keep_best(boxes, labels, most, top_k=3).tolist() == slow[:3]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_boxes_come_back_from_the_letterbox(width: int, height: int, seed: int) -> None:
    _, inside = Letterbox(SIZE)(Image.new("RGB", (width, height)))
    draw = torch.Generator().manual_seed(seed)
    low, high = torch.rand(2, 3, 2, generator=draw, dtype=torch.float64).sort(0).values * torch.tensor([width, height])
    given = torch.cat([low, high - low], 1)
    there = in_input(given.tolist(), [width, height], inside)
    assert (there[:, 2] <= inside[0] + 1e-9).all()
    assert (there[:, 3] <= inside[1] + 1e-9).all()
    back = in_picture(there, [width, height], inside)
    torch.testing.assert_close(back, torch.cat([low, high], 1), atol=1e-9, rtol=0)


def planted(
    task: ObjectDetection, features: Sequence[Any], given: Sequence[Sequence[tuple[Any, ...]]]
) -> dict[str, Any]:
    """Outputs that have nothing but, for each picture, (anchor, label, chance of an object, box in the picture)."""
    count = len(features)
    outputs = {
        "logits": torch.full((count, 126, 3), -9.0),
        "objectness": torch.full((count, 126), -9.0),
        "boxes": torch.zeros(count, 126, 4),
    }
    for row, (one, things) in enumerate(zip(features, given, strict=True)):
        for anchor, label, chance, box in things:
            (left, top, right, bottom) = in_input([box], one["extent"], one["inside"])[0].tolist()
            stride, (x, y) = float(GRID.strides[anchor]), GRID.cells[anchor].tolist()
            middle = ((left + right) / 2 / stride - x, (top + bottom) / 2 / stride - y)
            size = (math.log((right - left) / stride), math.log((bottom - top) / stride))
            outputs["boxes"][row, anchor] = torch.tensor([*middle, *size])
            outputs["logits"][row, anchor, LABELS.index(label)] = 9.0
            outputs["objectness"][row, anchor] = math.log(chance / (1 - chance))
    return outputs


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_answers_are_in_each_callers_pixels() -> None:
    task = detector()
    features = task.encode([{"image": picture(*size)} for size in ((640, 480), (30, 200), (96, 64), (1000, 50))])
    outputs = planted(
        task,
        features,
        [
            [(3, "red", 0.9, [100, 40, 200, 120]), (50, "blue", 0.95, [0, 0, 640, 480])],
            [(7, "white", 0.7, [5, 150, 20, 50])],
            [],
            [(100, "red", 0.6, [900, 0, 99, 50]), (101, "red", 0.4, [0, 0, 99, 50])],
        ],
    )
    found = task.decode(outputs, features, {})
    boxes = [[(one["label"], tuple(one["box"].values())) for one in answer] for answer in found]
    assert boxes == [
        [("blue", (0, 0, 640, 480)), ("red", (100, 40, 300, 160))],
        [("white", (5, 150, 25, 200))],
        [],
        [("red", (900, 0, 999, 50))],
    ]
    one = found[0][1]
    assert list(one) == ["score", "label", "box"]
    assert list(one["box"]) == ["xmin", "ymin", "xmax", "ymax"]
    assert all(isinstance(value, int) for value in one["box"].values())
    assert one["score"] == pytest.approx(0.9, abs=1e-3)
    low = task.decode(outputs, features, {"threshold": 0.3})
    assert [len(answer) for answer in low] == [2, 1, 0, 2]
    assert [len(answer) for answer in task.decode(outputs, features, {"threshold": 0.3, "top_k": 1})] == [1, 1, 0, 1]
    exact = task.decode(outputs, features, {"rounded": False})[0][1]["box"]
    assert exact == pytest.approx({"xmin": 100, "ymin": 40, "xmax": 300, "ymax": 160}, abs=1e-3)
    assert all(isinstance(value, float) for value in exact.values())


def test_of_boxes_that_share_much_the_surest_of_its_label_is_answered() -> None:
    task = detector()
    features = task.encode([{"image": picture(96, 64)}])
    things = [
        (0, "red", 0.9, [10, 10, 40, 40]),
        (1, "red", 0.8, [12, 10, 40, 40]),  # shares 38 of 42 columns
        (2, "blue", 0.7, [12, 10, 40, 40]),
        (3, "red", 0.6, [40, 10, 40, 40]),
    ]
    outputs = planted(task, features, [things])

    def left(**parameters: Any) -> list[tuple[str, int]]:
        return [(one["label"], one["box"]["xmin"]) for one in task.decode(outputs, features, parameters)[0]]

    assert left() == [("red", 10), ("blue", 12), ("red", 40)]
    assert left(iou=0.95) == [("red", 10), ("red", 12), ("blue", 12), ("red", 40)]
    assert left(iou=0.0) == [("red", 10), ("blue", 12)]


def test_what_lies_in_the_margin_is_no_answer_and_edges_cut() -> None:
    task = detector()
    features = task.encode([{"image": picture(64, 64)}])  # 64 of 96 columns of the input
    outputs = planted(task, features, [[(0, "red", 0.9, [70, 10, 20, 20]), (1, "red", 0.8, [50, -9, 40, 40])]])
    (found,) = task.decode(outputs, features, task.full)
    sure = [one for one in found if one["score"] > 0.5]
    assert [one["box"] for one in sure] == [pytest.approx({"xmin": 50, "ymin": 0, "xmax": 64, "ymax": 31}, abs=1e-3)]


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"threshold": 1.5}, "threshold 1.5 must be a number from 0 to 1"),
        ({"threshold": True}, "threshold True must be"),
        ({"iou": "0.5"}, "iou '0.5' must be a number from 0 to 1"),
        ({"iou": -0.1}, "iou -0.1 must be"),
        ({"iou": float("nan")}, "iou nan must be"),
        ({"top_k": 0}, "top_k 0 must be a whole number of at least 1, or null for all"),
        ({"top_k": 2.5}, "top_k 2.5 must be"),
        ({"rounded": 1}, "rounded 1 must be true"),
        ({"nms": 0.5}, r"parameters \['nms'\] are not known to this task; it takes threshold, iou, top_k, rounded"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        detector().check_parameters(parameters)


def test_colours_reach_the_network_as_it_was_trained() -> None:
    image = Image.new("RGB", (96, 64), (200, 100, 50))
    (rgb,), (bgr,) = (detector(order=order).encode([{"image": image}]) for order in ("rgb", "bgr"))
    assert rgb["pixel_values"][:, 0, 0].tolist() == [200, 100, 50]
    assert torch.equal(bgr["pixel_values"], rgb["pixel_values"].flip(0))
    batch = detector().collate([rgb, bgr])["pixel_values"]
    assert batch.dtype == torch.float32
    assert batch.max() == 200


# -------------------------------------------------------------------- the measure


def test_the_measure_is_coco_s(capsys: pytest.CaptureFixture[str]) -> None:
    task, data = detector(), rows(8)
    features = task.encode(data)
    best = [best_answer(row) for row in data]
    assert task.score(best, features) == pytest.approx({"map": 1.0, "map_50": 1.0})
    assert task.score([[] for _ in data], features) == {"map": 0.0, "map_50": 0.0}
    assert capsys.readouterr().out == ""

    def moved(answer: Any, share: float) -> Any:
        """Boxes that overlap theirs by (1 - share) / (1 + share)."""
        return [
            one | {"box": one["box"] | {name: one["box"][name] + share * (one["box"]["xmax"] - one["box"]["xmin"])
                                        for name in ("xmin", "xmax")}}
            for one in answer
        ]  # fmt: skip

    shifted = task.score([moved(answer, 0.2) for answer in best], features)  # an IoU of 2/3: right at 0.5 to 0.65
    assert shifted == pytest.approx({"map": 0.4, "map_50": 1.0})
    wrong = [[one | {"label": "red"} for one in answer] for answer in best]
    assert task.score(wrong, features)["map"] < 0.5
    twice = [[*answer, *({**one, "score": 0.5} for one in answer)] for answer in best]
    assert task.score(twice, features)["map"] == pytest.approx(1.0)  # what comes after all objects costs nothing


def test_half_of_the_objects_is_half_of_the_measure() -> None:
    task = detector()
    whole = {"bbox": [[0.0, 0.0, 20.0, 20.0], [40.0, 0.0, 20.0, 20.0]], "category": ["red", "red"]}
    features = task.encode([{"image": picture(96, 64), "objects": whole}])
    one = best_answer({"objects": whole})[:1]
    assert task.score([one], features)["map_50"] == pytest.approx(51 / 101)  # recalls 0 to 0.5 of 101


def test_pictures_without_any_object_cannot_be_measured() -> None:
    task = detector()
    features = task.encode([{"image": picture(96, 64), "objects": {"bbox": [], "category": []}}])
    assert task.score([[]], features) == {"map": 0.0, "map_50": 0.0}
    assert task.score([best_answer(rows(1)[0])], features) == {"map": 0.0, "map_50": 0.0}


def test_figures_are_drawn_of_right_and_wrong(tmp_path: Path) -> None:
    task, data = detector(), rows(10)
    features = task.encode(data)
    answers = [best_answer(row) if at % 2 else [] for at, row in enumerate(data)]
    for predictions in (answers, [[] for _ in data]):
        figures = task.figures(predictions, features)
        assert set(figures) == {"boxes", "precision_recall"}
        for name, figure in figures.items():
            figure.savefig(tmp_path / f"{name}.png")
    colours = {
        patch.get_edgecolor() for axis in task.figures(answers, features)["boxes"].axes for patch in axis.patches
    }
    assert len(colours) == 2  # objects and right answers
    few = task.figures(answers[:1], features[:1])["boxes"]
    assert sum(bool(axis.images) for axis in few.axes) == 1


def test_answers_are_a_column_of_one_type() -> None:
    item = {"score": 0.5, "label": "red", "box": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}}
    for parameters, kind in (({}, pa.int64()), ({"rounded": False}, pa.float64())):
        columns = AnswerColumns(["object-detection"], parameters)
        assert columns.type.value_type.field("box").type.field("xmin").type == kind
        answers = [Answer(None, answer, pipeline="object-detection") for answer in ([item, item], [])]
        assert columns.of(["a", "a"], answers)["prediction"].to_pylist() == [[item, item], []]


# -------------------------------------------------------------------- rows

NUMBERS = st.one_of(
    st.floats(-20, 120, allow_nan=False),
    st.integers(-20, 120),
    st.sampled_from([math.nan, math.inf, None, "7", True, 0]),
)
BOXES = st.lists(
    st.one_of(st.lists(NUMBERS, min_size=4, max_size=4), st.lists(NUMBERS, max_size=5), st.none()), max_size=3
)


@given(BOXES, st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_a_box_is_right_or_an_error_of_ours(boxes: list[Any], categories: int) -> None:
    """What is taken has four finite numbers, a size, and after it is cut lies in its picture."""
    row = {"bbox": boxes, "category": ["red"] * categories}
    try:
        found, words = objects_of(row)
    except DataError:
        right = [
            isinstance(box, list)
            and len(box) == 4
            and all(type(value) in (int, float) and math.isfinite(value) for value in box)
            and box[0] + box[2] > box[0]
            and box[1] + box[3] > box[1]
            for box in boxes
        ]
        assert not all(right) or len(boxes) != categories
        return
    assert len(found) == len(words) == len(boxes)
    if outside(found, 100, 80) is None:
        for box in found:
            x, y, wide, high = clipped(box, 100, 80)
            assert x >= 0
            assert y >= 0
            assert x + wide <= 100 + 1e-9
            assert y + high <= 80 + 1e-9
            assert math.dist(box, [x, y, wide, high]) < 4
            assert min(wide, high) > 0
    else:
        edges = [(box[0], box[1], box[0] + box[2], box[1] + box[3]) for box in found]
        assert any(
            left < -1 or top < -1 or right > 101 or low > 81 or right <= 0 or low <= 0 or left >= 100 or top >= 80
            for left, top, right, low in edges
        )


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ([0, 0, 100, 80], True),
        ([-1, -1, 102, 82], True),
        ([-1.1, 0, 50, 50], False),
        ([0, -1.1, 50, 50], False),
        ([51.2, 0, 50, 50], False),
        ([0, 31.2, 50, 50], False),
        ([-0.9, 10, 0.8, 50], False),
        ([10, 80.1, 50, 0.5], False),
    ],
)
def test_every_edge_of_a_picture_counts(box: list[float], inside: bool) -> None:
    assert (outside([box], 100, 80) is None) == inside
    assert (outside([[1, 1, 5, 5], box], 100, 80) is None) == inside


def test_objects_come_in_either_of_their_shapes() -> None:
    boxes, words = [[1, 2, 3.5, 4], [5, 6, 7, 8]], ["red", "blue"]
    columns = {"id": [1, 2], "area": [14, 56], "bbox": boxes, "category": words, "iscrowd": [0, 0]}
    listed = [{"bbox": box, "category": word, "id": 1} for box, word in zip(boxes, words, strict=True)]
    assert objects_of(columns) == objects_of(listed) == ([[1.0, 2.0, 3.5, 4.0], [5.0, 6.0, 7.0, 8.0]], words)
    assert objects_of([]) == objects_of({"bbox": [], "category": []}) == ([], [])
    for wrong in ({}, {"bbox": boxes}, [{"bbox": boxes[0]}], "red", 7, {"bbox": boxes, "category": None}, [3]):
        with pytest.raises(DataError, match="are no boxes with categories; give"):
            objects_of(wrong)
    for box in ([1, 1, 0, 5], [1, 1, 5, 0], [1, 1, -2, 5]):
        with pytest.raises(DataError, match="has no area"):
            objects_of({"bbox": [box], "category": ["red"]})
    for crowd in (columns | {"iscrowd": [0, 1]}, [listed[0], listed[1] | {"iscrowd": True}]):
        assert objects_of(crowd) == (boxes[:1], words[:1])
        assert objects_of(crowd, crowds=True) == (boxes[1:], words[1:])
    for told in ([0], [0, 2], "no"):
        with pytest.raises(DataError, match="give 0 or 1 for each box"):
            objects_of(columns | {"iscrowd": told})


def test_rounding_may_lead_out_of_a_picture_by_less_than_a_pixel() -> None:
    row = {"image": picture(96, 64), "objects": {"bbox": [[-0.5, 10.0, 97.0, 54.6]], "category": ["red"]}}
    table = pa.Table.from_pylist([row])
    task = detector()
    assert list(ObjectDetection.check(task.spec, table)) == []
    assert task.encode([row])[0]["boxes"] == [pytest.approx([0.0, 10.0, 96.0, 54.0])]


def test_labels_are_taught_by_the_objects() -> None:
    data = rows(16)
    table = pa.Table.from_pylist(data)
    spec = ObjectDetection.merge(ObjectDetectionSpec(), [ObjectDetection.learn(ObjectDetectionSpec(), table)])
    assert spec.model_dump() == {"type": "object-detection", "labels": LABELS}
    assert (spec.outputs, spec.describe()) == (3, {"labels": list(LABELS)})
    single = [row | {"objects": row["objects"] | {"category": ["thing"] * len(row["objects"]["bbox"])}} for row in data]
    taught = ObjectDetection.learn(ObjectDetectionSpec(), pa.Table.from_pylist(single))
    assert ObjectDetection.merge(ObjectDetectionSpec(), [taught]).outputs == 1
    with pytest.raises(DataError, match=r"have 0 different labels .* at least 1 is needed"):
        ObjectDetection.merge(ObjectDetectionSpec(), [([], [])])
    assert ObjectDetectionSpec(labels=("thing",)).outputs == 1
    with pytest.raises(ValueError, match="at least one word"):
        ObjectDetectionSpec(labels=())
    indexed = {"image": picture(96, 64), "objects": {"bbox": [[1, 1, 5, 5]], "category": [2]}}
    assert detector().encode([indexed])[0]["classes"] == [2]


def test_it_asks_for_a_base_that_can() -> None:
    with pytest.raises(RecipeError, match="needs a YOLOX as its base, such as yolox-tiny"):
        ObjectDetection(ObjectDetectionSpec(labels=LABELS), None)
    told = plain_spec(HeadSpec("AutoModelForObjectDetection", 2))
    assert told == ObjectDetectionSpec(labels=("LABEL_0", "LABEL_1"))


# -------------------------------------------------------------------- trained


def test_its_head_is_not_fitted_before() -> None:
    features = detector().encode(rows(2))
    split = Split(dict(enumerate(features)), 2)
    spec = ObjectDetectionSpec(labels=LABELS)
    for start, fitted in (("auto", False), ("random", False), ("fitted", True)):
        job = Job("a", "rows", spec, LoraSpec(), TrainingSpec(head_start=start))
        assert fits(job, Splits(split, split)) == fitted
        assert say_start(job, Splits(split, None)) == []


def test_a_base_of_half_precision_answers_as_one_of_single(tmp_path: Path) -> None:
    folder, found = tiny(tmp_path / "tiny"), []
    for dtype in ("float32", "bfloat16"):
        base = load_base(BaseSpec(model=str(folder), dtype=dtype))
        task = ObjectDetection(ObjectDetectionSpec(labels=LABELS), base.processor)
        features = task.encode(rows(4))
        engine = AdapterEngine(base, slots=1, max_rank=2, train=True)
        slot = engine.init(LoraSpec(r=2, target_modules=("lateral_conv0.conv",)), task.head, seed=0)
        ((_, outputs),) = engine.forward(task.collate(features), torch.tensor([slot] * 4))
        losses, _ = task.loss(outputs, features)
        losses.sum().backward()
        assert losses.dtype == torch.float32
        assert engine.grad[slot].isfinite().all()
        assert engine.grad[slot].any()
        found.append(losses.detach())
        engine.close()
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.05)
    assert not torch.equal(found[1], found[0])


def test_it_learns_and_opens_in_plain_peft(tmp_path: Path) -> None:
    """LoRA on every convolution and its own prediction layers."""
    folder = tiny(tmp_path / "tiny")
    base = load_base(BaseSpec(model=str(folder), dtype="float32"))
    task = ObjectDetection(ObjectDetectionSpec(labels=LABELS), base.processor)
    features = task.encode(rows(6))
    split = Split(dict(enumerate(features)), len(features))
    pack = WatchedPack(AdapterEngine(base, slots=1, max_rank=8, train=True), {"rows": Splits(split, split)})
    lora = LoraSpec(r=4, target_modules="all-convolutions")
    training = TrainingSpec(
        max_steps=120,
        learning_rate=5e-3,
        per_device_train_batch_size=6,
        logging_steps=1,
        eval_steps=120,
        warmup_steps=5,
    )
    slot = pack.join(Job("a", "rows", task.spec, lora, training))
    reports = []
    exported = None
    while pack.members:
        exported = pack.engine.export(slot)
        reports += pack.step()
    pack.engine.close()
    assert reports[-1].loss < 0.6 * reports[0].loss
    assert reports[-1].metrics["map_50"] > 0.1
    assert exported is not None
    exported.save(tmp_path / "adapter")
    engine = AdapterEngine(load_base(BaseSpec(model=str(folder), dtype="float32")), slots=1, max_rank=8)
    here = engine.load(exported)
    with quiet_peft(), warnings.catch_warnings():
        model: Any = PeftModel.from_pretrained(plain(folder), str(tmp_path / "adapter")).eval()
    ((_, ours),) = engine.forward(task.collate(features), torch.tensor([here] * 6))
    theirs = model(**task.collate(features))
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name], values, atol=1e-4, rtol=1e-4)
    engine.close()
