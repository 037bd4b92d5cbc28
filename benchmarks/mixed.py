"""One pass over 32 rows of 32 adapters, engine alone: ours, PEFT's `adapter_names`, polylora, latefuse, the bare base.

    python -m benchmarks.mixed [--threads 1] [--rounds 15]
        needs: pip install polylora==0.1.1; pip install --no-deps latefuse==0.1.0

MiniLM, 32 tweets of about 13 tokens, an adapter of rank 8 on all linear layers for each, answers of two labels. All
sides get the same padded batch in one process, in turn; milliseconds are medians over rounds. polylora has no heads,
so it is measured on the backbone's hidden states, and so is the engine beside it (`hidden`). latefuse adapts query, key
and value only, of one rank and in passes of one shape; it gives the first token's state, and so does the engine beside
it (`qkv`). It asks for transformers below 5, hence --no-deps. `drift` is the largest difference from PEFT's float32
logits (of `hidden` and `qkv`: from the other's states).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification

from benchmarks.machine import write
from ray_lora.adapters.adapter import Adapter
from ray_lora.bases.load import load_base, locate
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.recipe import BaseSpec
from ray_lora.tasks import build_task
from ray_lora.tasks.text_classification import TextClassificationSpec

K, RANK, TOKENS = 32, 8, 13
Side = Callable[[], Tensor]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=15)
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    batch = tweets()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        heads, bare = write_adapters(Path(folder) / "heads", True), write_adapters(Path(folder) / "bare", False)
        qkv = write_adapters(Path(folder) / "qkv", False, ["query", "key", "value"])
        sides: dict[str, Side] = {
            "peft": peft(heads, batch),
            "base": base(AutoModelForSequenceClassification, batch),
            "engine float32": ours(heads, batch, "float32"),
            "engine bfloat16": ours(heads, batch, "bfloat16"),
            "hidden polylora": polylora(bare, batch),
            "hidden base": base(AutoModel, batch),
            "hidden engine float32": ours(bare, batch, "float32", head=False),
            "qkv latefuse": latefuse(qkv, batch),
            "qkv engine float32": first(ours(qkv, batch, "float32", head=False)),
        }
        answers = {name: side() for name, side in sides.items()}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(asked.rounds):
            for name, side in sides.items():
                started = time.perf_counter()
                side()
                times[name].append(1000 * (time.perf_counter() - started))
    ms = {name: statistics.median(values) for name, values in times.items()}
    drift = {name: distance(answers[name], answers["peft"]) for name in ("engine float32", "engine bfloat16")}
    drift["hidden engine float32"] = distance(answers["hidden engine float32"], answers["hidden polylora"])
    drift["qkv engine float32"] = distance(answers["qkv engine float32"], answers["qkv latefuse"])
    ratios = {
        "peft / engine float32": ms["peft"] / ms["engine float32"],
        "peft / engine bfloat16": ms["peft"] / ms["engine bfloat16"],
        "polylora / engine float32, hidden": ms["hidden polylora"] / ms["hidden engine float32"],
        "latefuse / engine float32, qkv": ms["qkv latefuse"] / ms["qkv engine float32"],
        "engine float32 / base": ms["engine float32"] / ms["base"],
        "engine float32 / base, hidden": ms["hidden engine float32"] / ms["hidden base"],
    }
    for name, value in (ms | ratios).items():
        print(f"{name:36s} {value:8.2f}")
    print(drift)
    result = {"threads": asked.threads, "milliseconds": ms, "ratios": ratios, "drift": drift}
    print(write("mixed" if asked.threads == 1 else f"mixed-{asked.threads}-threads", {"what": __doc__, **result}))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def tweets() -> dict[str, Tensor]:
    """32 tweets whose lengths are nearest to 13 tokens."""
    spec = TextClassificationSpec(labels=("negative", "positive"))
    task = build_task(spec, load_base(BaseSpec(model="minilm")).processor)
    rows = task.encode(read("data/tweets/train-1024.parquet").to_pylist())
    chosen = sorted(rows, key=lambda row: abs(len(row["input_ids"]) - TOKENS))[:K]
    batch: dict[str, Tensor] = task.collate(chosen)
    return batch


def write_adapters(folder: Path, head: bool, targets: list[str] | None = None) -> Path:
    """K adapters as plain PEFT writes them, with a B that is not zero."""
    kind = AutoModelForSequenceClassification if head else AutoModel
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS if head else TaskType.FEATURE_EXTRACTION,
        r=RANK,
        lora_alpha=16,
        target_modules="all-linear" if head else targets or ["query", "key", "value", "dense"],
        exclude_modules=None if head else ["pooler.dense"],
    )
    for number in range(K):
        torch.manual_seed(number)
        with torch.inference_mode(False):
            model = get_peft_model(kind.from_pretrained(locate("minilm")), config)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(0, 0.02)
            model.save_pretrained(folder / str(number))
    return folder


def peft(folder: Path, batch: dict[str, Tensor]) -> Side:
    model: Any = AutoModelForSequenceClassification.from_pretrained(locate("minilm"), dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder / "0", adapter_name="0")
    for number in range(1, K):
        model.load_adapter(folder / str(number), adapter_name=str(number))
    model.eval()
    names = [str(number) for number in range(K)]
    return lambda: model(**batch, adapter_names=names).logits


def polylora(folder: Path, batch: dict[str, Tensor]) -> Side:
    from polylora import PolyLoraConfig, PolyLoraModel

    base: Any = AutoModel.from_pretrained(locate("minilm"), dtype=torch.float32, add_pooling_layer=False).eval()
    model: Any = PolyLoraModel(base, PolyLoraConfig(max_gpu_adapters=K + 1, max_rank=RANK)).eval()
    names = [str(number) for number in range(K)]
    for name in names:
        model.load_adapter_from_disk(name, str(folder / name), peft_adapter_name="default")
    return lambda: model(**batch, adapter_ids=names).last_hidden_state


def latefuse(folder: Path, batch: dict[str, Tensor]) -> Side:
    from latefuse import AdapterStore, HFEncoderWithLora, IndexSelectBatchAssembler, LoraServingConfig
    from latefuse import load_peft_adapter as load

    rows, tokens = batch["input_ids"].shape
    config = LoraServingConfig(
        model_name=str(locate("minilm")),
        lora_rank=RANK,
        batch_size=rows,
        max_seq_len=tokens,
        target_modules=["query", "key", "value"],
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    model, store = HFEncoderWithLora.from_pretrained_serving(config).eval(), AdapterStore(config)
    names = [str(number) for number in range(K)]
    for name in names:
        load(store, name, str(folder / name))
    assembler = IndexSelectBatchAssembler(store, config)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return lambda: model.encode_pooled(ids, mask, assembler.to_layerwise(names), pooling="cls")


def first(side: Side) -> Side:
    """The first token of a side's states."""
    return lambda: side()[:, 0]


def base(kind: Any, batch: dict[str, Tensor]) -> Side:
    model = kind.from_pretrained(locate("minilm"), dtype=torch.float32).eval()
    return lambda: model(**batch)[0]


def ours(folder: Path, batch: dict[str, Tensor], dtype: Any, head: bool = True) -> Side:
    engine = AdapterEngine(load_base(BaseSpec(model="minilm", dtype=dtype)), slots=K, max_rank=RANK)
    slots = torch.tensor([engine.load(Adapter.load(folder / str(number))) for number in range(K)])
    if not head:
        return lambda: engine.hidden(batch, slots).last_hidden_state

    def side() -> Tensor:
        ((_, outputs),) = engine.forward(batch, slots)
        logits: Tensor = outputs.logits
        return logits

    return side


if __name__ == "__main__":
    main()
