"""Tiny bases of five architectures with random weights, and plain PEFT on them: the oracle of the engine's tests."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from ray_lora.bases.base import Base
from ray_lora.bases.built import Built
from ray_lora.bases.load import load_base
from ray_lora.engine import AdapterEngine
from ray_lora.recipe import BaseSpec

VOCABULARY = 60
TEXT = "AutoModelForSequenceClassification"
CAUSAL = "AutoModelForCausalLM"
IMAGE = "AutoModelForImageClassification"
TEXT_KINDS = ("bert", "roberta", "llama", "gpt2")


def save_base(kind: str, folder: Path, seed: int = 0) -> Path:
    """A base of one kind; its weights are random and large enough that every layer matters."""
    config = _config(kind)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = transformers.AutoModel.from_config(config).eval()
        for name, parameter in backbone.named_parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, parameter[0].numel() ** -0.5)
            elif "bias" in name:
                parameter.data.normal_(0, 0.1)
        if kind == "resnet":
            _settle_batch_norm(backbone)
    backbone.save_pretrained(folder)
    return folder


def save_language_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """A causal language model of one kind with its own output layer, in a file."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(_config(kind)).eval()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, parameter[0].numel() ** -0.5)
            elif "bias" in name:
                parameter.data.normal_(0, 0.1)
    model.save_pretrained(folder)
    return folder


def _config(kind: str) -> Any:
    small = {"vocab_size": VOCABULARY, "pad_token_id": 0}
    encoder = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if kind == "bert":
        return transformers.BertConfig(**small, **encoder, max_position_embeddings=40)
    if kind == "roberta":
        return transformers.RobertaConfig(**small, **encoder, max_position_embeddings=42)
    if kind == "llama":
        return transformers.LlamaConfig(**small, **encoder, num_key_value_heads=2, max_position_embeddings=40)
    if kind == "qwen2":
        return transformers.Qwen2Config(
            **small, **encoder, num_key_value_heads=2, max_position_embeddings=40, tie_word_embeddings=True
        )
    if kind == "gemma2":
        return transformers.Gemma2Config(
            **small, **encoder, num_key_value_heads=2, head_dim=8, sliding_window=6, max_position_embeddings=40
        )
    if kind == "gpt2":
        return transformers.GPT2Config(
            **small, n_embd=32, n_layer=2, n_head=4, n_positions=40, bos_token_id=1, eos_token_id=2
        )
    if kind == "resnet":
        return transformers.ResNetConfig(
            num_channels=3, embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"
        )
    raise AssertionError(kind)


def _settle_batch_norm(backbone: nn.Module) -> None:
    """Running statistics of some batch, so that eval mode is far from train mode's start."""
    backbone.train()
    with torch.no_grad():
        for _ in range(3):
            backbone(pixel_values=torch.randn(8, 3, 16, 16) * 2 + 1)
    backbone.eval()


def toy_base(backbone: nn.Module, draw: Callable[[torch.Generator], dict[str, Tensor]]) -> Base:
    """A base of one's own module; `draw` gives one row's inputs."""

    def examples(sizes: Sequence[int], seed: int) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        return [draw(generator) for _ in sizes]

    built = Built(backbone, "model", lambda _: backbone, examples)
    weights = b"".join(tensor.numpy().tobytes() for tensor in backbone.state_dict().values())
    name, digest = type(backbone).__name__, hashlib.sha256(weights).hexdigest()
    device = torch.device("cpu")
    return Base(name, Path(), backbone, None, built.config, digest, "model", torch.float32, device, built)


def open_base(folder: Path, dtype: torch.dtype = torch.float32, processor: Any = None) -> Base:
    """The base as the library loads it; in float64 for tests of exactness."""
    base = load_base(BaseSpec(model=str(folder), dtype="float32"))
    base.backbone.to(dtype)
    return replace(base, dtype=dtype, processor=processor or base.processor)


@contextmanager
def engine_on(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Iterator[AdapterEngine]:
    """An engine on a freshly loaded base."""
    engine = AdapterEngine(open_base(folder, dtype), **options)
    yield engine
    engine.close()


def plain(folder: Path, labels: int | None = None, dtype: torch.dtype = torch.float32, architecture: str = TEXT) -> Any:
    """The untouched transformers model: with a head of `labels`, or the backbone; eval mode."""
    return copy.deepcopy(_plain(folder, labels, architecture)).to(dtype).eval()


@lru_cache(maxsize=64)
def _plain(folder: Path, labels: int | None, architecture: str) -> Any:
    options = {} if architecture == IMAGE else {"attn_implementation": "eager"}
    if labels is None:
        return transformers.AutoModel.from_pretrained(folder, **options)
    with torch.random.fork_rng():
        torch.manual_seed(labels)
        told = {} if architecture == CAUSAL else {"num_labels": labels}
        return getattr(transformers, architecture).from_pretrained(folder, **told, **options)


def wrap(model: Any, seed: int, **options: Any) -> Any:
    """PEFT's LoRA on a plain model, every trained value random, so that no two adapters answer alike."""
    with quiet_peft():
        wrapped = get_peft_model(model, LoraConfig(**options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                fresh = torch.empty(parameter.shape).normal_(0, 0.2, generator=generator)
                parameter.copy_(fresh)
    return wrapped.eval()


def reopen(folder: Path, adapter: Path, labels: int | None, **options: Any) -> Any:
    """A saved adapter in plain PEFT on a fresh plain model."""
    trained = options.pop("is_trainable", False)
    with quiet_peft():
        return PeftModel.from_pretrained(plain(folder, labels, **options), adapter, is_trainable=trained).eval()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT asks transformers for renamed properties and warns of what these tests do on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def token_batch(rows: int, length: int = 9, seed: int = 0) -> dict[str, Tensor]:
    """Random token ids; every third row is shorter and padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(0, rows, 3):
        mask[row, length - 1 - row % 4 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def pixel_batch(rows: int, seed: int = 0) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(seed))}


def part(inputs: Mapping[str, Tensor], rows: Sequence[int] | Tensor) -> dict[str, Tensor]:
    """Some rows of a batch."""
    index = torch.as_tensor(rows)
    return {name: tensor[index] for name, tensor in inputs.items()}


def logits_by_row(engine: AdapterEngine, inputs: Mapping[str, Tensor], slots: Sequence[int]) -> dict[int, Tensor]:
    """Each row's logits in a mixed pass; rows of slot 0 have none."""
    answers: dict[int, Tensor] = {}
    with torch.no_grad():
        for rows, outputs in engine.forward(inputs, torch.tensor(slots)):
            if "logits" in outputs:
                answers |= dict(zip(rows.tolist(), outputs.logits, strict=True))
    return answers
