"""One packed step against one PEFT adapter's step: real tokens a second, and peak memory, over K adapters.

    python -m benchmarks.step [--device cpu|cuda] [--seconds 4]

MiniLM, tweets, rank 8 on all linear layers, one thread (or one GPU). PEFT trains one adapter with AdamW, dynamic
padding and, for bf16, autocast over float32 weights, as its documentation has it; `peft joined` is the same model on
rows laid end to end, with the engine's own attention. A pack trains K adapters of as many seeds, its base held in the
dtype. Tokens are counted without padding; `computed` is the tokens that a pack's step computes over those. `memory` is
the peak resident set (on a GPU the peak allocated) of a fresh process that trains with batch 16; K times PEFT's is what
K processes take.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.machine import write
from ray_lora.bases.load import load_base, locate
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.engine.attention import JoinedPass
from ray_lora.engine.joined import Joined
from ray_lora.inference.predict import passes
from ray_lora.recipe import BaseSpec, LoraSpec, TrainingSpec
from ray_lora.tasks import Features, Task, build_task
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.training.job import Job
from ray_lora.training.pack import Pack, Split, Splits

KS, BATCHES, DTYPES = (1, 2, 4, 8, 16, 32), (1, 4, 16), ("float32", "bfloat16")
SPEC = TextClassificationSpec(labels=("negative", "positive"), max_length=64)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cpu")
    options.add_argument("--seconds", type=float, default=4.0)
    options.add_argument("--memory-of", help=argparse.SUPPRESS)
    asked = options.parse_args()
    torch.set_num_threads(1)
    if asked.memory_of:
        print(json.dumps(memory_of(asked.memory_of, asked.device)))
        return
    speeds = []
    for dtype, batch in itertools.product(DTYPES, BATCHES):
        alone = tokens_per_second(*peft_step(dtype, batch, asked.device), asked.seconds)
        line: dict[str, Any] = {"dtype": dtype, "batch": batch, "peft": alone}
        line["peft joined"] = tokens_per_second(*joined_step(dtype, batch, asked.device), asked.seconds) / alone
        for k in KS:
            line[f"K={k}"] = tokens_per_second(*pack_step(dtype, batch, k, asked.device), asked.seconds) / alone
        speeds.append(line)
        print({key: round(value, 2) if isinstance(value, float) else value for key, value in line.items()}, flush=True)
    memory: dict[str, Any] = {}
    for what in ("peft", *(f"{k}" for k in KS)):
        command = [sys.executable, "-m", "benchmarks.step", "--memory-of", what, "--device", asked.device]
        memory[what] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    ratios = {k: memory[f"{k}"] / (k * memory["peft"]) for k in KS}
    print({k: round(ratio, 3) for k, ratio in ratios.items()})
    shares = {f"K={k}": computed(16, k) for k in (1, 8, 16)}
    print(shares)
    name = "step" if asked.device == "cpu" else f"step-{asked.device}"
    found = {"speed": speeds, "computed": shares, "memory_bytes": memory, "memory_ratio": ratios}
    print(write(name, {"what": __doc__, **found}))


Step = Callable[[], int]  # trains one step, says how many real tokens it took


def tokens_per_second(step: Step, sync: Callable[[], None], seconds: float) -> float:
    for _ in range(2):
        step()
    sync()
    started, tokens = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        tokens += step()
        sync()
    return tokens / (time.perf_counter() - started)


def pack_step(dtype: str, batch: int, k: int, device: str) -> tuple[Step, Callable[[], None]]:
    base = load_base(BaseSpec.model_validate({"model": "minilm", "dtype": dtype}), device)
    task = build_task(SPEC, base.processor)
    rows = encoded(task)
    engine = AdapterEngine(base, slots=k, max_rank=8, train=True)
    pack = Pack(
        engine, {"data": Splits(Split(dict(enumerate(rows)), len(rows)))}, max_rows=64 if device == "cpu" else 512
    )
    training = {
        "num_train_epochs": 10**6,
        "per_device_train_batch_size": batch,
        "eval_steps": 10**9,
        "save_steps": 10**9,
    }
    for seed in range(k):
        pack.join(Job(str(seed), "data", SPEC, LoraSpec(r=8), TrainingSpec.model_validate({**training, "seed": seed})))

    def step() -> int:
        chosen = [member.rows_of(member.step) for member in pack.members.values()]
        pack.step()
        return sum(len(rows[row]["input_ids"]) for rows_ in chosen for row in rows_)

    return step, synchronise(device)


def peft_step(dtype: str, batch: int, device: str) -> tuple[Step, Callable[[], None]]:
    from peft import LoraConfig, TaskType, get_peft_model

    base = load_base(BaseSpec(model="minilm", dtype="float32"))
    task = build_task(SPEC, base.processor)
    rows = encoded(task)
    model: Any = AutoModelForSequenceClassification.from_pretrained(locate("minilm"), num_labels=2)
    model = get_peft_model(
        model, LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules="all-linear")
    ).to(device)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    order = itertools.cycle(torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist())

    def step() -> int:
        chosen: list[Features] = [rows[next(order)] for _ in range(batch)]
        inputs = {name: tensor.to(device) for name, tensor in task.collate(chosen).items()}
        labels = torch.tensor([row["labels"] for row in chosen], device=device)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(**inputs, labels=labels).loss
        return descend(loss, model, optimizer, chosen)

    return step, synchronise(device)


def joined_step(dtype: str, batch: int, device: str) -> tuple[Step, Callable[[], None]]:
    """PEFT's layers on rows laid end to end."""
    from peft import LoraConfig, TaskType, get_peft_model

    task = build_task(SPEC, load_base(BaseSpec(model="minilm", dtype="float32")).processor)
    rows = encoded(task)
    plain: Any = AutoModelForSequenceClassification.from_pretrained(locate("minilm"), num_labels=2)
    attention = JoinedPass(plain.bert)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules="all-linear")
    model: Any = get_peft_model(plain, config).to(device)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    order = itertools.cycle(torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist())

    def step() -> int:
        chosen: list[Features] = [rows[next(order)] for _ in range(batch)]
        inputs = task.collate(chosen)
        joined = attention.current = Joined.of(inputs["attention_mask"], [0] * batch, torch.device(device))
        labels = torch.tensor([row["labels"] for row in chosen], device=device)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            ids, positions = joined.take(inputs["input_ids"].to(device)), joined.positions[None]
            states = plain.bert(input_ids=ids, position_ids=positions).last_hidden_state
            logits = plain.classifier(plain.dropout(plain.bert.pooler(joined.spread(states))))
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        return descend(loss, model, optimizer, chosen)

    return step, synchronise(device)


