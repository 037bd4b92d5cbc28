"""One pass over 32 rows of 32 adapters, task by task: the engine, PEFT's `adapter_names`, and the bare base.

    python -m benchmarks.mixed_tasks [--only token-classification ...] [--rounds 15] [--decoder FOLDER]

MiniLM (and a decoder in a folder of safetensors, where one is given: SmolLM2-135M), float32, one thread. Rows are
made of tweets: of about 13 tokens for labels, of about 105 for questions with a context; `even` ones are of about one
length, `as they come` is the first 32. An adapter of rank 8 on all linear layers and a head of its own for
each row, saved by plain PEFT. The base is the task's plain class without adapters, in eval mode with its own attention
(`sdpa`); it and PEFT get the padded batch. All sides take turns in one process; milliseconds are medians over rounds (a
third as many of the decoder), ratios medians of each round's own, and `spread` is the largest of a third of a side's
rounds over the smallest. `drift` is the largest difference from PEFT's answers at any token of a row.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor

from benchmarks.machine import write
from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.bases.load import load_base, locate
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.inference.predict import passes
from ray_lora.inference.windows import spread_windows
from ray_lora.recipe import BaseSpec, TaskSpec
from ray_lora.tasks import Features, Task, build_task
from ray_lora.tasks.question_answering import QuestionAnsweringSpec
from ray_lora.tasks.text_classification import TextClassificationSpec
from ray_lora.tasks.token_classification import TokenClassificationSpec

K, RANK = 32, 8
TAGS = ("O", *(f"{place}-{kind}" for kind in ("loc", "misc", "org", "per") for place in "BI"))
SPECS: Mapping[str, TaskSpec] = {
    "text-classification": TextClassificationSpec(labels=("negative", "positive")),
    "token-classification": TokenClassificationSpec(labels=TAGS),
    "question-answering": QuestionAnsweringSpec(handle_impossible_answer=False),
}
DECODED: Mapping[str, TaskSpec] = {
    "token-classification": SPECS["token-classification"],
    "token-classification, both ways": TokenClassificationSpec(labels=TAGS, attention="bidirectional"),
}
Side = Callable[[], Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", default=[], metavar="TASK")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--decoder", type=Path)
    asked = options.parse_args()
    torch.set_num_threads(1)
    cases = [("minilm", name, spec) for name, spec in SPECS.items()]
    cases += [(str(asked.decoder), name, spec) for name, spec in DECODED.items() if asked.decoder]
    lines = []
    for base, name, spec in cases:
        if asked.only and name not in asked.only:
            continue
        task = build_task(spec, load_base(BaseSpec(model=base, dtype="float32")).processor)
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            for rows, chosen in batches(task).items():
                few = asked.rounds if base == "minilm" else max(3, asked.rounds // 3)
                found = measure(base, task, chosen, Path(folder) / rows, few)
                lines.append({"base": Path(base).name, "task": name, "rows": rows} | found)
                print(lines[-1], write("mixed-tasks", {"what": __doc__, "threads": 1, "lines": lines}), flush=True)


def batches(task: Task) -> dict[str, list[Features]]:
    """32 rows of about one length, and the first 32."""
    texts = read("data/tweets/train-1024.parquet").column("text").to_pylist()
    if task.input == "question":
        given = [{"question": text, "context": " ".join(texts[at : at + 4])} for at, text in enumerate(texts[:-4])]
    else:
        given = [{task.input: text} for text in texts]
    features = spread_windows({0: task}, task.encode(given), [0] * len(given)).features
    middle = statistics.median(map(task.size, features)) if task.input == "question" else 13
    even = sorted(features, key=lambda row: abs(task.size(row) - middle))[:K]
    return {"even": even, "as they come": list(features[:K])}


def measure(base: str, task: Task, rows: Sequence[Features], folder: Path, rounds: int) -> dict[str, Any]:
    batch = task.collate(rows)
    mask = batch["attention_mask"].bool()
    sides: dict[str, Side] = {
        "peft": peft(base, task, folder, batch),
        "base": bare(base, task, batch),
        "engine": ours(base, task, folder, rows),
    }
    theirs = sides["peft"]()
    drift = max(distance(outputs, theirs, mask, chunk) for chunk, outputs in sides["engine"]())
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            times[name].append(1000 * (time.perf_counter() - began))
    ms = {name: statistics.median(values) for name, values in times.items()}
    thirds = {name: [statistics.median(values[at::3]) for at in range(3)] for name, values in times.items()}
    return {
        "tokens": int(mask.sum()),
        "padding": 1 - float(mask.double().mean()),
        "milliseconds": ms,
        "spread": {name: max(parts) / min(parts) for name, parts in thirds.items()},
        "engine / base": ratio(times["engine"], times["base"]),
        "peft / engine": ratio(times["peft"], times["engine"]),
        "drift": drift,
    }


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(one, other, strict=True))


def plain(base: str, task: Task) -> Any:
    where = locate(base)
    config = transformers.AutoConfig.from_pretrained(where, num_labels=task.head.num_labels)
    if task.head.attention == "bidirectional":
        config.is_causal = False
    factory = getattr(transformers, task.head.architecture)
    return factory.from_pretrained(where, config=config, dtype=torch.float32).eval()


def bare(base: str, task: Task, batch: dict[str, Tensor]) -> Side:
    model = plain(base, task)
    return lambda: model(**batch)


def peft(base: str, task: Task, folder: Path, batch: dict[str, Tensor]) -> Side:
    """K adapters in plain PEFT, with a B that is not zero; saved to `folder`, each under its number."""
    # of any class but a classifier of rows `all-linear` takes the head too
    heads = None if task.peft_type == "SEQ_CLS" else ["classifier", "score", "qa_outputs"]
    config = LoraConfig(
        task_type=task.peft_type, r=RANK, lora_alpha=16, target_modules="all-linear", exclude_modules=heads
    )
    names = [f"adapter-{number}" for number in range(K)]  # bare numbers are layers in PEFT's keys
    with torch.inference_mode(False), torch.no_grad():
        model: Any = get_peft_model(plain(base, task), config, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, config)
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.02)
            elif "modules_to_save" in name and parameter.dim() > 1:
                parameter.data.normal_(0, 0.2)
        model.save_pretrained(folder, selected_adapters=names)
    model.eval()
    if "token_type_ids" not in batch:
        return lambda: model(**batch, adapter_names=names)

    def side() -> Any:  # PEFT's class for answers to questions drops token_type_ids, the one below it does not
        with model.base_model._enable_peft_forward_hooks(adapter_names=names):
            return model.base_model(**batch)

    return side


def ours(base: str, task: Task, folder: Path, rows: Sequence[Features]) -> Side:
    """The passes that the library cuts these rows into."""
    engine = AdapterEngine(load_base(BaseSpec(model=base, dtype="float32")), slots=K, max_rank=RANK)
    adapters = [Adapter.load(folder / f"adapter-{number}") for number in range(K)]
    for adapter in adapters:
        object.__setattr__(adapter, "card", Card(task=task.spec))
    slots = [engine.load(adapter) for adapter in adapters]
    chunks = passes(engine, dict.fromkeys(slots, task), rows, slots)
    parts = [
        (task.collate([rows[row] for row in chunk]), torch.tensor([slots[row] for row in chunk])) for chunk in chunks
    ]

    def side() -> list[tuple[list[int], Any]]:
        return [(chunk, engine.forward(*part)[0][1]) for chunk, part in zip(chunks, parts, strict=True)]

    return side


def distance(ours: Any, theirs: Any, mask: Tensor, chunk: Sequence[int]) -> float:
    """Between the answers to the rows of `chunk`, at each token of a row where there are as many."""
    names = [name for name in ("logits", "start_logits", "end_logits") if name in theirs]
    found = []
    for name in names:
        for mine, row in zip(ours[name], chunk, strict=True):
            wanted = theirs[name][row]
            if wanted.shape[:1] == mask.shape[1:]:  # a pass of a part of the rows may be less wide
                wanted, mine = wanted[mask[row]], mine[_kept(mask[row], len(mine))]
            found.append(float((mine - wanted).abs().max()))
    return max(found)


def _kept(mask: Tensor, width: int) -> Tensor:
    """A row's mask in a narrower pass: padding is cut off at the side where it lies."""
    return mask[:width] if bool(mask[0]) else mask[-width:]


if __name__ == "__main__":
    main()
