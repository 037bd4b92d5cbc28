"""Our own tasks as cases of the conformance suite, and their rows."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ray_lora.bases.plain import HeadSpec
from ray_lora.engine.own_norms import norms_in
from ray_lora.recipe import Json
from ray_lora.tasks import Row
from ray_lora.tasks.generation_options import TextGenerationSpec
from ray_lora.tasks.image_classification import ImageClassificationSpec
from ray_lora.tasks.object_detection import ObjectDetectionSpec
from ray_lora.tasks.question_answering import QuestionAnsweringSpec
from ray_lora.tasks.segmentation.options import ImageSegmentationSpec
from ray_lora.tasks.sequential_recommendation import SequentialRecommendationSpec
from ray_lora.tasks.speech.options import SpeechRecognitionSpec
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.tasks.token_classification import TokenClassificationSpec
from tests.conformance import Case
from tests.conftest import sentences
from tests.unit import detection, histories, rt_detr, segmentation, speech, yolos
from tests.unit.bases import CAUSAL, IMAGE, open_base, plain

LABELS = ("no", "perhaps", "yes")


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def text_rows() -> list[Row]:
    return [{"text": text, "label": LABELS[number % 3]} for number, text in enumerate(sentences(7, seed=1))]


def image_rows() -> list[Row]:
    return [{"image": png(picture(number)), "label": LABELS[number % 3]} for number in range(5)]


def text_case(folder: Path) -> Case:
    """On a folder of BERT's."""
    return Case(
        TextClassificationSpec(labels=LABELS),
        text_rows(),
        perfect,
        open=lambda: open_base(folder, torch.float64),
        plain=lambda: plain(folder, len(LABELS)),
        targets=("query", "value", "output.dense"),
        head=("classifier",),
        wrong=[({"text": " "}, "text ' ' is empty or not a string"), ({"label": "yess"}, "did you mean 'yes'")],
    )


def image_case(folder: Path) -> Case:
    """On a folder of ResNet's, with its image processor."""
    return Case(
        ImageClassificationSpec(labels=LABELS),
        image_rows(),
        perfect,
        open=lambda: open_base(folder, torch.float64),
        plain=lambda: plain(folder, len(LABELS), architecture=IMAGE),
        targets=("convolution",),
        head=("classifier",),
        wrong=[
            ({"image": png(picture(0))[:99]}, "an image cannot be read"),
            ({"label": "maybe"}, "label 'maybe' is not one of 'no', 'perhaps', 'yes'"),
        ],
    )


def inspected_case(folder: Path) -> Case:
    """One label is of interest, on a folder of ResNet's."""

    def sure(row: Row) -> Json:
        ranked = sorted(LABELS, key=lambda label: label != row["label"])
        return [{"label": label, "score": float(label == row["label"])} for label in ranked]

    spec = ImageClassificationSpec(labels=LABELS, positive="yes", threshold=0.3)
    return replace(image_case(folder), spec=spec, perfect=sure)


def lite_case(folder: Path) -> Case:
    """On a folder of EfficientNet-Lite's of three classes without names, pictures of a size of the recipe's."""

    def plain_lite() -> nn.Module:
        base = open_base(folder, torch.float64)
        model = base.fresh(HeadSpec(IMAGE, len(LABELS)))
        assert model is not None
        setattr(model, base.prefix, base.backbone)
        return model.to(torch.float64).eval()

    return replace(
        image_case(folder),
        spec=ImageClassificationSpec(labels=LABELS, image_size=40),
        plain=plain_lite,
        targets=("_expand_conv", "_project_conv", "_conv_head"),
        head=("_fc",),
    )


