"""A task that hears, as small as it can be, on the base of the boxes: what is asked of it is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from ray_lora import BaseSpec, Card, load_base
from ray_lora.bases.plain import HeadSpec
from ray_lora.engine import AdapterEngine
from ray_lora.recipe import Json, LoraSpec, TaskSpec
from ray_lora.store import open_store
from ray_lora.tasks import Column, Features, Row
from ray_lora.tasks.sounds import RATE, open_sound
from tests.boxes.rows import BASE, TASK
from tests.boxes.task import SIDE, Boxes, BoxesSpec


class HeardSpec(BoxesSpec):
    """Options of the task below."""

    type: Literal["tests.unit.speech_world:Heard"] = "tests.unit.speech_world:Heard"  # type: ignore[assignment]
    language: str | None = "it"


class Heard(Boxes):
    """How many samples a sound has, said as a text, a word for each half second."""

    spec_type: ClassVar[type[TaskSpec]] = HeardSpec
    columns: ClassVar[Mapping[str, Column]] = {"audio": Column(("audio",)), "text": Column(("text",), "training")}
    input: ClassVar[str] = "audio"
    pipeline: ClassVar[str] = "automatic-speech-recognition"
    full: ClassVar[Mapping[str, Json]] = {}

    def row(self, row: Row) -> Features:
        import torch

        samples = open_sound(row["audio"])
        return {"pixel_values": torch.zeros(3, SIDE, SIDE), "samples": len(samples)}

    def check_parameters(self, parameters: Mapping[str, Json]) -> None:
        unknown = sorted(set(parameters) - {"return_timestamps", "language"})
        if unknown:
            raise ValueError(unknown)

    def decode(self, outputs: Any, features: Sequence[Features], parameters: Mapping[str, Json]) -> list[Json]:
        answers: list[Json] = []
        for row in features:
            words = ["word"] * (2 * row["samples"] // RATE)
            answer: dict[str, Json] = {"text": "".join(f" {word}" for word in words)}
            if parameters.get("return_timestamps"):
                answer["chunks"] = [
                    {"timestamp": [at / 2, (at + 1) / 2], "text": f" {word}"} for at, word in enumerate(words)
                ]
            answers.append(answer)
        return answers


@contextmanager
def make_world(root: Path) -> Iterator[str]:
    """`root` with store/heard, the task above, and store/boxes, which hears nothing; the name of their base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_LORA_ALLOW", "tests.boxes,tests.unit.speech_world")
        engine = AdapterEngine(load_base(BaseSpec(model=BASE, dtype="float32")), slots=2, max_rank=2)
        lora, store = LoraSpec(r=2, lora_alpha=3, target_modules=("stem", "last")), open_store(str(root / "store"))
        for name, kind in (("heard", "tests.unit.speech_world:Heard"), ("boxes", TASK)):
            slot = engine.init(lora, HeadSpec("Finder", 5), seed=0, peft_type=None)
            store.put(engine.export(slot, Card(task=TaskSpec.model_validate({"type": kind}))), name)
        engine.close()
        yield BASE
