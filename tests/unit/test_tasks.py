"""Our tasks answer in the words and numbers of the Hugging Face pipeline; the checks find what breaks a rule."""

from __future__ import annotations

import base64
import datetime
import io
import json
import pickle
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from transformers import ViTImageProcessor, pipeline
from transformers.image_utils import load_image

from ray_lora.bases.load import Base
from ray_lora.bases.positions import limit, positions_of
from ray_lora.engine import AdapterEngine, HeadSpec
from ray_lora.errors import DataError, RecipeError
from ray_lora.inference.predict import by_tokens, chunks, embed, predict
from ray_lora.recipe import LoraSpec, Recipe, TaskSpec
from ray_lora.tasks import Row, Task, build_task, plain_spec, row_of
from ray_lora.tasks.classification import agreement
from ray_lora.tasks.image_classification import ImageClassificationSpec
from ray_lora.tasks.images import open_picture
from ray_lora.tasks.labels import Learnt, label_index, learnt
from ray_lora.tasks.text_classification import TextClassificationSpec
from tests.conformance import check_task
from tests.conftest import sentences
from tests.unit.bases import IMAGE, open_base, plain, quiet_peft, reopen, save_base
from tests.unit.cases import LABELS, image_rows, picture, png, text_rows


@pytest.fixture
def text_base(tiny_bert_folder: Path) -> Base:
    return open_base(tiny_bert_folder, torch.float64)


@pytest.fixture(scope="module")
def resnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_base("resnet", tmp_path_factory.mktemp("bases") / "resnet")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture
def image_base(resnet_folder: Path) -> Base:
    return open_base(resnet_folder, torch.float64)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[AdapterEngine]:
    """An engine on the base whose fixture is named by the parameter."""
    engine = AdapterEngine(request.getfixturevalue(request.param), slots=2, max_rank=8, train=True)
    yield engine
    engine.close()


CASES: dict[str, tuple[str, list[Row]]] = {
    "text-classification": ("text_base", text_rows()),
    "image-classification": ("image_base", image_rows()),
}


class _Broken:
    """A task that breaks one rule."""

    def __init__(self, task: Task, **changes: Any) -> None:
        self._task = task
        self.__dict__ |= changes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


@pytest.mark.parametrize("engine", ["text_base"], indirect=True)
@pytest.mark.parametrize(
    ("rule", "found_by"),
    [
        ("order", "check_encoding"),
        ("no target", "check_encoding"),
        ("longest", "check_batches"),
        ("last block", "check_blocks"),
        ("every row is wrong", "check_blocks"),
        ("objects", "check_kept"),
        ("rows of the loss", "losses_of"),
        ("neighbours", "check_loss"),
        ("padding", "check_loss"),
        ("no JSON", "check_answers"),
        ("a metric", "check_scores"),
        ("direction", "check_scores"),
        ("figures", "check_scores"),
        ("parameters", "check_answers"),
    ],
)
def test_the_check_finds_a_task_that_breaks_a_rule(
    engine: AdapterEngine, rule: str, found_by: str, tmp_path: Path
) -> None:
    task = build_task(TextClassificationSpec(labels=LABELS), engine.base.processor)

    def mean_loss(outputs: Any, features: Any) -> Any:
        sums, counts = task.loss(outputs, features)
        return sums.mean(), counts

    def shared_loss(outputs: Any, features: Any) -> Any:
        sums, counts = task.loss(outputs, features)
        return sums / len(sums), counts

    def no_mask(features: Any) -> Any:
        batch = task.collate(features)
        return batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}

    changes: dict[str, dict[str, Any]] = {
        "order": {"encode": lambda rows: task.encode(rows)[::-1]},
        "no target": {"encode": lambda rows: task.encode([{"text": row["text"]} for row in rows])},
        "objects": {"encode": lambda rows: [row | {"of": object} for row in task.encode(rows)]},
        "longest": {"longest": 2},
        "last block": {"merge": lambda spec, learned: task.merge(spec, [list(learned)[-1]])},
        "every row is wrong": {"check": lambda spec, block: ((row, "wrong") for row in range(block.num_rows))},
        "figures": {"figures": lambda *given: {"a": "picture"}},
        "rows of the loss": {"loss": mean_loss},
        "neighbours": {"loss": shared_loss},
        "padding": {"collate": no_mask},
        "no JSON": {"decode": lambda *given: [{"label": "no", "score": torch.tensor(1.0)} for _ in given[1]]},
        "a metric": {"score": lambda *given: {"accuracy": task.score(*given)["accuracy"]}},
        "direction": {"metrics": {"accuracy": "min", "f1_macro": "max"}},
        "parameters": {"decode": lambda outputs, features, _: task.decode(outputs, features, {})},
    }
    broken: Any = _Broken(task, **changes[rule])
    with pytest.raises((AssertionError, TypeError, IndexError, DataError, pytest.fail.Exception)) as caught:
        check_task(broken, text_rows(), engine, lambda row: {"label": row["label"], "score": 1.0}, tmp_path)
    assert found_by in [entry.name for entry in caught.traceback]