def detection_case(folder: Path) -> Case:
    """On a folder of YOLOX's of three classes without names."""
    rows = detection.rows(6)
    width, height = Image.open(io.BytesIO(rows[0]["image"])).size
    where = f"leads out of its picture of {width} x {height} pixels"

    def changed(**objects: Any) -> dict[str, Any]:
        return {"objects": {"bbox": [[1.0, 2.0, 9.0, 9.0]], "category": ["red"]} | objects}

    return Case(
        ObjectDetectionSpec(labels=tuple(sorted(detection.COLOURS))),
        rows,
        detection.best_answer,
        open=lambda: open_base(folder, torch.float64),
        plain=lambda: detection.plain(folder),
        targets=("C3_p3.conv1.conv", "cls_convs.0.1.conv", "reg_convs.1.0.conv", "dark2.0.conv", "lateral_conv0.conv"),
        head=("cls_preds", "reg_preds", "obj_preds"),
        wrong=[
            ({"image": rows[0]["image"][:99]}, "an image cannot be read"),
            (changed(bbox=[[1.0, 2.0, 90.0, 9.0]]), rf"box \[1.0, 2.0, 90.0, 9.0\] {where}"),
            (changed(bbox=[[-2.0, 2.0, 9.0, 9.0]]), where),
            (changed(bbox=[[1.0, 2.0, 9.0, -9.0]]), "has no area; boxes are .* so of corners give the differences"),
            (changed(bbox=[[1.0, 2.0, 0.0, 9.0]]), "has no area"),
            (changed(bbox=[[1.0, 2.0, 9.0]]), r"is not \[x, y, width, height\], four finite numbers"),
            (changed(bbox=[[1.0, 2.0, 9.0, float("nan")]]), "four finite numbers"),
            (changed(bbox=[]), "there are 0 boxes and 1 categories"),
            (changed(category=["rde"]), "label 'rde' is not one of 'blue', 'red', 'white'.* did you mean 'red'"),
        ],
    )


def segmentation_case(folder: Path, targets: tuple[str, ...] = ("conv1", "conv2")) -> Case:
    """On a folder of a segmenter's of three classes without names, the U-Net's unless other targets are given."""
    rows = [segmentation.row(number, 47, 38) for number in range(6)]
    width, height = Image.open(io.BytesIO(rows[0]["image"])).size
    mask = Image.open(io.BytesIO(rows[0]["mask"]))

    return Case(
        ImageSegmentationSpec(labels=segmentation.LABELS),
        rows,
        segmentation.best_answer,
        open=lambda: open_base(folder, torch.float64),
        plain=lambda: segmentation.plain(folder),
        targets=targets,
        head=("classifier",),
        wrong=[
            ({"image": rows[0]["image"][:99]}, "an image cannot be read"),
            ({"mask": rows[0]["mask"][:80]}, "a mask cannot be read"),
            ({"mask": png(mask.resize((9, 8)))}, f"a mask of 9 x 8 pixels on a picture of {width} x {height}"),
            (
                {"mask": png(mask.point(lambda index: 7 if 0 < index < 255 else index))},
                "the mask has index 7, and the labels",
            ),
            ({"mask": rows[0]["image"]}, "its pixels are colours .RGB., not class indices"),
        ],
    )


def with_norms(case: Case) -> Case:
    """The same where adapters have the base's batch norms for themselves."""
    base = case.open()
    norms = [f"{base.prefix}.{name}" for name in norms_in(base.backbone)]
    return replace(case, head=(*case.head, *norms), lora={"batch_norms": "own"})


def recommendation_case(folder: Path) -> Case:
    """On a folder of SASRec's, whose items are numbers and whose output layer no adapter has a copy of."""
    return Case(
        SequentialRecommendationSpec(),
        histories.rows(7),
        histories.best_answer,
        open=lambda: open_base(folder, torch.float64),
        plain=lambda: histories.plain(folder),
        targets=("query", "value", "merge", "up", "down"),
        head=(),
        wrong=[
            ({"items": []}, "items .* are no history; give a list of ids, the oldest first"),
            ({"items": [905, None]}, r"items \[905, None\] hold None, which is no id"),
        ],
    )


