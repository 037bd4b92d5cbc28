"""Our own tasks keep what every task must keep; tests/boxes is a task of somebody else's that does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, ViTImageProcessor

from ray_lora.adapters.adapter import Card
from ray_lora.bases.efficientnet import save_folder
from ray_lora.bases.segmenters import CraftConfig
from ray_lora.errors import RayLoraError
from ray_lora.recipe import LoraSpec
from ray_lora.store.mlflow_client import write_mlmodel
from ray_lora.tasks import TASKS
from tests.conformance import CHECKS, Case
from tests.mlflow_world import MLFLOW_WARNINGS
from tests.unit import detection, detr, histories, rt_detr, segmentation, speech, yolos
from tests.unit.bases import save_base, save_language_model
from tests.unit.cases import (
    all_tokens_case,
    answered_case,
    detection_case,
    dialogue_case,
    image_case,
    inspected_case,
    letters_case,
    lite_case,
    multi_label_case,
    own_scores_case,
    paired_case,
    prompt_case,
    question_case,
    recommendation_case,
    regression_case,
    rt_detr_case,
    segformer_case,
    segmentation_case,
    speech_case,
    tagged_both_ways_case,
    tagged_case,
    text_case,
    texts_alone_case,
    with_norms,
    yolos_case,
)
from tests.unit.test_efficientnet import SMALL, tensors_of

LANGUAGE_MODELS = ("llama", "gpt2", "qwen2", "gemma2")
VARIANTS = (
    "pairs of texts",
    "several labels",
    "a number",
    "words read both ways",
    "texts alone",
    "dialogues",
    "prompts learned too",
    "answers compared whole",
    "masks by SegFormer",
    "a label of interest",
    "EfficientNet",
    "objects by queries",
    "objects by queries and their pictures' masks",
    "tables by queries",
    "objects by queries and boxes that move",
    "letters of sounds",
    "letters of sounds of one length",
    "masks by CRAFT",
    "items scored by the adapter",
    "masks with norms of their own",
    "pictures with norms of their own",
)
CHAT = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture(scope="module")
def cases(tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    resnet = save_base("resnet", tmp_path_factory.mktemp("bases") / "resnet")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(resnet)
    models = {kind: save_language_model(kind, tmp_path_factory.mktemp("lm") / kind) for kind in LANGUAGE_MODELS}
    for model in models.values():
        tokenizer = AutoTokenizer.from_pretrained(tiny_bert_folder)
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(model)
    gpt2 = save_base("gpt2", tmp_path_factory.mktemp("bases") / "gpt2")
    AutoTokenizer.from_pretrained(tiny_bert_folder).save_pretrained(gpt2)
    lite = tmp_path_factory.mktemp("bases") / "lite"
    save_folder(tensors_of(SMALL), SMALL, lite)
    return {
        "a label of interest": inspected_case(resnet),
        "EfficientNet": lite_case(lite),
        "text-classification": text_case(tiny_bert_folder),
        "pairs of texts": paired_case(tiny_bert_folder),
        "several labels": multi_label_case(tiny_bert_folder),
        "a number": regression_case(tiny_bert_folder),
        "token-classification": tagged_case(tiny_bert_folder),
        "words read both ways": tagged_both_ways_case(gpt2),
        "question-answering": question_case(tiny_bert_folder),
        "text-generation": prompt_case(models["llama"]),
        "texts alone": texts_alone_case(models["gpt2"]),
        "dialogues": dialogue_case(models["qwen2"]),
        "prompts learned too": all_tokens_case(models["gemma2"]),
        "answers compared whole": answered_case(models["llama"]),
        "image-classification": image_case(resnet),
        "object-detection": detection_case(detection.tiny(tmp_path_factory.mktemp("bases") / "yolox")),
        "image-segmentation": segmentation_case(segmentation.tiny(tmp_path_factory.mktemp("bases") / "unet")),
        "masks by CRAFT": segmentation_case(
            segmentation.tiny(tmp_path_factory.mktemp("bases") / "craft", network=CraftConfig(width=16)),
            targets=("conv.0", "conv.3", "slice1.3", "slice4.34"),
        ),
        "masks by SegFormer": segformer_case(segmentation.segformer(tmp_path_factory.mktemp("bases") / "segformer")),
        "sequential-recommendation": recommendation_case(histories.tiny(tmp_path_factory.mktemp("bases") / "sasrec")),
        "automatic-speech-recognition": speech_case(speech.save_whisper(tmp_path_factory.mktemp("bases") / "whisper")),
        "letters of sounds": letters_case(speech.save_wav2vec2(tmp_path_factory.mktemp("bases") / "wav2vec2")),
        "letters of sounds of one length": letters_case(
            speech.save_wav2vec2(tmp_path_factory.mktemp("bases") / "grouped", norm="group")
        ),
        "items scored by the adapter": own_scores_case(histories.tiny(tmp_path_factory.mktemp("bases") / "sasrec")),
        "masks with norms of their own": with_norms(
            segmentation_case(segmentation.tiny(tmp_path_factory.mktemp("bases") / "normed"))
        ),
        "pictures with norms of their own": with_norms(image_case(resnet)),
        "objects by queries and their pictures' masks": yolos_case(
            detr.tiny(tmp_path_factory.mktemp("bases") / "detr"), ("q_proj", "v_proj", "fc1", "convolution")
        ),
        "tables by queries": yolos_case(
            detr.tiny(tmp_path_factory.mktemp("bases") / "tables", "table-transformer"), ("q_proj", "k_proj", "fc2")
        ),
        "objects by queries and boxes that move": rt_detr_case(
            rt_detr.tiny(tmp_path_factory.mktemp("bases") / "rt_detr")
        ),
        "objects by queries": yolos_case(yolos.tiny(tmp_path_factory.mktemp("bases") / "yolos")),
    }


def test_every_task_is_checked(cases: dict[str, Case]) -> None:
    assert {case.spec.type for case in cases.values()} == set(TASKS)
    assert {*TASKS, *VARIANTS} == set(cases)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", [*TASKS, *VARIANTS])
def test_it_keeps_the_rules(
    cases: dict[str, Case], name: str, check: Callable[[Case, Path], None], tmp_path: Path
) -> None:
    check(cases[name], tmp_path)


@pytest.mark.filterwarnings(*MLFLOW_WARNINGS)
@pytest.mark.parametrize("name", [*TASKS, *VARIANTS])
def test_mlflow_answers_its_input_example(cases: dict[str, Case], name: str, tmp_path: Path) -> None:
    """By the signature: its columns are the task's, its parameters reach the task, its outputs are what is answered."""
    import mlflow
    import pandas as pd
    from mlflow.models import validate_schema

    case = cases[name]
    engine = case.engine(1)
    slot = engine.init(
        LoraSpec(r=2, target_modules=list(case.targets)), case.task.head, seed=0, peft_type=case.task.peft_type
    )
    engine.export(slot, Card(task=case.spec)).save(tmp_path / "adapter")
    engine.close()
    write_mlmodel(tmp_path / "adapter", None, None)
    model = mlflow.pyfunc.load_model(str(tmp_path / "adapter"), model_config={"dtype": "float32"})
    signature = model.metadata.signature

    always = [column for column, told in case.task.columns.items() if told.required == "always"]
    assert signature.inputs.required_input_names() == always
    assert set(signature.inputs.input_names()) <= set(case.task.columns)
    example = model.input_example
    if case.spec.type == "sequential-recommendation":  # whose items only the base knows
        assert example is None
        example = [{"items": list(row["items"])} for row in case.rows]
    answers = model.predict(example)
    assert len(answers) == len(example)
    rows = example if isinstance(example[0], dict) else [{case.task.input: value} for value in example]
    framed = model.predict(pd.DataFrame(rows))
    validate_schema(framed, signature.outputs)
    assert set(framed.columns) == set(signature.outputs.input_names())

    told = {param.name: param.default for param in signature.params if param.default is not None}
    case.task.check_parameters(told)
    assert model.predict(example, params=told) == answers
    for param in signature.params:
        if param.dtype.name != "boolean":
            wrong = ["no", 1] if param.shape else -1 if param.dtype.name in ("long", "double") else "nonsense"
            with pytest.raises((RayLoraError, mlflow.exceptions.MlflowException)):
                model.predict(example, params={param.name: wrong})
    with pytest.raises(RayLoraError, match=f"has no '{always[0]}'"):
        model.predict([{"nobody": "knows it"}])
    with pytest.raises(RayLoraError, match=f"has no '{always[0]}'"):
        model.predict(pd.DataFrame({"nobody": ["knows it"], "nor": ["this"]}))