# -------------------------------------------------------------------- the pipeline's words and numbers


@pytest.mark.parametrize("parameters", [{}, {"top_k": 1}, {"top_k": 2}, {"top_k": 99}, {"function_to_apply": "none"}])
@pytest.mark.parametrize(
    ("kind", "engine", "rows"), [(kind, base, rows) for kind, (base, rows) in CASES.items()], indirect=["engine"]
)
def test_answers_are_those_of_the_pipeline(
    kind: Any, engine: AdapterEngine, rows: list[Row], parameters: dict[str, Any], tmp_path: Path
) -> None:
    task = build_task(TaskSpec.model_validate({"type": kind, "labels": LABELS}), engine.base.processor)
    targets = tuple(name for name, layer in engine.layers.items() if not layer.embedding)[:2]
    slot = engine.init(LoraSpec(r=2, target_modules=targets), task.head, seed=1, peft_type=task.peft_type)
    engine.write(
        slot,
        {
            key: value + 0.2 * torch.sin(torch.arange(value.numel())).reshape(value.shape)
            for key, value in engine.read(slot).items()
        },
    )
    ours = predict(engine, {slot: task}, task.encode(rows), [slot] * len(rows), [parameters] * len(rows))
    engine.export(slot).save(tmp_path / "a")
    options = {"architecture": IMAGE} if kind.startswith("image") else {}
    with quiet_peft():
        model = reopen(engine.base.folder, tmp_path / "a", 3, **options).merge_and_unload().eval()
        model.config.id2label = dict(enumerate(LABELS))
        if kind.startswith("image"):
            pipe = pipeline(task.pipeline, model=model, image_processor=engine.base.processor)
            inputs: list[Any] = [Image.open(io.BytesIO(row["image"])) for row in rows]
            asked = {"top_k": 1} | parameters
        else:
            pipe = pipeline(task.pipeline, model=model, tokenizer=engine.base.processor)
            inputs, asked = [row["text"] for row in rows], parameters
        theirs = [pipe(one, **asked) for one in inputs]
    for mine, other in zip(ours, theirs, strict=True):
        listed = mine if isinstance(mine, list) else [mine]
        assert isinstance(mine, list) == ("top_k" in parameters)
        assert [answer["label"] for answer in listed] == [answer["label"] for answer in other]
        assert [answer["score"] for answer in listed] == pytest.approx([a["score"] for a in other], abs=1e-4)


@pytest.mark.parametrize("engine", ["text_base"], indirect=True)
def test_sigmoid_and_wrong_parameters(engine: AdapterEngine) -> None:
    task = build_task(TextClassificationSpec(labels=LABELS), engine.base.processor)
    slot = engine.init(LoraSpec(r=2), task.head, seed=1)
    features = task.encode(text_rows())

    def ask(**parameters: Any) -> Any:
        return predict(engine, {slot: task}, features[:1], [slot], [parameters])[0]

    (sigmoid, none), softmax = (ask(function_to_apply=name) for name in ("sigmoid", "none")), ask()
    assert sigmoid["score"] == pytest.approx(torch.tensor(none["score"]).sigmoid().item(), abs=1e-6)
    assert sigmoid["label"] == none["label"] == softmax["label"]
    for wrong in ({"top_k": 0}, {"top_k": "2"}, {"top_k": True}, {"top_k": 1.5}):
        with pytest.raises(RecipeError, match=r"top_k .* must be a whole number of at least 1"):
            ask(**wrong)
    with pytest.raises(RecipeError, match="function_to_apply 'tanh' must be one of softmax, sigmoid, none"):
        ask(function_to_apply="tanh")
    with pytest.raises(RecipeError, match="it takes function_to_apply and top_k"):
        ask(return_all_scores=True)


