"""Tables answered: rows of many adapters, beside a loop over PEFT adapters and beside the engine's own mixed pass.

    python -m benchmarks.answers [--adapters 64] [--rows 256] [--many 1000] [--dtype float32]

MiniLM, tweets as they come, adapters of rank 8 on all linear layers with heads of two labels, one process and one
thread. All sides in one run, in turn. Rows a second are of processor time, that of threads that read ahead included, so
that a machine which does other work beside changes them little; loading the base is not in them.

    peft            one PEFT model, all adapters loaded into it; for each adapter set_adapter and transformers' pipeline
                    over its rows, in batches of 64
    tables          `TableAnswers` over the table, rows in random order
    engine          the engine's own mixed pass over the same rows, encoded before, all adapters in slots (`predict`)
    one             `TableAnswers` over as many rows of a single adapter
    many            `TableAnswers` over rows of `--many` adapters in 32 slots, in random order, read from disk as needed

`rows.py` calls `measure`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from benchmarks.machine import write
from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.bases.load import load_base, locate
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.inference.pinned import pin
from ray_lora.inference.predict import predict
from ray_lora.inference.tables import TableAnswers
from ray_lora.recipe import BaseSpec
from ray_lora.store import open_store
from ray_lora.tasks import build_task
from ray_lora.tasks.text_classification import TextClassificationSpec

RANK, SLOTS, _WARM = 8, 32, 1024
SPEC = TextClassificationSpec(labels=("negative", "positive"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--adapters", type=int, default=64)
    options.add_argument("--rows", type=int, default=256, help="of each adapter")
    options.add_argument("--many", type=int, default=1000)
    options.add_argument("--dtype", default="auto", help="of our side and of the engine's")
    options.add_argument("--peft-dtype", default="float32", help="as transformers' pipeline loads this base")
    options.add_argument("--rounds", type=int, default=3)
    asked = options.parse_args()
    result = measure(asked.adapters, asked.rows, asked.many, asked.dtype, asked.rounds, asked.peft_dtype)
    print(json.dumps(result, indent=2))
    print(write("answers", {"what": __doc__, **result}))


def measure(
    adapters: int = 64,
    rows: int = 256,
    many: int = 1000,
    dtype: str = "auto",
    rounds: int = 3,
    peft_dtype: str = "float32",
) -> dict[str, Any]:
    """Rows a second of every side, the median of rounds, and the ratios."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_store(root / "store", adapters)
        write_many(root / "many", root / "store", many)
        texts = tweets(adapters * rows)
        refs = [f"a{row % adapters:04d}" for row in range(len(texts))]
        random.Random(0).shuffle(refs)
        spread = [f"a{number:04d}" for number in random.Random(1).choices(range(many), k=len(texts))]
        of_many = Tables(root / "many", sorted(set(spread)), dtype)
        of_few = Tables(root / "store", sorted(set(refs)), dtype, adapters)
        sides: dict[str, Callable[[int], Any]] = {
            "tables": lambda count: of_few.answer(texts[:count], refs[:count]),
            "engine": engine(root / "store", texts, refs, dtype),
            "one": lambda count: of_few.answer(texts[:count], ["a0000"] * count),
            "many": lambda count: of_many.answer(texts[:count], spread[:count]),
        }
        few = min(len(texts), 64 * adapters)  # whole batches of the slow side, which gains nothing from more
        loop = peft_loop(root / "store", adapters, peft_dtype)
        rates: dict[str, list[float]] = {name: [] for name in (*sides, "peft")}
        for side in sides.values():  # bases are loaded, engines made
            side(_WARM)
        for _ in range(rounds):
            for name, side in sides.items():
                rates[name].append(len(texts) / seconds(side, len(texts)))
            rates["peft"].append(few / seconds(lambda count: loop(texts[:count], refs[:count]), few))
        same = agreement(of_few.answer(texts[:few], refs[:few]), loop(texts[:few], refs[:few]))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "adapters": adapters,
        "rows_of_each": rows,
        "many": many,
        "slots": {"tables": adapters, "many": SLOTS},
        "dtype": {"ours": dtype, "peft": peft_dtype},
        "rows_per_second": middle,
        "rounds": rates,
        "peft_rows": few,
        "largest_difference_from_peft": same,
        "ratios": {
            "tables / peft": middle["tables"] / middle["peft"],
            "tables / engine": middle["tables"] / middle["engine"],
            "many / one": middle["many"] / middle["one"],
        },
    }


def seconds(side: Callable[[int], Any], count: int) -> float:
    """Processor seconds of this process: a machine that does other work beside does not change them much."""
    began = time.process_time()
    side(count)
    return time.process_time() - began


