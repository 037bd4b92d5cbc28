"""A commented recipe for somebody's rows, from what was guessed of them.

    text = new_recipe("reviews", guess(files), "reviews/train.parquet", "reviews/validation.parquet")

It knows what a recipe's keys are for and which bases are at hand, no files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from ray_lora.data.guess import Guess
from ray_lora.recipe import Json

_TOKENS = 1.8  # of a word, rather more than it has in English
_LENGTHS = (32, 64, 128, 256, 512)
_EFFICIENT = "[_expand_conv, _project_conv, _conv_head]"
_WHISPER = "[q_proj, k_proj, v_proj, out_proj, fc1, fc2]"


@dataclass(frozen=True)
class _Start:
    """What a task's recipe begins with.

    Attributes:
        base: that is at hand without a hub. others: hub ids that people take.
        modules: that are adapted, of this base. rates: that a search tries. batch: rows of a step.
        options: of the task, which rows do not tell.
    """

    base: str
    others: str
    modules: str = "all-linear"
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    batch: int = 16
    epochs: int = 3
    dtype: str = "auto"
    options: Mapping[str, Json] | None = None


_STARTS: Mapping[str, _Start] = {
    "text-classification": _Start("minilm", "bert-base-uncased, roberta-base, answerdotai/ModernBERT-base"),
    "token-classification": _Start("minilm", "bert-base-cased, dslim/bert-base-NER", epochs=4),
    "question-answering": _Start(
        "minilm", "bert-base-uncased, deepset/roberta-base-squad2", options={"max_length": 384, "doc_stride": 128}
    ),
    "text-generation": _Start(
        "smollm2", "HuggingFaceTB/SmolLM2-360M-Instruct, Qwen/Qwen2.5-0.5B-Instruct", "[q_proj, v_proj]",
        (3e-4, 1e-3), 8, 1,
    ),
    "image-classification": _Start(
        "efficientnet-lite0", "microsoft/resnet-18 (lora.target_modules: [convolution]), google/vit-base-patch16-224 "
        "(all-linear)", _EFFICIENT, epochs=6, dtype="float32",
    ),
    "object-detection": _Start(
        "yolox-tiny", "PekingU/rtdetr_r18vd, facebook/detr-resnet-50 (lora.target_modules: all-linear)",
        "all-convolutions", (1e-3, 2e-3), 8, 20, "float32",
    ),
    "image-segmentation": _Start(
        "nvidia/segformer-b0-finetuned-ade-512-512", "any SegFormer, or a U-Net's folder (docs/segmentation.md)",
        "all-linear", (1e-3, 5e-3), 8, 20, "float32",
    ),
    "automatic-speech-recognition": _Start(
        "whisper-tiny.en", "openai/whisper-tiny, facebook/wav2vec2-base-960h", _WHISPER, (1e-3, 2e-3), 16, 5, "float32",
    ),
    "sequential-recommendation": _Start(
        "data/interactions-base", "the folder that python -m pipelines.recommender_base made (docs/recommendation.md)",
        "all-linear", (1e-2, 3e-2), 32, 40, "float32",
    ),
}  # fmt: skip


def new_recipe(name: str, found: Guess, train: str, validation: str | None, base: str | None = None) -> str:
    """The recipe as YAML, with a comment where a person may want something else."""
    start = _STARTS[str(found.task["type"])]
    task = dict(found.task) | dict(start.options or {})
    if found.words and "max_length" not in task and task["type"] != "text-generation":
        tokens = found.words * _TOKENS + 2
        task["max_length"] = next((length for length in _LENGTHS if length >= tokens), _LENGTHS[-1])
    modules = start.modules if base in (None, start.base) else "all-linear"
    lines = [
        f"# {name}: {found.why}.",
        f"#   ray-lora search {name}.yaml         ranks and rates, the best becomes {name}@champion",
        f"#   ray-lora train {name}.yaml          one adapter, with what stands under lora and training",
        "# Every key has a default; `ray-lora schema` lists them all.",
        *(f"# Look at this: {note}." for note in found.notes),
        f"name: {name}",
        f"base: {{model: {base or start.base}, dtype: {start.dtype}}}   # or by hub id: {start.others}",
        f"task: {_flow(task)}{_about(found)}",
        "data:",
        f"  train: {json.dumps(train)}",
        f"  validation: {json.dumps(validation)}"
        if validation
        else "  # validation: rows that choose; a search needs some",
    ]
    if found.columns:
        lines.append(f"  columns: {_flow(found.columns)}   # the task's name: the file's")
    most = 8 if task["type"] == "text-generation" else 16
    lines += [
        f"lora: {{r: 8, lora_alpha: 16, target_modules: {modules}}}   # PEFT's names",
        "training:",
        f"  num_train_epochs: {start.epochs}",
        f"  learning_rate: {_number(start.rates[len(start.rates) // 2])}",
        f"  per_device_train_batch_size: {start.batch}",
        "  warmup_steps: 0.1             # below 1: a share of all steps",
        "search:                         # all configurations train together, on one base",
        "  space:",
        f"    lora.r: {{grid_search: [4, {most}]}}",
        f"    training.learning_rate: {{grid_search: [{', '.join(map(_number, start.rates))}]}}",
        f"tracking: {{uri: sqlite:///mlflow.db, experiment: {name}}}   # or http://host:5000; null: none",
        "store: ./store                  # a folder, s3://bucket/path, or mlflow",
        "output_dir: ./runs",
    ]
    return "\n".join(lines) + "\n"


def _about(found: Guess) -> str:
    if not found.labels:
        return ""
    total = sum(found.labels.values())
    shown = sorted(found.labels.items(), key=lambda item: -item[1])[:6]
    more = f", and {len(found.labels) - 6} more" if len(found.labels) > 6 else ""
    return "   # " + ", ".join(f"{label} {count / total:.0%}" for label, count in shown) + more


def _flow(values: Mapping[str, Json]) -> str:
    """A mapping as YAML writes it on a line; words that YAML reads as words stay bare."""
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in values.items()) + "}"


def _scalar(value: Json) -> str:
    """As YAML writes it in a line: words bare where YAML reads them as the same words."""
    bare = isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", value) and yaml.safe_load(value) == value
    return str(value) if bare else json.dumps(value)


def _number(value: float) -> str:
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