@pytest.mark.parametrize("engine", ["text_base"], indirect=True)
def test_rows_of_two_tasks_share_a_pass_and_keep_their_own_answers(engine: AdapterEngine) -> None:
    tasks, slots = {}, []
    engine.reserve_head(build_task(TextClassificationSpec(labels=LABELS), engine.base.processor).head)
    for labels in (("a", "b", "c"), ("x", "y", "z")):  # heads of one size, other words
        task = build_task(TextClassificationSpec(labels=labels), engine.base.processor)
        slot = engine.init(LoraSpec(r=2), task.head, seed=len(slots))
        engine.write(slot, {key: value + 0.1 * slot for key, value in engine.read(slot).items()})
        tasks[slot] = task
        slots.append(slot)
    features = next(iter(tasks.values())).encode([{"text": text} for text in sentences(6)])
    owners = [slots[row % 2] for row in range(6)]
    asked: list[dict[str, Any]] = [{"top_k": 3} if row % 3 else {} for row in range(6)]
    together = predict(engine, tasks, features, owners, asked)
    for row, owner in enumerate(owners):
        (alone,) = predict(engine, tasks, [features[row]], [owner], [asked[row]])
        for mine, other in zip(*[[a] if isinstance(a, dict) else a for a in (together[row], alone)], strict=True):
            assert mine["label"] == other["label"]
            assert mine["label"] in tasks[owner].spec.labels  # type: ignore[operator]
            assert mine["score"] == pytest.approx(other["score"], abs=1e-9)
        assert isinstance(together[row], list) == ("top_k" in asked[row])


# -------------------------------------------------------------------- rows that cannot be read


def test_texts_are_cut_and_bad_rows_named(text_base: Base) -> None:
    task = build_task(TextClassificationSpec(labels=LABELS, max_length=6), text_base.processor)
    (long,) = task.encode([{"text": "film " * 50}])
    assert task.size(long) == 6
    for text in ("", "  ", None, 3, ["film"]):
        with pytest.raises(DataError, match="is empty or not a string; give a non-empty string"):
            task.encode([{"text": text}])
    assert [
        row["labels"] for row in task.encode([{"text": "x", "label": label} for label in (0, "yes", np.int64(1))])
    ] == [*(0, 2, 1)]
    for label in ("yess", 3, -1, True, 1.0, "1"):
        with pytest.raises(DataError, match="is not one of 'no', 'perhaps', 'yes' nor an index below 3"):
            task.encode([{"text": "x", "label": label}])
    with pytest.raises(DataError, match="did you mean 'yes'"):
        task.encode([{"text": "x", "label": "yess"}])


def test_images_come_as_bytes_text_or_pictures_and_bad_ones_are_named(image_base: Base) -> None:
    task = build_task(ImageClassificationSpec(labels=LABELS), image_base.processor)
    data = png(picture(0))
    text = base64.b64encode(data).decode()
    forms = [data, text, picture(0), bytearray(data), picture(0).convert("RGBA")]
    forms += [{"bytes": data, "path": None}, {"bytes": text, "path": "a.png"}]  # as `datasets` writes images
    pixels = [feature["pixel_values"] for feature in task.encode([{"image": form} for form in forms])]
    assert pixels[0].shape == (3, 16, 16)
    assert all(torch.equal(other, pixels[0]) for other in pixels)
    for broken in (
        b"",
        b"hello",
        data[: len(data) // 2],
        "not base64!",
        "aGVsbG8=",
        None,
        10**12,
        [1, 2],
        {"bytes": None, "path": "a.png"},
        {"path": "a.png"},
    ):
        with pytest.raises(DataError, match="give PNG or JPEG bytes, or base64 text of them"):
            task.encode([{"image": broken}])


def test_a_task_refuses_a_base_of_another_kind(text_base: Base, image_base: Base) -> None:
    with pytest.raises(RecipeError, match="needs a base with a tokenizer"):
        build_task(TextClassificationSpec(labels=LABELS), image_base.processor)
    with pytest.raises(RecipeError, match="needs a base with a tokenizer"):
        build_task(TextClassificationSpec(labels=LABELS), None)
    for processor in (text_base.processor, None):
        with pytest.raises(RecipeError, match="needs a base with an image processor"):
            build_task(ImageClassificationSpec(labels=LABELS), processor)
    with pytest.raises(RecipeError, match=r"task\.labels is not set"):
        build_task(TextClassificationSpec(), text_base.processor)


# -------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "value", "index"),
    [
        (("0", "1", "10", "2"), 2, 3),  # the word, not the index
        (("1", "2", "3"), 1, 0),
        (("1", "2", "3"), np.int64(3), 2),
        (("-1", "1"), -1, 0),
        (("False", "True"), True, 1),
        (("0.0", "1.0"), 1.0, 1),
        (("0.1", "0.5"), Decimal("0.5"), 1),
        (("2024-01-01", "2024-01-02"), datetime.date(2024, 1, 2), 1),
        (("2024-01-01 10:00:00", "x"), datetime.datetime(2024, 1, 1, 10), 0),
        (("negative", "positive"), 1, 1),  # an index
        (("nan", "inf"), 1, 1),
    ],
)
def test_a_label_is_its_word_else_an_index(labels: tuple[str, ...], value: Any, index: int) -> None:
    assert label_index(value, labels) == index