class Tables:
    """A store's adapters, ready to answer."""

    def __init__(self, folder: Path, refs: list[str], dtype: str, slots: int = SLOTS) -> None:
        store = open_store(str(folder))
        self.tables = TableAnswers(store, pin(store, refs), slots=slots, dtype=dtype)

    def answer(self, texts: list[str], refs: list[str]) -> list[Any]:
        return [answer.prediction for answer in self.tables.answer(pa.table({"text": texts}), refs)]


def engine(folder: Path, texts: list[str], refs: list[str], dtype: str) -> Callable[[int], Any]:
    """Rows that are encoded, adapters that are mounted: nothing but passes, in stretches as tables have them."""
    names = sorted(set(refs))
    base = load_base(BaseSpec.model_validate({"model": "minilm", "dtype": dtype}))
    held = AdapterEngine(base, slots=len(names), max_rank=RANK)
    slots = {name: held.load(Adapter.load(folder / name)) for name in names}
    task = build_task(SPEC, base.processor)
    features = task.encode([{"text": text} for text in texts])
    tasks = dict.fromkeys(slots.values(), task)

    def side(count: int) -> None:
        order = sorted(range(count), key=lambda row: refs[row])
        for at in range(0, count, 512):
            stretch = order[at : at + 512]
            predict(held, tasks, [features[row] for row in stretch], [slots[refs[row]] for row in stretch])

    return side


def peft_loop(folder: Path, adapters: int, dtype: str) -> Callable[[list[str], list[str]], list[Any]]:
    names = [f"a{number:04d}" for number in range(adapters)]
    plain: Any = AutoModelForSequenceClassification.from_pretrained(locate("minilm"), dtype=getattr(torch, dtype))
    model = PeftModel.from_pretrained(plain, folder / names[0], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(folder / name, adapter_name=name)
    model.eval()
    model.config.id2label, model.config.label2id = dict(enumerate(SPEC.labels or ())), {}
    ask = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(locate("minilm")))

    def side(texts: list[str], refs: list[str]) -> list[Any]:
        found: dict[int, Any] = {}
        for name in dict.fromkeys(refs):
            mine = [row for row, ref in enumerate(refs) if ref == name]
            model.set_adapter(name)
            found |= dict(zip(mine, ask([texts[row] for row in mine], batch_size=64), strict=True))
        return [found[row] for row in range(len(refs))]

    return side


def agreement(ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference of scores, of the same label."""
    largest = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        score = other["score"] if other["label"] == mine["label"] else 1 - other["score"]
        largest = max(largest, abs(mine["score"] - score))
    return largest


def tweets(count: int) -> list[str]:
    texts = read("data/tweets/train-1024.parquet").column("text").to_pylist()
    return (texts * (count // len(texts) + 1))[:count]


def write_store(folder: Path, adapters: int) -> None:
    """Adapters as plain PEFT writes them, with a B that is not zero, and our card beside."""
    model = AutoModelForSequenceClassification.from_pretrained(locate("minilm"))
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=RANK, lora_alpha=16, target_modules="all-linear")
    wrapped = get_peft_model(model, config)
    for number in range(adapters):
        torch.manual_seed(number)
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data.normal_(0, 0.02)
        wrapped.save_pretrained(folder / "plain")
        card(folder / "plain", folder / f"a{number:04d}")
    shutil.rmtree(folder / "plain")


def card(plain: Path, folder: Path) -> None:
    adapter = Adapter.load(plain)
    told = Card(task=SPEC, base="minilm", architecture="AutoModelForSequenceClassification")
    Adapter(adapter.config, adapter.layers, adapter.head, told, adapter.peft_type, adapter.head_modules).save(folder)
    for left in plain.iterdir():
        left.unlink()


def write_many(folder: Path, few: Path, many: int) -> None:
    """Further adapters, each of other numbers: those of the few, moved a little."""
    known = sorted(few.iterdir())
    for number in range(many):
        source, target = known[number % len(known)], folder / f"a{number:04d}"
        shutil.copytree(source, target)
        tensors = load_file(source / "adapter_model.safetensors")
        moved = {name: tensor + (1e-6 * number if "lora_A" in name else 0) for name, tensor in tensors.items()}
        save_file(moved, target / "adapter_model.safetensors", metadata={"format": "pt"})
        told = json.loads((target / "ray_lora.json").read_text())
        (target / "ray_lora.json").write_text(json.dumps(told | {"sha256": None}))


if __name__ == "__main__":
    main()
