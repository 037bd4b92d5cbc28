"""A tiny base, adapters that real PEFT wrote, and PEFT's own answers: the oracle of the serving tests."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from ray_lora.recipe import TaskSpec

WORDS = "a the day film plot dull lovely bad good very not so slow bright calm loud sad glad".split()
logging.set_verbosity_error()
logging.disable_progress_bar()


def make_base(folder: Path, seed: int = 0, pairs: bool = False) -> Path:
    """A random BERT with 2 layers of width 32, and its tokenizer; with `pairs` it marks where texts begin and end."""
    torch.manual_seed(seed)
    special = ["[CLS]", "[SEP]"] if pairs else []
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if pairs:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]" if pairs else None,
        sep_token="[SEP]" if pairs else None,
        model_max_length=32,
        model_input_names=["input_ids", *(["token_type_ids"] if pairs else []), "attention_mask"],
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, *, seed: int, rank: int = 4, labels: int = 2) -> Path:
    """A LoRA folder as plain PEFT saves it, every tensor random, so that no two answer alike."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    config = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, target_modules=["query", "value", "dense"])
    config.exclude_modules = ["classifier", "pooler.dense"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a renamed property
        peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.3)
    peft.save_pretrained(folder)
    return folder


TAGS = ("B-mood", "I-mood", "O")


def make_tagger(root: Path) -> Path:
    """`root` with base/ and store/tagger, which labels words by TAGS; every tensor is random."""
    from ray_lora.tasks.token_classification import TokenClassificationSpec

    spec = TokenClassificationSpec(labels=TAGS)
    return _make(root, "tagger", AutoModelForTokenClassification, "TOKEN_CLS", spec, len(TAGS))


def make_answerer(root: Path) -> Path:
    """`root` with base/, which takes pairs, and store/answerer, which finds answers; every tensor is random."""
    from ray_lora.tasks.question_answering import QuestionAnsweringSpec

    spec = QuestionAnsweringSpec(max_length=24, doc_stride=4, max_question_len=8, handle_impossible_answer=True)
    return _make(root, "answerer", AutoModelForQuestionAnswering, "QUESTION_ANS", spec, 2)


def _make(root: Path, name: str, kind: Any, peft_type: str, spec: TaskSpec, labels: int) -> Path:
    from ray_lora.adapters.adapter import Adapter
    from ray_lora.store import open_store

    pairs = peft_type == "QUESTION_ANS"
    base = root / "base" if (root / "base").exists() else make_base(root / "base", pairs=pairs)
    torch.manual_seed(9)
    model = kind.from_pretrained(base, num_labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        peft = get_peft_model(model, LoraConfig(task_type=peft_type, r=4, target_modules=["query", "value"]))
    for key, parameter in peft.named_parameters():
        if "lora_" in key or "modules_to_save" in key:
            parameter.data.normal_(0, 0.5)
    peft.save_pretrained(root / name)
    adapter = Adapter.load(root / name)
    told = {"task": spec, "architecture": kind.__name__}
    open_store(str(root / "store")).put(replace(adapter, card=adapter.card.model_copy(update=told)), name)
    return root


def card(
    folder: Path, base: Path, labels: Sequence[str] | None, fingerprint: str | None = None, **options: Any
) -> Path:
    """Put our card beside a plain PEFT folder; `options` are more of its task's."""
    from ray_lora.adapters.adapter import Adapter, Card
    from ray_lora.tasks.text_classification import TextClassificationSpec

    plain = Adapter.load(folder)
    known = None if labels is None else tuple(labels)
    task = TextClassificationSpec(labels=known, max_length=16, **options)
    written = Card(task=task, base=str(base), base_fingerprint=fingerprint, architecture=ARCHITECTURE)
    whole = replace(plain, card=written)
    shutil.rmtree(folder)
    whole.save(folder)
    return folder


ARCHITECTURE = "AutoModelForSequenceClassification"


def peft_probabilities(base: Path, folder: Path, texts: Sequence[str]) -> list[list[float]]:
    """PEFT's answers, one text at a time."""
    labels = _num_labels(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, attn_implementation="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = PeftModel.from_pretrained(plain, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    answers = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
            answers.append(model(**inputs).logits[0].softmax(-1).tolist())
    return answers


def _num_labels(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return next(file.get_slice(key).get_shape()[0] for key in file.keys() if key.endswith("classifier.weight"))  # noqa: SIM118


def spoil(folder: Path) -> Path:
    """Cut a weights file in half."""
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return folder


def says(folder: Path) -> dict[str, object]:
    """adapter_config.json."""
    return dict(json.loads((folder / "adapter_config.json").read_text()))
