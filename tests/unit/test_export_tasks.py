"""Bundles of each task and base: mixed rows as each alone, merged, and by the runner without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, ConvNextImageProcessor, RobertaConfig, RobertaModel, ViTImageProcessor

from ray_lora.bases.efficientnet.config import EfficientNetConfig
from ray_lora.bases.efficientnet.folder import save_untrained
from ray_lora.errors import RecipeError
from ray_lora.export.edge.runner import Bundle
from ray_lora.export.exporting import export_refs
from ray_lora.recipe import LoraSpec, TaskSpec
from ray_lora.tasks.image_classification import ImageClassificationSpec
from ray_lora.tasks.question_answering import QuestionAnsweringSpec
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.tasks.token_classification import TokenClassificationSpec
from tests.conftest import sentences
from tests.unit.bases import save_base
from tests.unit.cases import picture, png
from tests.unit.exported import like, put, run_there, said

TEXTS = [*sentences(8, seed=5), "Good unheard of, w7 bad!"]


@dataclass(frozen=True)
class Told:
    """Two adapters of one task on one base, and what they are asked."""

    base: str
    specs: tuple[TaskSpec, TaskSpec]
    loras: tuple[LoraSpec, LoraSpec]
    inputs: Sequence[Any]


ENCODER = (LoraSpec(r=4), LoraSpec(r=2, target_modules=("query", "value")))
CONVOLUTIONS = (LoraSpec(r=4, target_modules="all-convolutions"), LoraSpec(r=2, target_modules="all-convolutions"))
DEPTHWISE = (
    LoraSpec(r=4, target_modules=("_depthwise_conv", "_conv_head")),
    LoraSpec(r=2, target_modules=("_depthwise_conv",)),
)
_TAGS = TokenClassificationSpec
_ASKED = [{"question": one, "context": f"{other} of the Sad, unheard film"} for one, other in zip(TEXTS, TEXTS[::-1])]  # noqa: B905
_FEW, _MANY = ("no", "yes"), ("a", "b", "c")
TOLD = {
    "texts on RoBERTa": Told(
        "roberta", (TextClassificationSpec(labels=_FEW), TextClassificationSpec(labels=_MANY)), ENCODER, TEXTS
    ),
    "words": Told("bert", (_TAGS(labels=("O", "B-x", "I-x")), _TAGS(labels=("x", "O"), max_length=6)), ENCODER, TEXTS),
    "questions": Told(
        "bert",
        (QuestionAnsweringSpec(max_answer_len=3), QuestionAnsweringSpec(handle_impossible_answer=True)),
        ENCODER,
        _ASKED,
    ),
    "pictures on ResNet": Told(
        "resnet", (ImageClassificationSpec(labels=_FEW), ImageClassificationSpec(labels=_MANY)), CONVOLUTIONS, ()
    ),
    "pictures cropped": Told(
        "convnext", (ImageClassificationSpec(labels=_FEW), ImageClassificationSpec(labels=_MANY)), CONVOLUTIONS, ()
    ),
    "pictures on EfficientNet": Told(
        "lite", (ImageClassificationSpec(labels=_FEW), ImageClassificationSpec(labels=_MANY)), DEPTHWISE, ()
    ),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_bert_folder: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_folder)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=66, pad_token_id=0, type_vocab_size=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        RobertaModel(config).save_pretrained(folder / "roberta")
    tokenizer.save_pretrained(folder / "roberta")
    for name, processor in (
        ("resnet", ViTImageProcessor(size={"height": 16, "width": 16})),
        ("convnext", ConvNextImageProcessor(size={"shortest_edge": 28}, crop_pct=0.875)),
    ):
        save_base("resnet", folder / name)
        processor.save_pretrained(folder / name)
    save_untrained(EfficientNetConfig(width=0.25, depth=0.5, image_size=(32, 32), num_labels=3), folder / "lite")
    return {"bert": tiny_bert_folder, **{path.name: path for path in folder.iterdir()}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of pictures of several sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, size in enumerate(((16, 16), (40, 31), (23, 57), (64, 64))):
        (folder / f"{number}.png").write_bytes(png(picture(number).resize(size)))
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("name", TOLD)
def test_each_task_answers_as_the_library(
    name: str, bases: dict[str, Path], pictures: list[str], tmp_path: Path
) -> None:
    told, store, base = TOLD[name], tmp_path / "store", bases[TOLD[name].base]
    inputs = told.inputs or pictures
    for seed, (adapter, spec, lora) in enumerate(zip(("one", "two"), told.specs, told.loras, strict=True)):
        put(store, base, adapter, spec, lora, seed, 0.2 if told.inputs else 0.05)  # else numbers grow beyond rounding
    export_refs(["one", "two"], tmp_path / "shared", store=str(store))
    rows = [(value, adapter) for value in inputs for adapter in ("one", "two")]
    found = Bundle(tmp_path / "shared").answer([value for value, _ in rows], [adapter for _, adapter in rows])
    wanted = {adapter: said(store, adapter, inputs) for adapter in ("one", "two")}
    assert wanted["one"] != wanted["two"]
    for adapter, answers in wanted.items():
        assert like([one for one, (_, owner) in zip(found, rows, strict=True) if owner == adapter], answers)
    if name in ("words", "questions"):  # whose class is merged as that of texts is
        return
    export_refs(["one"], tmp_path / "merged", merge=True, store=str(store))
    assert like(Bundle(tmp_path / "merged").answer(list(inputs), ["one"] * len(inputs)), wanted["one"])


@pytest.mark.network
def test_runners_of_words_questions_and_pictures_need_no_torch(
    bases: dict[str, Path], pictures: list[str], tmp_path: Path, without_torch: Path
) -> None:
    for name in ("words", "questions", "pictures on ResNet"):
        told, store, folder = TOLD[name], tmp_path / "store", tmp_path / name
        inputs = told.inputs or pictures
        put(store, bases[told.base], "one", told.specs[0], told.loras[0])
        export_refs(["one"], folder, store=str(store), merge=True)
        given = [value if isinstance(value, str) else json.dumps(value) for value in inputs]
        assert like(run_there(without_torch, folder, "one", given), said(store, "one", inputs)), name


def test_what_is_not_supported_is_refused_by_name(bases: dict[str, Path], tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    spec = ImageClassificationSpec(labels=_FEW, positive="yes", threshold=0.5)
    put(Path(store), bases["resnet"], "defects", spec, CONVOLUTIONS[0])
    put(Path(store), bases["resnet"], "plain", TOLD["pictures on ResNet"].specs[0], CONVOLUTIONS[0])
    with pytest.raises(RecipeError, match=r"label of interest \(task.positive\) is not supported yet"):
        export_refs(["defects"], tmp_path / "out", store=store)
    with pytest.raises(RecipeError, match="--int8 of image-classification takes each layer's range from rows"):
        export_refs(["plain"], tmp_path / "out", int8=True, store=store)
    assert not (tmp_path / "out").exists()
