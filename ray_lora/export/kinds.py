"""Which tasks and which bases can be exported, and what a runner must know of each to read its rows.

A task is one entry of `KINDS` and one file in `edge/`. Bases are named, because a graph of one is only as good as the
comparison of its kind with the plain class.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ray_lora.bases.base import Base
from ray_lora.bases.segments import tells_apart
from ray_lora.errors import RecipeError
from ray_lora.recipe import Json
from ray_lora.tasks import Row, Task
from ray_lora.tasks.rows import is_text

ENCODERS = ("bert", "roberta")
PICTURES = ("resnet", "efficientnet-lite")
_UNCROPPED = 384  # pixels, from which ConvNext's processor leaves nothing out
_SIZES = (3, 4, 7, 12, 20, 33)  # tokens of texts that are drawn


@dataclass(frozen=True)
class Kind:
    """A task on the edge.

    Attributes:
        rows: the file in `edge/` that reads its rows.
        bases: the types of bases that were compared.
        of_base: what a runner must know of the base; of_adapter: of one adapter.
        save: writes the files beside the card that its rows are read with.
        drawn: rows of no meaning, for a comparison without data.
        eight_bits: whether its products can have weights of 8 bits.
    """

    rows: str
    bases: tuple[str, ...]
    of_base: Callable[[Base], Mapping[str, Json]]
    of_adapter: Callable[[Task, Base], Mapping[str, Json]]
    save: Callable[[Base, Path], object]
    drawn: Callable[[Base, Task], Sequence[Row]]
    eight_bits: bool = True


def kind_of(task: Task, base: Base) -> Kind:
    """RecipeError where the task, or its base, cannot be exported yet."""
    kind = KINDS.get(task.spec.type)
    if kind is None:
        raise RecipeError(f"export of {task.spec.type} is not supported yet; supported: {', '.join(KINDS)}")
    known = getattr(base.config, "model_type", None) or base.prefix
    if known not in kind.bases:
        raise RecipeError(
            f"export of {task.spec.type} on a base of type {known!r} was not compared with its plain class; supported: "
            f"{', '.join(kind.bases)}"
        )
    if getattr(task.spec, "positive", None) is not None:
        raise RecipeError(
            "export of image-classification with a label of interest (task.positive) is not supported yet; its "
            "threshold would not be kept"
        )
    return kind


# -------------------------------------------------------------------- texts


def _of_tokenizer(base: Base) -> dict[str, Json]:
    tokenizer = base.processor
    if not getattr(tokenizer, "is_fast", False):
        raise RecipeError(f"base {base.id!r} has no fast tokenizer, the only kind that runs without transformers")
    if tokenizer.padding_side != "right":
        raise RecipeError(
            f"the tokenizer of base {base.id!r} pads on the left, which was not compared; none is exported"
        )
    typed = tells_apart(tokenizer)
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if typed else [])]
    return {
        "inputs": inputs,
        "texts": 1 if typed is None else 2,
        "padding": dict.fromkeys(inputs, 0) | {"input_ids": tokenizer.pad_token_id or 0},
        "truncation_side": tokenizer.truncation_side,
    }


def _save_tokenizer(base: Base, folder: Path) -> None:
    base.processor.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _of_words(base: Base) -> dict[str, Json]:
    told = _of_tokenizer(base)
    return told | {"inputs": told["inputs"][:2], "unknown": base.processor.unk_token_id}


def _of_questions(base: Base) -> dict[str, Json]:
    told = _of_tokenizer(base)
    if told["truncation_side"] != "right":
        raise RecipeError(
            f"the tokenizer of base {base.id!r} cuts on the left, which was not compared; none is exported"
        )
    return told


def _classifier(task: Any, base: Base) -> dict[str, Json]:
    return {"labels": list(task.labels), "function": task.function, "max_length": task.longest}


def _tagger(task: Any, base: Base) -> dict[str, Json]:
    return {"labels": list(task.labels), "max_length": task.longest, "windows": task.spec.stride is not None}


def _reader(task: Any, base: Base) -> dict[str, Json]:
    return {
        "max_length": task.longest,
        "max_question_len": task.longest_question,
        "max_answer_len": task.spec.max_answer_len,
        "handle_impossible_answer": bool(task.spec.handle_impossible_answer),
    }


def _texts(base: Base, task: Any) -> list[Row]:
    return [{"text": text} for text in _drawn_texts(base, task)]


def _words(base: Base, task: Any) -> list[Row]:
    return [{"tokens": text} for text in _drawn_texts(base, task)]


def _questions(base: Base, task: Any) -> list[Row]:
    texts = _drawn_texts(base, task)
    return [{"question": texts[0], "context": text} for text in texts[1:]]


def _drawn_texts(base: Base, task: Any) -> list[str]:
    """Texts of about so many tokens."""
    sizes = [size for size in _SIZES if 3 * size < task.longest]
    texts = [base.processor.decode(row["input_ids"]) for row in base.examples(sizes or [2])]
    return [text if is_text(text) else "a" for text in texts]


# -------------------------------------------------------------------- pictures


def _of_processor(base: Base) -> dict[str, Json]:
    """What the common image processors do to a picture's colours; the comparison says where one does more."""
    told = base.processor
    return {
        "inputs": ["pixel_values"],
        "padding": {},
        "resample": int(told.resample),
        "scale": told.rescale_factor if told.do_rescale else 1.0,
        "mean": list(told.image_mean) if told.do_normalize else [0.0],
        "std": list(told.image_std) if told.do_normalize else [1.0],
    }


def _sees(task: Any, base: Base) -> dict[str, Json]:
    """Sizes as the processor has them, or as the adapter was trained on others."""
    size = dict(base.processor.size)
    side = getattr(task.spec, "image_size", None)
    edge = side or size.get("shortest_edge")
    crop = None
    if "shortest_edge" in size:
        share = getattr(base.processor, "crop_pct", None)
        if share is None or edge is None:
            raise RecipeError(
                f"the image processor of base {base.id!r}, a {type(base.processor).__name__}, was not compared with "
                "what runs without transformers; supported are those that scale to height and width, and ConvNext's"
            )
        crop = int(edge / share) if edge < _UNCROPPED else None
    height, width = (edge, edge) if "shortest_edge" in size or side else (size["height"], size["width"])
    return {"labels": list(task.labels), "size": [height, width], "crop": crop}


def _pictures(base: Base, task: Any) -> list[Row]:
    """Of noise, wide, high and square."""
    from PIL import Image

    draw = np.random.default_rng(0)
    rows: list[Row] = []
    for height, width in ((40, 64), (64, 41), (50, 50), (300, 233)):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
        rows.append({"image": file.getvalue()})
    return rows


KINDS: Mapping[str, Kind] = {
    "text-classification": Kind("text_classification", ENCODERS, _of_tokenizer, _classifier, _save_tokenizer, _texts),
    "token-classification": Kind("token_classification", ENCODERS, _of_words, _tagger, _save_tokenizer, _words),
    "question-answering": Kind("question_answering", ENCODERS, _of_questions, _reader, _save_tokenizer, _questions),
    "image-classification": Kind(
        "image_classification", PICTURES, _of_processor, _sees, lambda base, folder: None, _pictures, eight_bits=False
    ),
}