@pytest.mark.parametrize(
    ("labels", "value"),
    [
        (("1", "2", "3"), 0),  # labels that are numbers have no other numbers
        (("0", "many"), 1),
        (("01", "x"), 1),
        (("1.0", "2.0"), 1),
        (("0", "1"), 1.0),
        (("0", "1"), True),
        (("true", "false"), True),
        (Learnt(("a", "b")), 1),  # nobody chose their order
        (("a", "b"), b"a"),
        (("a", "b"), ["a"]),
        (("a", "b"), {"a": 1}),
        (("a", "b"), float("nan")),
        (("a", "inf"), float("inf")),
        (("a", " "), " "),
        (("a", "b\0"), "b\0"),
    ],
)
def test_what_is_no_label_is_named(labels: tuple[str, ...], value: Any) -> None:
    with pytest.raises(DataError, match=f"label {re.escape(repr(value))}"):
        label_index(value, labels)


def test_labels_are_learnt_in_their_order() -> None:
    assert learnt({str(number) for number in range(-2, 12)}) == tuple(str(number) for number in range(-2, 12))
    assert learnt(["b", "10", "2"]) == ("10", "2", "b")
    assert learnt(["02", "10", "1"]) == ("02", "1", "10")
    assert pickle.loads(pickle.dumps(learnt("ab"))).__class__ is Learnt
    spec = TextClassificationSpec().model_copy(update={"labels": learnt("ab")})
    assert TaskSpec.recall(json.loads(spec.model_dump_json())) == spec
    assert hash(spec) == hash(TextClassificationSpec(labels=("a", "b")))


@pytest.mark.parametrize("written", ["[no, yes]", "[1, 2]", "[0.5, a]", "[2024-01-01, b]", "[a, null]"])
def test_labels_that_yaml_reads_as_something_else_are_one_error(written: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"task: {{labels: {written}}}\n")
    with pytest.raises(RecipeError, match=r"^task\.labels: labels are words, .* put each in quotes") as caught:
        Recipe.load(tmp_path / "recipe.yaml")
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------- lengths


def test_texts_are_no_longer_than_the_bases_positions(text_base: Base, tmp_path: Path) -> None:
    assert text_base.processor.positions == 64
    with pytest.raises(RecipeError, match=r"task\.max_length is 512, the base has 64 positions; set it to 64 or less"):
        build_task(TextClassificationSpec(labels=LABELS, max_length=512), text_base.processor)
    engine = AdapterEngine(text_base, slots=1, max_rank=2)
    for asked, longest in ((64, 64), (9, 9), (128, 64), (None, 64)):  # 128 is what nobody wrote: it gives way
        task = build_task(TextClassificationSpec(labels=LABELS, max_length=asked), text_base.processor)
        slot = engine.init(LoraSpec(r=2), task.head, seed=0)
        rows = task.encode([{"text": "good " * 99}, {"text": "good " * (longest - 2)}])
        assert [task.size(row) for row in rows] == [longest, longest] == [task.longest] * 2
        what = "what the base takes" if asked in (128, None) else "task.max_length"
        assert [row.get("cut") for row in rows] == [f"longer than {what}, {longest} tokens,", None]
        assert len(predict(engine, {slot: task}, rows, [slot, slot])) == 2
        engine.evict(slot)


