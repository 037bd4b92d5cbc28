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
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

WORDS = "a the day film plot dull lovely bad good very not so slow bright calm loud sad glad".split()
logging.set_verbosity_error()
logging.disable_progress_bar()


def make_base(folder: Path, seed: int = 0) -> Path:
    """A random BERT with 2 layers of width 32, and its tokenizer."""
    torch.manual_seed(seed)
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
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
    from ray_lora.adapters.adapter import Adapter
    from ray_lora.store import open_store
    from ray_lora.tasks.token_classification import TokenClassificationSpec

    base = root / "base" if (root / "base").exists() else make_base(root / "base")
    torch.manual_seed(9)
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=len(TAGS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        peft = get_peft_model(model, LoraConfig(task_type="TOKEN_CLS", r=4, target_modules=["query", "value"]))
    for name, parameter in peft.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.normal_(0, 0.5)
    peft.save_pretrained(root / "tagger")
    adapter = Adapter.load(root / "tagger")
    told = {"task": TokenClassificationSpec(labels=TAGS), "architecture": "AutoModelForTokenClassification"}
    open_store(str(root / "store")).put(replace(adapter, card=adapter.card.model_copy(update=told)), "tagger")
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