def descend(loss: Any, model: Any, optimizer: torch.optim.Optimizer, chosen: list[Features]) -> int:
    """One optimizer step of a plain model; its real tokens."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return sum(len(row["input_ids"]) for row in chosen)


def computed(batch: int, k: int) -> float:
    """Tokens that a step of K adapters computes, over the real ones; the mean of eight steps."""
    engine = AdapterEngine(load_base(BaseSpec(model="minilm", dtype="float32")), slots=k, max_rank=8)
    task = build_task(SPEC, engine.base.processor)
    slots = [engine.init(LoraSpec(r=8), task.head, seed=0) for _ in range(k)]
    rows, draw = encoded(task), torch.Generator().manual_seed(0)
    all_tokens = real = 0
    for _ in range(8):
        chosen = [rows[row] for row in torch.randint(len(rows), (k * batch,), generator=draw).tolist()]
        owners = [slot for slot in slots for _ in range(batch)]
        for part in passes(engine, dict.fromkeys(slots, task), chosen, owners):
            mask = task.collate([chosen[row] for row in part])["attention_mask"]
            all_tokens += Joined.of(mask, [owners[row] for row in part], torch.device("cpu")).count
            real += int(mask.sum())
    engine.close()
    return all_tokens / real


def encoded(task: Task) -> list[Features]:
    return task.encode(read("data/tweets/train-1024.parquet").to_pylist())


def synchronise(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def memory_of(what: str, device: str) -> int:
    """Peak bytes of this process after some steps of PEFT, or of a pack of so many."""
    step, _ = peft_step("bfloat16", 16, device) if what == "peft" else pack_step("bfloat16", 16, int(what), device)
    for _ in range(6):
        step()
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # not getrusage's maximum, which a process begins with its parent's
    told = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert told
    return int(told[1]) * 1024


if __name__ == "__main__":
    main()
