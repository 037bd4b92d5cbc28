"""Training of texts: K adapters on one base in one pack, and plain PEFT with transformers' Trainer, a process each.

    python -m benchmarks.generation_training [--adapters 8] [--batch 4] [--steps 12]

SmolLM2-135M-Instruct, entries of the World Factbook as prompt and completion, loss on the completion, adapters of rank
8 on all linear layers, one thread a process, each side in a fresh process and in turn. Rows a second of one process:
the Trainer's trains one adapter, so that K of them share the machine's cores as K packs would. `memory` is the peak
resident set; the ratio is of a pack's to K processes'. bfloat16 is a base held in it for the pack, and autocast over
float32 weights for the Trainer, as its documentation has it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.machine import write
from pipelines.written_texts import prepare
from ray_lora.bases.base import Base
from ray_lora.bases.load import load_base, locate
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.recipe import BaseSpec, LoraSpec, TrainingSpec
from ray_lora.tasks import Features, build_task
from ray_lora.tasks.generation_options import TextGenerationSpec
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack, Split, Splits

LONGEST, DTYPES, WARM = 160, ("float32", "bfloat16"), 2
SPEC, TRAIN = TextGenerationSpec(max_length=LONGEST), "data/written-entries/train.parquet"
Found = dict[str, float]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--adapters", type=int, default=8)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--side", choices=["pack", "trainer"], help=argparse.SUPPRESS)
    options.add_argument("--dtype", choices=DTYPES, help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.side:
        torch.set_num_threads(1)
        side = of_pack if asked.side == "pack" else of_trainer
        print(json.dumps(side(asked)))
        return
    prepare()
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        mine, theirs = (alone(side, dtype, asked) for side in ("pack", "trainer"))
        found[dtype] = {
            "pack": mine,
            "trainer": theirs,
            "speed": mine["rows_per_second"] / theirs["rows_per_second"],
            "memory": mine["memory_bytes"] / (asked.adapters * theirs["memory_bytes"]),
        }
        print(dtype, json.dumps(found[dtype]), flush=True)
    asked_for = {"adapters": asked.adapters, "batch": asked.batch, "steps": asked.steps}
    print(write("generation_training", {"what": __doc__, **asked_for, **found}))


def alone(side: str, dtype: str, asked: argparse.Namespace) -> Found:
    numbers = {"adapters": asked.adapters, "batch": asked.batch, "steps": asked.steps, "side": side, "dtype": dtype}
    words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.generation_training", *words]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: Found = json.loads(told.splitlines()[-1])
    return found


def encoded(base: Base) -> list[Features]:
    return build_task(SPEC, base.processor).encode(read(TRAIN).to_pylist())


def of_pack(asked: argparse.Namespace) -> Found:
    base = load_base(BaseSpec(model="smollm2", dtype=asked.dtype))
    rows = encoded(base)
    engine = AdapterEngine(base, slots=asked.adapters, max_rank=8, train=True)
    pack = Pack(engine, {"data": Splits(Split(dict(enumerate(rows)), len(rows)))})
    far = {"num_train_epochs": 10**6, "eval_steps": 10**9, "save_steps": 10**9}
    training = {**far, "per_device_train_batch_size": asked.batch, "learning_rate": 5e-4}
    for seed in range(asked.adapters):
        spec = TrainingSpec.model_validate({**training, "seed": seed})
        pack.join(Job(str(seed), "data", SPEC, LoraSpec(r=8, target_modules="all-linear"), spec))
    times = []
    for _ in range(WARM + asked.steps):
        began = time.perf_counter()
        pack.step()
        times.append(time.perf_counter() - began)
    return told(times, asked.adapters * asked.batch)


def labelled(tokenizer: Any, row: dict[str, str]) -> dict[str, list[int]]:
    """A row as the Trainer takes it: nothing is learnt of the prompt."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    said = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
    both, labels = prompt + said, [-100] * len(prompt) + said
    return {"input_ids": both[:LONGEST], "labels": labels[:LONGEST]}


def of_trainer(asked: argparse.Namespace) -> Found:
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    tokenizer: Any = AutoTokenizer.from_pretrained(locate("smollm2"))
    model: Any = AutoModelForCausalLM.from_pretrained(locate("smollm2"), dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times[-1] += time.perf_counter()

    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=WARM + asked.steps,
            per_device_train_batch_size=asked.batch,
            learning_rate=5e-4,
            bf16=asked.dtype == "bfloat16",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        rows = [labelled(tokenizer, row) for row in read(TRAIN).to_pylist()]
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
        Trainer(get_peft_model(model, config), arguments, collator, rows, callbacks=[Clock()]).train()
    return told(times, asked.batch)


def told(times: Sequence[float], rows: int) -> Found:
    memory = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert memory
    return {
        "rows_per_second": rows / statistics.median(times[WARM:]),
        "memory_bytes": int(memory[1]) * 1024,
    }


if __name__ == "__main__":
    main()