@pytest.mark.parametrize(("kind", "positions"), [("bert", 40), ("roberta", 41), ("gpt2", 40), ("llama", None)])
def test_the_longest_row_that_a_base_takes(kind: str, positions: int | None, tmp_path: Path) -> None:
    model = plain(save_base(kind, tmp_path / kind))
    assert positions_of(model, model.config) == positions
    model(input_ids=torch.full((1, positions or 99), 5))
    if positions is not None:
        with pytest.raises((RuntimeError, IndexError)):
            model(input_ids=torch.full((1, positions + 1), 5))
    tokenizer = SimpleNamespace(model_max_length=int(1e30))
    limit(tokenizer, model, model.config)
    assert (tokenizer.positions, tokenizer.model_max_length) == (positions, positions or 40)


def test_a_folder_without_a_card_takes_what_its_base_takes(text_base: Base) -> None:
    spec = plain_spec(HeadSpec("AutoModelForSequenceClassification", 2))
    assert spec is not None
    assert build_task(spec, text_base.processor).longest == 64
    assert build_task(spec, _Codes()).longest > 10**6


# -------------------------------------------------------------------- images as they are meant


def photo(kind: str, orientation: int | None = None, **options: Any) -> bytes:
    exif, buffer = Image.Exif(), io.BytesIO()
    if orientation is not None:
        exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(options.pop("mode", "RGB")).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_upright_as_transformers_sees_them(kind: str, orientation: int | None) -> None:
    data = photo(kind, orientation)
    right = np.asarray(load_image(Image.open(io.BytesIO(data))))
    for form in (data, base64.b64encode(data).decode(), Image.open(io.BytesIO(data)), {"bytes": data, "path": "a"}):
        assert np.array_equal(np.asarray(open_picture(form)), right)


@pytest.mark.parametrize(
    "data",
    [
        photo("JPEG", 6, mode="CMYK"),
        photo("PNG", mode="L"),
        photo("PNG", mode="1"),
        photo("PNG", mode="LA"),
        photo("PNG", mode="RGBA"),
        photo("PNG", mode="P", transparency=3),
        photo("GIF", mode="P", transparency=3),
    ],
)
def test_images_of_other_colours_are_as_transformers_sees_them(data: bytes) -> None:
    assert np.array_equal(np.asarray(open_picture(data)), np.asarray(load_image(Image.open(io.BytesIO(data)))))