def own_scores_case(folder: Path) -> Case:
    """The same where each adapter has an output layer of its own."""
    return replace(
        recommendation_case(folder),
        spec=SequentialRecommendationSpec(output_layer="adapter"),
        plain=lambda: histories.untied(folder),
        head=("scores",),
    )


def speech_case(folder: Path) -> Case:
    """On a folder of Whisper's, whose output layer no adapter has a copy of."""
    rows = speech.rows(6)
    return Case(
        SpeechRecognitionSpec(),
        rows,
        speech.best_answer,
        open=lambda: open_base(folder, torch.float64),
        plain=lambda: speech.plain(folder),
        targets=("q_proj", "k_proj", "v_proj", "out_proj", "fc1"),
        head=(),
        wrong=[
            ({"audio": rows[0]["audio"][:99]}, "a sound cannot be read"),
            ({"text": " "}, "text ' ' is empty or not a string"),
        ],
    )


def letters_case(folder: Path) -> Case:
    """On a folder of Wav2Vec2's."""
    return replace(
        speech_case(folder),
        perfect=lambda row: {"text": row["text"].upper()},
        targets=("q_proj", "v_proj", "out_proj", "intermediate_dense"),
    )


def segformer_case(folder: Path) -> Case:
    """On a folder of SegFormer's, whose decode head is the adapter's own."""
    return replace(
        segmentation_case(folder),
        plain=lambda: plain(folder, 3, architecture="AutoModelForSemanticSegmentation"),
        targets=("q_proj", "v_proj", "o_proj", "fc1", "sequence_reduction.sequence_reduction"),
        head=("decode_head",),
    )


def rt_detr_case(folder: Path) -> Case:
    """On a folder of RT-DETR's: attention, what moves boxes, and convolutions."""
    return replace(
        yolos_case(folder, ("q_proj", "value_proj", "bbox_embed.0.layers.1", "convolution")),
        plain=lambda: rt_detr.plain(folder),
        head=("class_embed",),
    )


def yolos_case(folder: Path, targets: tuple[str, ...] = ("query", "value", "projection")) -> Case:
    """On a folder of YOLOS's, or of another detector by queries."""
    return replace(
        detection_case(folder),
        open=lambda: open_base(folder, torch.float64),
        plain=lambda: yolos.plain(folder),
        targets=targets,
        head=("class_labels_classifier", "bbox_predictor"),
    )


TAGS = ("B-sky", "I-sky", "O")


def tagged_rows() -> list[Row]:
    """Sentences of which two words in three are in an entity."""
    rows = []
    for number, text in enumerate(sentences(7, seed=1)):
        words = text.split()
        rows.append({"tokens": words, "tags": [TAGS[(at + number) % 3] for at in range(len(words))]})
    return rows


def tagged_case(folder: Path) -> Case:
    """On a folder of BERT's."""
    return Case(
        TokenClassificationSpec(labels=TAGS),
        tagged_rows(),
        perfect_tags,
        open=lambda: open_base(folder, torch.float64),
        plain=lambda: plain(folder, len(TAGS), architecture="AutoModelForTokenClassification"),
        targets=("query", "value", "output.dense"),
        head=("classifier",),
        wrong=[
            ({"tokens": []}, "tokens .* are no words"),
            ({"tags": ["O"]}, "tokens have 1 tags; give one for each token"),
            ({"tags": ["B-skyy"] * len(tagged_rows()[0]["tokens"])}, "did you mean 'B-sky'"),
        ],
    )


def tagged_both_ways_case(folder: Path) -> Case:
    """On a folder of GPT-2's with BERT's tokenizer: a decoder that reads both ways."""

    def switched() -> nn.Module:
        model = plain(folder, len(TAGS), architecture="AutoModelForTokenClassification")
        model.config.is_causal = False
        return model

    return replace(
        tagged_case(folder),
        spec=TokenClassificationSpec(labels=TAGS, attention="bidirectional"),
        plain=switched,
        targets=("c_attn", "c_proj"),
    )


