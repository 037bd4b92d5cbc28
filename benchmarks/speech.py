"""Seconds of compute for a second of sound: eight rows of eight adapters in one call, each alone, and the bare base.

    python -m benchmarks.speech [--rounds 7] [--tokens 12] [--store FOLDER]

Whisper tiny.en with a window of 6 seconds, float32, one thread, `sdpa` attention on all sides. Rows are the first four
Italian and the first four Spanish test prompts (`pipelines.prompts`); each has an adapter of rank 16 in a slot of its
own, on the layers of the recipe's. With `--store` four slots hold its `prompts-it` and four its `prompts-es`
(`pipelines.speech` writes them); without it they are drawn, which changes what is written and not what a pass costs.
Every text is cut at `--tokens`.

    mixed            one call of the library for all rows and adapters: spectrograms, encoder, decoding, texts
    alone            a call for each row, with its own adapter
    bare             one call for all rows without adapters
    bare alone       a call for each row without adapters
    transformers     `generate` of the plain class for all rows: greedy, with its key and value cache

Seconds are of processor time (others may use the machine), medians over rounds in which sides take turns; a factor is
seconds over seconds of sound, silence of the window not counted. `encoder` has milliseconds inside the encoder: of
the engine's mixed pass, the engine's bare one and the plain class's; ratios are medians of each round's own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from benchmarks.machine import write
from pipelines import prompts
from ray_lora.bases.load import load_base, locate
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import predict
from ray_lora.recipe import BaseSpec, LoraSpec
from ray_lora.store import open_store
from ray_lora.tasks import Features, build_task
from ray_lora.tasks.speech.options import SpeechRecognitionSpec

BASE, LANGUAGES, EACH = "whisper-tiny.en-6s", ("it", "es"), 4
LORA = LoraSpec(r=16, lora_alpha=32, target_modules=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"))
Side = Callable[[], Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--tokens", type=int, default=12)
    options.add_argument("--store")
    asked = options.parse_args()
    torch.set_num_threads(1)
    prompts.prepare("data")
    found = measure(asked.rounds, asked.tokens, asked.store)
    told = {"what": __doc__, "base": BASE, "rounds": asked.rounds, "tokens": asked.tokens}
    print(json.dumps(found, indent=2), write("speech", told | found))


def measure(rounds: int, tokens: int, store: str | None) -> dict[str, Any]:
    """Every side's figures."""
    base = load_base(BaseSpec(model=BASE, dtype="float32", attn_implementation="sdpa"))
    task: Any = build_task(SpeechRecognitionSpec(), base.processor)
    rows = [row for language in LANGUAGES for row in read(f"data/prompts-{language}/test.parquet").to_pylist()[:EACH]]
    features: list[Features] = task.encode([{"audio": row["audio"]} for row in rows])
    seconds = sum(len(row["samples"]) for row in features) / task.base.rate
    engine = AdapterEngine(base, slots=len(rows), max_rank=LORA.r)
    slots = loaded(engine, task, store)
    plain: Any = transformers.WhisperForConditionalGeneration.from_pretrained(
        locate(BASE), dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    few = [{"max_new_tokens": tokens}]
    encoders = {"mixed": Inside(engine.base.backbone.encoder), "transformers": Inside(plain.model.encoder)}

    def call(owners: Sequence[int]) -> list[Any]:
        return predict(engine, dict.fromkeys(owners, task), features, owners, few * len(rows))

    def each(owners: Sequence[int]) -> list[Any]:
        return [
            predict(engine, {slot: task}, [row], [slot], few)[0] for row, slot in zip(features, owners, strict=True)
        ]

    bare = [0] * len(rows)
    sides: dict[str, Side] = {
        "mixed": lambda: call(slots),
        "bare": lambda: call(bare),
        "transformers": lambda: generated(plain, task, features, tokens),
        "alone": lambda: each(slots),
        "bare alone": lambda: each(bare),
    }
    said = {name: side() for name, side in sides.items()}  # the first time of each is not counted
    assert said["mixed"] == said["alone"], "a row's text depends on its company"
    assert said["bare"] == said["bare alone"] == said["transformers"], "the bare base writes other texts"
    times: dict[str, list[float]] = {name: [] for name in sides}
    inside: dict[str, list[float]] = {"mixed": [], "bare": [], "transformers": []}
    for _ in range(rounds):
        for name, side in sides.items():
            encoder = encoders.get("transformers" if name == "transformers" else "mixed")
            assert encoder is not None
            encoder.seconds, began = 0.0, time.process_time()
            side()
            times[name].append(time.process_time() - began)
            if name in inside:
                inside[name].append(encoder.seconds)
    engine.close()
    return {
        "seconds of sound": round(seconds, 2),
        "rows": len(rows),
        "adapters": "of the store" if store else "drawn",
        "tokens written": {name: written(task, said[name]) for name in ("mixed", "bare")},
        "real-time factor": {name: round(statistics.median(found) / seconds, 4) for name, found in times.items()},
        "mixed / alone": ratio(times["mixed"], times["alone"]),
        "mixed / bare": ratio(times["mixed"], times["bare"]),
        "mixed / transformers": ratio(times["mixed"], times["transformers"]),
        "encoder": {
            "milliseconds": {name: round(1e3 * statistics.median(found), 1) for name, found in inside.items()},
            "mixed / bare": ratio(inside["mixed"], inside["bare"]),
            "mixed / transformers": ratio(inside["mixed"], inside["transformers"]),
        },
        "mixed = alone": True,  # asserted above, text by text
        "texts": [
            {"said": row["text"], "written": answer["text"]} for row, answer in zip(rows, said["mixed"], strict=True)
        ],
    }


class Inside:
    """Seconds of processor time that a module's calls take."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.seconds, self._began = 0.0, 0.0
        module.register_forward_pre_hook(lambda *_: self._begin())
        module.register_forward_hook(lambda *_: self._end())

    def _begin(self) -> None:
        self._began = time.process_time()

    def _end(self) -> None:
        self.seconds += time.process_time() - self._began


def loaded(engine: AdapterEngine, task: Any, store: str | None) -> list[int]:
    """A slot for each row: of the store's adapters, four copies of each language's; or drawn ones."""
    if store is not None:
        adapters = [open_store(store).load(f"prompts-{language}")[1] for language in LANGUAGES]
        return [engine.load(adapter) for adapter in adapters for _ in range(EACH)]
    slots = []
    for seed in range(EACH * len(LANGUAGES)):
        slots.append(engine.init(LORA, task.head, seed=seed))
        draw = torch.Generator().manual_seed(seed)
        drawn = {
            key: torch.randn(value.shape, generator=draw) * 0.01 if "lora_B" in key else value
            for key, value in engine.read(slots[-1]).items()
        }
        engine.write(slots[-1], drawn)
    engine.refresh(slots)
    return slots


def generated(plain: Any, task: Any, features: Sequence[Features], tokens: int) -> list[Any]:
    """The plain class's texts of all rows, by transformers' own greedy search."""
    inputs = task.collate(features)["input_features"]
    begun = task.begin(features[0], {})
    asked = torch.tensor([list(begun.tokens)] * len(features))
    with torch.inference_mode():
        found = transformers.GenerationMixin.generate(
            plain, inputs, decoder_input_ids=asked, max_new_tokens=tokens, do_sample=False, num_beams=1
        )
    texts = task._tokenizer.batch_decode(found, skip_special_tokens=True)
    return [{"text": text} for text in texts]


def written(task: Any, answers: Sequence[Any]) -> int:
    return sum(len(task._tokenizer(answer["text"], add_special_tokens=False)["input_ids"]) for answer in answers)


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    return round(statistics.median(mine / theirs for mine, theirs in zip(one, other, strict=True)), 3)


if __name__ == "__main__":
    main()