def test_a_palette_with_many_alphas_is_read_without_a_warning() -> None:
    data = photo("PNG", mode="P", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        right = np.asarray(load_image(Image.open(io.BytesIO(data))))
    assert np.array_equal(np.asarray(open_picture(data)), right)


@pytest.mark.parametrize(
    ("kind", "said"), [("uint16", "16 bits or more"), ("int32", "16 bits"), ("float32", "fractions")]
)
def test_images_that_eight_bits_cannot_hold_are_refused(kind: str, said: str) -> None:
    image, buffer = Image.fromarray((np.arange(64).reshape(8, 8) * 900).astype(kind)), io.BytesIO()
    image.save(buffer, "TIFF")
    for form in (image, buffer.getvalue()):
        with pytest.raises(DataError, match=f"its pixels are .*{said}.* scale it to 8 bits"):
            open_picture(form)


def test_images_that_are_too_large_or_torn_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torn = Image.open(io.BytesIO(photo("PNG")[:-60]))  # opens, and breaks when it is read
    with pytest.raises(DataError, match="an image cannot be read"):
        open_picture(torn)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all that Pillow does up to twice as many
        with pytest.raises(DataError, match="30 by 20 pixels; scale it down"):
            open_picture(photo("PNG"))


def test_an_image_struct_is_a_requests_value(image_base: Base) -> None:
    task = build_task(ImageClassificationSpec(labels=LABELS), image_base.processor)
    value = {"bytes": base64.b64encode(photo("JPEG")).decode(), "path": None}
    assert row_of(task, value) == row_of(task, {"image": value}) == {"image": value}
    assert len(task.encode([row_of(task, value)])) == 1


# -------------------------------------------------------------------- passes


@pytest.mark.parametrize("max_rows", [1, 3, 100])
def test_passes_hold_every_row_once_in_ascending_slots(text_base: Base, max_rows: int) -> None:
    task = build_task(TextClassificationSpec(labels=LABELS), text_base.processor)
    features = task.encode([{"text": text} for text in sentences(40, longest=20)])
    slots = [row * 7 % 5 for row in range(40)]
    found = [task.size(feature) for feature in features]
    passes = chunks(found, slots, max_rows)
    assert sorted(row for rows in passes for row in rows) == list(range(40))
    assert max(map(len, passes)) <= max_rows
    assert all([slots[row] for row in rows] == sorted(slots[row] for row in rows) for rows in passes)
    assert chunks([], [], max_rows) == []
    sizes = sorted(sorted(found[row] for row in rows) for rows in passes)
    assert all(before[-1] <= after[0] for before, after in pairwise(sizes))  # like sizes together


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), max_size=60), st.integers(30, 90))
def test_passes_of_joined_rows_hold_so_many_tokens(rows: list[tuple[int, int]], most: int) -> None:
    sizes, slots = [size for size, _ in rows], [slot for _, slot in rows]
    passes = by_tokens(sizes, slots, most)
    assert sorted(row for held in passes for row in held) == list(range(len(rows)))
    assert all(held for held in passes)
    assert all(len(held) == 1 or sum(sizes[row] for row in held) <= most for held in passes)
    order = [slots[row] for held in passes for row in held]
    assert order == sorted(order)
    assert len(passes) <= 2 * -(-sum(sizes) // most) + 1


@pytest.mark.parametrize("engine", ["text_base"], indirect=True)
def test_embeddings_are_means_over_tokens(engine: AdapterEngine) -> None:
    task = build_task(TextClassificationSpec(labels=LABELS), engine.base.processor)
    features = task.encode([{"text": text} for text in sentences(4)])
    pooled = embed(engine, task.collate(features))
    model = plain(engine.base.folder, dtype=torch.float64)
    for row, feature in enumerate(features):
        hidden = model(input_ids=torch.tensor([feature["input_ids"]])).last_hidden_state[0]
        torch.testing.assert_close(pooled[row], hidden.mean(0).float(), atol=1e-6, rtol=1e-5)
    assert pooled.dtype == torch.float32
    slot = engine.init(LoraSpec(r=2), None, seed=0)
    engine.write(slot, {key: value + 0.1 for key, value in engine.read(slot).items()})
    mixed = embed(engine, task.collate(features), [0, slot, 0, slot])
    torch.testing.assert_close(mixed[[0, 2]], pooled[[0, 2]])
    assert not torch.isclose(mixed[[1, 3]], pooled[[1, 3]]).all(1).any()


@pytest.mark.parametrize("engine", ["image_base"], indirect=True)
def test_embeddings_of_images_are_means_over_places(engine: AdapterEngine) -> None:
    pixels = {"pixel_values": torch.randn(3, 3, 16, 16)}
    pooled = embed(engine, pixels)
    hidden = engine.base.backbone(pixels["pixel_values"].double()).last_hidden_state
    torch.testing.assert_close(pooled, hidden.mean((2, 3)).float())


def test_a_decoder_without_a_padding_token_is_pooled_at_its_last_token(tmp_path: Path) -> None:
    """The plain class takes such rows one at a time; here they share a pass."""
    folder = save_base("llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text()) | {"pad_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    base = replace(open_base(folder, torch.float64), processor=_Codes())
    assert base.config.pad_token_id is None
    task = build_task(TextClassificationSpec(labels=LABELS), base.processor)
    engine = AdapterEngine(base, slots=1, max_rank=4)
    slot = engine.init(LoraSpec(r=4), task.head, seed=0, peft_type="SEQ_CLS")
    engine.write(slot, {key: value + 0.1 for key, value in engine.read(slot).items()})
    engine.export(slot).save(tmp_path / "a")
    model = reopen(folder, tmp_path / "a", 3)
    texts = ["abc", "z", "hello there"]
    features = task.encode([{"text": text} for text in texts])
    answers = predict(engine, {slot: task}, features, [slot] * 3, [{"function_to_apply": "none", "top_k": 3}] * 3)
    for feature, answer in zip(features, answers, strict=True):
        logits = model(input_ids=torch.tensor([feature["input_ids"]])).logits[0]
        assert {a["label"]: a["score"] for a in answer} == pytest.approx(
            dict(zip(LABELS, logits.tolist(), strict=True)), abs=1e-4
        )


class _Codes:
    """A tokenizer that has no padding token."""

    pad_token_id = None

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) % 59 for letter in text] for text in texts]}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_agreement_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    truth, guess = map(list, zip(*pairs, strict=True))
    assert agreement(truth, guess, 5) == {
        "accuracy": pytest.approx(accuracy_score(truth, guess)),
        "f1_macro": pytest.approx(f1_score(truth, guess, average="macro", zero_division=0.0)),
    }