def perfect_tags(row: Row) -> Json:
    """Of a tokenizer with one piece a word and one before the first."""
    return [{"entity": tag, "index": at} for at, tag in enumerate(row["tags"], start=1) if tag != "O"]


def paired_case(folder: Path) -> Case:
    """Two texts a row, on a folder of BERT's; one label weighs more."""
    firsts, seconds = sentences(7, seed=1), sentences(7, seed=2)
    rows = [
        {"text": text, "text_pair": pair, "label": LABELS[number % 3]}
        for number, (text, pair) in enumerate(zip(firsts, seconds, strict=True))
    ]
    return replace(
        text_case(folder),
        spec=TextClassificationSpec(labels=LABELS, class_weights={"yes": 2.5, "no": 0.5}),
        rows=rows,
        wrong=[
            ({"text_pair": " "}, "text_pair ' ' is empty or not a string"),
            ({"text": ""}, "text '' is empty or not a string"),
            ({"label": "yess"}, "did you mean 'yes'"),
        ],
    )


def multi_label_case(folder: Path) -> Case:
    """Any number of labels a row, on a folder of BERT's."""
    held = (["no"], ["no", "yes"], [], ["perhaps"], ["yes"], ["yes", "perhaps", "no"], ["perhaps"])
    rows = [{"text": text, "label": labels} for text, labels in zip(sentences(7, seed=1), held, strict=True)]
    return replace(
        text_case(folder),
        spec=TextClassificationSpec(labels=LABELS, problem_type="multi_label_classification"),
        rows=rows,
        perfect=lambda row: [{"label": label, "score": float(label in row["label"])} for label in LABELS],
        wrong=[
            ({"text": " "}, "text ' ' is empty or not a string"),
            ({"label": ["no", "yess"]}, "did you mean 'yes'"),
            ({"label": ["no", "no"]}, "label 'no' comes twice"),
            ({"label": ["no", None]}, "the label is empty"),
        ],
    )


def regression_case(folder: Path) -> Case:
    """A number a row, on a folder of BERT's."""
    rows = [{"text": text, "label": number / 4 - 1} for number, text in enumerate(sentences(7, seed=1))]
    return replace(
        text_case(folder),
        spec=TextClassificationSpec(problem_type="regression"),
        rows=rows,
        perfect=lambda row: {"label": "LABEL_0", "score": row["label"]},
        plain=lambda: plain(folder, 1),
        wrong=[
            ({"text": " "}, "text ' ' is empty or not a string"),
            ({"label": float("nan")}, "label nan is no finite number"),
            ({"label": float("inf")}, "label inf is no finite number"),
        ],
    )


def prompt_rows() -> list[Row]:
    texts = sentences(14, seed=1)
    return [{"prompt": prompt, "completion": " " + text} for prompt, text in zip(texts[:7], texts[7:], strict=True)]


def prompt_case(folder: Path) -> Case:
    """Prompts and completions, on a folder of a language model's."""
    return Case(
        TextGenerationSpec(max_length=24),
        prompt_rows(),
        lambda row: {"generated_text": row.get("completion", ""), "loss": 0.0, "tokens": 1},
        open=lambda: open_base(folder, torch.float64),
        plain=lambda: plain(folder, 1, architecture=CAUSAL),
        targets=("q_proj", "v_proj", "down_proj"),
        head=(),
        wrong=[
            ({"prompt": " "}, "prompt ' ' is empty or not a string"),
            ({"completion": ""}, "completion '' is empty or not a string"),
        ],
        close=1e-5,
    )


def answered_case(folder: Path) -> Case:
    """Prompts whose answers scores have written and compare whole."""
    case = prompt_case(folder)

    def perfect(row: Row) -> Json:
        return {**case.perfect(row), "text": row["completion"], "ended": True}

    return replace(case, spec=TextGenerationSpec(max_length=24, answer_tokens=6), perfect=perfect)


