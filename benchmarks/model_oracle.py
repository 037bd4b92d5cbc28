"""Plain PEFT on the plain transformers class, one adapter and one row at a time: what the library has to equal.

It knows nothing of engines; `Rows` is as much of a task as a pass asks for.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.tiny_models import AUTO, VOCABULARY, Kind, save_tiny, side_of
from ray_lora.bases.padding import pad
from ray_lora.engine.layers import is_linear, refusal

RANKS, LABELS = (2, 4, 7), (2, 3, 2)  # of the adapters
LENGTHS = (20, 3, 13, 19, 1, 7, 12, 20)  # tokens of the rows, which the adapters take in turn
LEFT = {"xlnet"}  # types whose tokenizer pads on the left; its class reads the last token
SHORTEST = {"canine": 4, "funnel": 3}  # where one token is too short for the plain class itself
TOLERANCE = 1e-5

Row = dict[str, Any]


class Oracle:
    """A tiny base, three adapters that plain PEFT saved, rows, and what plain PEFT answers them one at a time."""

    def __init__(self, model_type: str, kind: Kind, scratch: Path) -> None:
        import transformers

        self.kind, self.folder = kind, scratch / "base"
        self.side = "left" if model_type in LEFT else "right"
        config = save_tiny(model_type, kind, self.folder)
        self.padding_id = int(getattr(config.get_text_config(), "pad_token_id", 0) or 0)
        auto = getattr(transformers, AUTO[kind])
        eager = {"attn_implementation": "eager"} if kind == "text" else {}
        self.models, self.saved = [], []
        for number, (rank, labels) in enumerate(zip(RANKS, LABELS, strict=True)):
            torch.manual_seed(number)
            model = auto.from_pretrained(self.folder, num_labels=labels, **eager)
            model.config.get_text_config().pad_token_id = self.padding_id
            self.models.append(wrap(model, kind, number, rank))
            self.saved.append(scratch / f"adapter-{number}")
            self.models[-1].save_pretrained(self.saved[-1])
        self.rows = _texts(model_type, config) if kind == "text" else _images(config)

    def answers(self) -> list[Tensor]:
        """Logits of each row alone, by the adapter whose turn it is."""
        task = Rows(self)
        models = self.models
        return [self._ask(models[i % len(models)], task.collate([row]))[0] for i, row in enumerate(self.rows)]

    def padding(self) -> str:
        """Whether a row of a padded batch is answered as the row alone is."""
        task, pair = Rows(self), [self.rows[0], self.rows[2]]
        try:
            padded = self._ask(self.models[0], task.collate(pair))
            alone = torch.cat([self._ask(self.models[0], task.collate([row])) for row in pair])
        except Exception as error:
            return f"fails: {said(error)}"
        moved = apart(padded, alone)
        return "safe" if moved <= TOLERANCE else f"changes the answer by {moved:.0e}"

    @contextmanager
    def in_float64(self) -> Iterator[None]:
        """Models and pictures in float64 meanwhile."""
        rows = self.rows
        self.models = [model.double() for model in self.models]
        if self.kind == "image":
            self.rows = [{"pixel_values": row["pixel_values"].double()} for row in rows]
        yield
        self.models, self.rows = [model.float() for model in self.models], rows

    def doubt(self) -> str:
        """Why the comparison might show nothing, or an empty string."""
        expected = self.answers()
        if not all(bool(answer.isfinite().all()) for answer in expected):
            return "the plain class answers with numbers that are not finite"
        layers = [m for model in self.models for m in model.modules() if hasattr(m, "lora_A")]
        for layer in layers:
            layer.scaling["default"], layer.kept = 0.0, layer.scaling["default"]
        bare = self.answers()
        for layer in layers:
            layer.scaling["default"] = layer.kept
        moved = min(apart(one, other) for one, other in zip(bare, expected, strict=True))
        return "" if moved > 100 * TOLERANCE else f"adapters move the answers by {moved:.0e} only"

    def _ask(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        known = inspect.signature(model.get_base_model().forward).parameters  # FNet's takes no attention_mask
        with torch.inference_mode():
            logits: Tensor = model(**{name: value for name, value in inputs.items() if name in known}).logits
        return logits


def wrap(model: Any, kind: Kind, seed: int, rank: int) -> Any:
    """PEFT's LoRA on every linear layer of the backbone (of images: convolutions that can hold one too); all random."""
    from peft import LoraConfig, get_peft_model

    prefix = model.base_model_prefix + "."
    if not hasattr(model, model.base_model_prefix):
        prefix = next(name for name, child in model.named_children() if list(child.children())) + "."
    targets: str | list[str] = "all-linear"
    if kind == "image":
        targets = [n for n, m in model.named_modules() if n.startswith(prefix) and _holds(m)]
    head = [name for name, child in model.named_children() if name + "." != prefix and list(child.parameters())]
    task = "SEQ_CLS" if kind == "text" else None
    config = LoraConfig(r=rank, lora_alpha=5 + rank, target_modules=targets, modules_to_save=head, task_type=task)
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    return wrapped.eval()


def _holds(module: nn.Module) -> bool:
    """Whether PEFT's pair of any rank is the one here: in groups it is another."""
    return is_linear(module) or (isinstance(module, nn.Conv2d) and module.groups == 1 and refusal(module) is None)


class Rows:
    """As much of a task as `predict` asks for; its answers are the logits."""

    def __init__(self, oracle: Oracle) -> None:
        self._kind = oracle.kind
        self._tokenizer = SimpleNamespace(padding_side=oracle.side, pad_token_id=oracle.padding_id)

    def size(self, features: Row) -> int:
        return len(features["input_ids"]) if self._kind == "text" else 100

    def collate(self, features: Sequence[Row]) -> dict[str, Tensor]:
        if self._kind == "text":
            return pad([row["input_ids"] for row in features], self._tokenizer)
        return {"pixel_values": torch.stack([row["pixel_values"] for row in features])}

    def decode(self, outputs: Any, features: Sequence[Row], parameters: Mapping[str, Any]) -> list[list[float]]:
        return [row.tolist() for row in outputs.logits]


def _texts(model_type: str, config: Any) -> list[Row]:
    """Rows of random tokens; those of an encoder and decoder end with the token that its class looks for."""
    generator = torch.Generator().manual_seed(0)
    shortest = SHORTEST.get(model_type, 1)
    rows = [torch.randint(5, VOCABULARY, (max(n, shortest),), generator=generator).tolist() for n in LENGTHS]
    end = [getattr(config, "eos_token_id", None)] if getattr(config, "is_encoder_decoder", False) else []
    return [{"input_ids": row[: len(row) - len(end)] + end} for row in rows]


def _images(config: Any) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    side = side_of(config)
    return [{"pixel_values": torch.randn(3, side, side, generator=generator)} for _ in LENGTHS]


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, over the largest answer where that is above 1."""
    largest = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))
    return largest if math.isfinite(largest) else math.inf


def said(error: BaseException) -> str:
    """An error from below in one line, and the file that raised it."""
    said = (str(error).strip().splitlines() or [""])[0][:200]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name})" if frames else ""
    return f"{type(error).__name__}: {said}{where}"
