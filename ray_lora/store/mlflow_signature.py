"""What MLflow shows of an adapter: its rows' columns, what an answer has, its parameters, and rows to try it with.

    add_signature(model, folder, {"type": "text-classification", "labels": ["bad", "good"]})     # the task in a card

The rows are checked by `ray_lora.pyfunc`, not by MLflow: its own check of named columns refuses lists of texts, and of
unnamed ones it passes on the first column of a table, whichever that is. What MLflow itself does with this signature is
to pass on the parameters that it names; without one it leaves all of them out, with a warning.

It knows tasks by their names, and no tensors. A task of somebody else's gets no signature.
"""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_lora.recipe import Json

if TYPE_CHECKING:
    from mlflow.models import Model
    from mlflow.types import Schema
    from mlflow.types.schema import ColSpec

_EXAMPLE, _REQUEST = "input_example.json", "serving_input_example.json"  # MLflow's names
_SCORED = {"label": "string", "score": "double"}
_BOX = {"xmin": "long", "ymin": "long", "xmax": "long", "ymax": "long"}
# A column's type, and of objects the types of their parts; a list of one type is a list of such.
_INPUTS: Mapping[str, Mapping[str, Any]] = {
    "text-classification": {"text": "string", "text_pair?": "string"},
    "token-classification": {"tokens": "string"},
    "question-answering": {"question": "string", "context": "string"},
    "text-generation": {"prompt": "string"},
    "text-generation of text": {"text": "string"},
    "text-generation of messages": {"messages": [{"role": "string", "content": "string"}]},
    "image-classification": {"image": "string"},
    "object-detection": {"image": "string"},
    "image-segmentation": {"image": "string"},
    "automatic-speech-recognition": {"audio": "string"},
    "sequential-recommendation": {"items": [None]},
}
_OUTPUTS: Mapping[str, Mapping[str, Any]] = {
    "text-classification": _SCORED,
    "token-classification": {
        "prediction": [
            {"entity": "string", "score": "double", "index": "long", "word": "string", "start": "long", "end": "long"}
        ]
    },
    "question-answering": {"score": "double", "start": "long", "end": "long", "answer": "string"},
    "text-generation": {"generated_text": "string"},
    "image-classification": _SCORED,
    "object-detection": {"prediction": [{"score": "double", "label": "string", "box": _BOX}]},
    "image-segmentation": {"prediction": [{"label": "string", "score": "double", "mask": "string"}]},
    "automatic-speech-recognition": {"text": "string"},
    "sequential-recommendation": {"prediction": [{"item": None, "score": "double"}]},
}
# A parameter's type and what holds where nobody says; None: what the adapter's own options say.
_PARAMETERS: Mapping[str, Mapping[str, tuple[str, Json]]] = {
    "text-classification": {"top_k": ("long", None), "function_to_apply": ("string", None)},
    "token-classification": {"aggregation_strategy": ("string", "none"), "ignore_labels": ("string", ["O"])},
    "question-answering": {
        "top_k": ("long", 1),
        "handle_impossible_answer": ("boolean", None),
        "max_answer_len": ("long", None),
        "align_to_words": ("boolean", True),
    },
    "text-generation": {},
    "image-classification": {"top_k": ("long", None), "function_to_apply": ("string", None)},
    "object-detection": {
        "threshold": ("double", 0.5),
        "iou": ("double", None),
        "top_k": ("long", 100),
        "rounded": ("boolean", True),
    },
    "image-segmentation": {"threshold": ("double", 0.0), "form": ("string", "masks")},
    "automatic-speech-recognition": {
        "return_timestamps": ("boolean", None),
        "language": ("string", None),
        "max_new_tokens": ("long", None),
    },
    "sequential-recommendation": {"top_k": ("long", 10), "exclude_seen": ("boolean", None)},
}


def add_signature(model: Model, folder: Path, task: Mapping[str, Json] | None) -> None:
    """Give a model its signature, and write the files of its input example into the folder.

    Args:
        task: the task in an adapter's card.
    """
    kind = str((task or {}).get("type"))
    if task is None or kind not in _OUTPUTS:
        return
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec

    rows = task.get("rows", "prompt")
    inputs = _INPUTS[kind if kind != "text-generation" or rows == "prompt" else f"{kind} of {rows}"]
    params = [ParamSpec("answer", "string", None)] + [
        ParamSpec(name, dtype, default, (-1,) if isinstance(default, list) else None)
        for name, (dtype, default) in _PARAMETERS[kind].items()
    ]
    model.signature = ModelSignature(_schema(inputs), _schema(_OUTPUTS[kind]), ParamSchema(params))
    model.signature._is_signature_from_type_hint = (
        True  # rows are checked by who loads it, as a class with type hints does
    )
    example = _example(kind, inputs)
    if example is not None:
        (folder / _EXAMPLE).write_text(json.dumps(example))
        (folder / _REQUEST).write_text(json.dumps({"inputs": example}))
        model.saved_input_example_info = {
            "artifact_path": _EXAMPLE,
            "serving_input_path": _REQUEST,
            "type": "json_object",
        }


def _schema(columns: Mapping[str, Any]) -> Schema:
    from mlflow.types import Schema

    return Schema([_column(name, told) for name, told in columns.items()])


def _column(name: str, told: Any) -> ColSpec:
    from mlflow.types.schema import ColSpec

    return ColSpec(_type(told), name.removesuffix("?"), required=not name.endswith("?"))


def _type(told: Any) -> Any:
    from mlflow.types.schema import AnyType, Array, DataType, Object, Property

    if told is None:
        return AnyType()
    if isinstance(told, list):
        return Array(_type(told[0]))
    if isinstance(told, dict):
        return Object([Property(name, _type(inner)) for name, inner in told.items()])
    return DataType[told]


def _example(kind: str, inputs: Mapping[str, Any]) -> list[Json] | None:
    """Two rows; None where a row is of things that only the base knows."""
    if "items" in inputs:
        return None
    if "image" in inputs:
        return [_picture(), _picture()]
    if "audio" in inputs:
        return [_sound()]
    if "messages" in inputs:
        return [{"messages": [{"role": "user", "content": "What is the capital of France?"}]}]
    if "context" in inputs:
        context = "The capital of France is Paris."
        return [{"question": "What is the capital of France?", "context": context}]
    return ["what a lovely day", "the parcel from Paris came too late"]


def _picture() -> str:
    """A PNG of 32 x 32 pixels, as base64."""
    from PIL import Image

    pixels = bytes(value for y in range(32) for x in range(32) for value in (8 * x, 8 * y, (x * y) % 256))
    written = io.BytesIO()
    Image.frombytes("RGB", (32, 32), pixels).save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def _sound() -> str:
    """A WAV file of half a second, 16 kHz, a tone of 440 Hz, as base64."""
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        samples = (int(8_000 * math.sin(2 * math.pi * 440 * at / 16_000)) for at in range(8_000))
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return base64.b64encode(written.getvalue()).decode()
