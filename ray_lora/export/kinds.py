"""Which tasks and which bases can be exported, and what a runner must know of each to read its rows.

A task is one entry of `KINDS` and one file in `edge/`. Bases are named, because a graph of one is only as good as the
comparison of its kind with the plain class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_lora.bases.base import Base
from ray_lora.bases.segments import tells_apart
from ray_lora.errors import RecipeError
from ray_lora.export.items import drawn_histories, of_items, ranks
from ray_lora.export.pictures import boxed, drawn_pictures, framed, of_boxes, of_masks, of_processor, sees
from ray_lora.export.prompts import drawn_prompts, goes_on, of_language_model, save_prompts
from ray_lora.export.sounds import drawn_sounds, of_letters, of_whisper, save_whisper, says_letters, writes_text
from ray_lora.recipe import Json
from ray_lora.tasks import Row, Task
from ray_lora.tasks.rows import BLANKS, is_text
from ray_lora.tasks.words import UNSPACED

ENCODERS = ("bert", "roberta")
PICTURES = ("resnet", "efficientnet-lite")
DETECTORS = ("yolox",)
SEGMENTERS = ("segmenter", "segformer")
LETTERS = ("wav2vec2",)
SPEECH = ("whisper",)
WRITERS = ("llama", "gpt2", "qwen2")
RECOMMENDERS = ("sasrec",)
_FEW = 64  # rows whose outputs are a map of a picture each, or that take long
_WRITTEN = 32  # rows whose texts are written
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
        ranged: whether 8 bits need the ranges that its activations have on rows.
        most: rows of data that are compared.
        beside: more files in `edge/` that the first needs.
        writes: whether an answer is written token by token, by graphs of one step.
        program: whether its ExecuTorch program was compared.
    """

    rows: str
    bases: tuple[str, ...]
    of_base: Callable[[Base], Mapping[str, Json]]
    of_adapter: Callable[[Task, Base], Mapping[str, Json]]
    save: Callable[[Base, Path], object]
    drawn: Callable[[Base, Task], Sequence[Row]]
    ranged: bool = False
    most: int = 1000
    beside: tuple[str, ...] = ()
    writes: bool = False
    program: bool = False


def kind_of(task: Task, base: Base) -> Kind:
    """RecipeError where the task, or its base, cannot be exported yet."""
    kinds = KINDS.get(task.spec.type, ())
    if not kinds:
        raise RecipeError(f"export of {task.spec.type} is not supported yet; supported: {', '.join(KINDS)}")
    known = getattr(base.config, "model_type", None) or base.prefix
    kind = next((kind for kind in kinds if known in kind.bases), None)
    if kind is None:
        raise RecipeError(
            f"export of {task.spec.type} on a base of type {known!r} was not compared with its plain class; supported: "
            f"{', '.join(name for kind in kinds for name in kind.bases)}"
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
    return told | {"blanks": BLANKS, "unspaced": UNSPACED}


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


def _no_file(base: Base, folder: Path) -> None:
    """What reads pictures or items, or says letters, needs no file beside the card."""


KINDS: Mapping[str, tuple[Kind, ...]] = {
    "text-classification": (
        Kind("text_classification", ENCODERS, _of_tokenizer, _classifier, _save_tokenizer, _texts, program=True),
    ),
    "token-classification": (
        Kind("token_classification", ENCODERS, _of_words, _tagger, _save_tokenizer, _words, program=True),
    ),
    "question-answering": (
        Kind("question_answering", ENCODERS, _of_questions, _reader, _save_tokenizer, _questions, program=True),
    ),
    "image-classification": (
        Kind("image_classification", PICTURES, of_processor, sees, _no_file, drawn_pictures, ranged=True, program=True),
    ),
    "object-detection": (
        Kind(
            "object_detection",
            DETECTORS,
            boxed,
            of_boxes,
            _no_file,
            drawn_pictures,
            ranged=True,
            most=_FEW,
            program=True,
        ),
    ),
    "image-segmentation": (
        Kind(
            "image_segmentation",
            SEGMENTERS,
            framed,
            of_masks,
            _no_file,
            drawn_pictures,
            ranged=True,
            most=_FEW,
            program=True,
        ),
    ),
    "sequential-recommendation": (
        Kind(
            "sequential_recommendation",
            RECOMMENDERS,
            of_items,
            ranks,
            _no_file,
            drawn_histories,
        ),
    ),
    "automatic-speech-recognition": (
        Kind(
            "speech_letters",
            LETTERS,
            of_letters,
            says_letters,
            _no_file,
            drawn_sounds,
            most=_FEW,
            beside=("sounds",),
        ),
        Kind(
            "speech_text",
            SPEECH,
            of_whisper,
            writes_text,
            save_whisper,
            drawn_sounds,
            most=_WRITTEN,
            beside=("sounds",),
            writes=True,
        ),
    ),
    "text-generation": (
        Kind(
            "text_generation",
            WRITERS,
            of_language_model,
            goes_on,
            save_prompts,
            drawn_prompts,
            most=_WRITTEN,
            writes=True,
        ),
    ),
}