def all_tokens_case(folder: Path) -> Case:
    """The loss is of the prompt's tokens too."""
    return replace(prompt_case(folder), spec=TextGenerationSpec(loss="all", max_length=24))


def texts_alone_case(folder: Path) -> Case:
    """Texts, on a folder of GPT-2's."""
    return replace(
        prompt_case(folder),
        spec=TextGenerationSpec(rows="text", max_length=9),
        rows=[{"text": text} for text in sentences(7, seed=1)],
        targets=("c_attn", "c_proj"),
        wrong=[({"text": " "}, "text ' ' is empty or not a string")],
        close=1e-9,
    )


def dialogue_rows() -> list[Row]:
    texts = sentences(21, seed=1)
    rows: list[Row] = []
    for number in range(7):
        said = [("user", texts[number]), ("assistant", texts[number + 7])]
        if number % 2:
            said = [("system", texts[number + 14]), *said, ("user", "why ?"), ("assistant", texts[number + 8])]
        rows.append({"messages": [{"role": role, "content": content} for role, content in said]})
    return rows


def dialogue_case(folder: Path) -> Case:
    """Messages, on a folder of a language model's whose tokenizer has a chat template."""

    def said(*pairs: tuple[str, str]) -> dict[str, Any]:
        return {"messages": [{"role": role, "content": content} for role, content in pairs]}

    return replace(
        prompt_case(folder),
        spec=TextGenerationSpec(rows="messages", max_length=40),
        rows=dialogue_rows(),
        wrong=[
            ({"messages": []}, "are no messages"),
            (said(("user", "a")), "the last message is the user's"),
            (said(("robot", "a"), ("assistant", "b")), "message 1 has role 'robot'; roles are system, user, assistant"),
            (said(("user", "a"), ("system", "c"), ("assistant", "b")), "message 2 is the system's; only the first"),
            (said(("user", " "), ("assistant", "b")), "message 1: content ' ' is empty or not a string"),
            (said(("system", "a"), ("assistant", "b")), "none of role user"),
        ],
    )


def perfect(row: Row) -> Json:
    return {"label": row["label"], "score": 1.0}


def question_rows() -> list[Row]:
    """Contexts of which one word is the answer; the longest are read in several windows, and one has none."""
    rows: list[Row] = []
    for number, length in enumerate((4, 9, 30, 14, 50, 7)):
        context = " ".join(" ".join(sentences(9, seed=number + 1)).split()[:length])
        start = context.rindex(" ") + 1
        answers = (
            {"text": [], "answer_start": []} if number == 3 else {"text": [context[start:]], "answer_start": [start]}
        )
        rows.append({"question": f"{sentences(1, seed=number)[0]} ?", "context": context, "answers": answers})
    return rows


def question_case(folder: Path) -> Case:
    """On a folder of BERT's."""
    spec = QuestionAnsweringSpec(max_length=30, doc_stride=4, max_question_len=13, handle_impossible_answer=True)
    return Case(
        spec,
        question_rows(),
        perfect_answer,
        open=lambda: open_base(folder, torch.float64),
        plain=lambda: plain(folder, 2, architecture="AutoModelForQuestionAnswering"),
        targets=("query", "value", "output.dense"),
        head=("qa_outputs",),
        wrong=[
            ({"question": " "}, "question: text ' ' is empty or not a string"),
            ({"context": ""}, "context: text '' is empty or not a string"),
            ({"answers": {"text": ["zebra"], "answer_start": [1]}}, "answer 'zebra' is not at 1 of its context, where"),
            ({"answers": {"text": ["a", "b"], "answer_start": [1]}}, "have not one start for each text"),
            ({"answers": {"text": ["a"], "answer_start": [-1]}}, "answer 'a' starts at -1"),
        ],
    )


def perfect_answer(row: Row) -> Json:
    texts = row["answers"]["text"] or [""]
    return {"answer": texts[0], "score": 1.0, "start": 0, "end": 0}
