"""One pass that answers 32 rows of 32 adapters, by kind of base, against the bare plain class on the same rows.

    python -m benchmarks.kinds [--rounds 15] [--dtypes float32 bfloat16]

BERT is MiniLM; RoBERTa, DistilBERT and the Llama kind are models of MiniLM's width and depth with random weights, on
which time does not depend. Rows are 32 tweets, once of about 13 tokens (`even`) and once as they come (`mixed`); the
plain class gets them padded, in eval mode with its own `sdpa` attention and with `eager`, whichever is the faster. An
adapter of rank 8 on all linear layers and a head of two labels for each row. One thread; medians over rounds in turn.
`padding` is the share of the padded pass that is no token.
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
import transformers

from benchmarks.machine import write
from ray_lora.bases.load import load_base, locate
from ray_lora.bases.plain import HeadSpec
from ray_lora.data.read import read
from ray_lora.engine import AdapterEngine
from ray_lora.recipe import BaseSpec, LoraSpec
from ray_lora.tasks import Features, Task, build_task
from ray_lora.tasks.text_classification import TextClassificationSpec

K, RANK, TOKENS = 32, 8, 13
HEAD = "AutoModelForSequenceClassification"
WIDE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "vocab_size": 30522, "pad_token_id": 0}
KINDS: dict[str, dict[str, Any] | None] = {
    "bert": None,
    "roberta": WIDE | {"intermediate_size": 1536, "type_vocab_size": 1, "max_position_embeddings": 514},
    "distilbert": {"dim": 384, "n_layers": 6, "n_heads": 12, "hidden_dim": 1536, "vocab_size": 30522},
    "llama": WIDE | {"intermediate_size": 1024, "num_key_value_heads": 4, "max_position_embeddings": 512},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    asked = options.parse_args()
    torch.set_num_threads(1)
    task = build_task(TextClassificationSpec(labels=("negative", "positive")), load_base(BaseSpec()).processor)
    rows = task.encode(read("data/tweets/train-1024.parquet").to_pylist())
    batches = {"even": nearest(rows, TOKENS), "mixed": rows[:K]}
    lines = []
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        for kind in KINDS:
            folder = save(kind, Path(scratch) / kind)
            for dtype in asked.dtypes:
                for name, chosen in batches.items():
                    line = {"kind": kind, "dtype": dtype, "rows": name} | measure(
                        folder, dtype, task, chosen, asked.rounds
                    )
                    lines.append(line)
                    print(" ".join(f"{key} {value}" for key, value in line.items()), flush=True)
    print(write("kinds", {"what": __doc__, "passes": lines}))


def measure(folder: Path, dtype: Any, task: Task, chosen: list[Features], rounds: int) -> dict[str, Any]:
    batch = task.collate(chosen)
    mask = batch["attention_mask"]
    engine = AdapterEngine(load_base(BaseSpec(model=str(folder), dtype=dtype)), slots=K, max_rank=RANK)
    slots = torch.tensor([engine.init(LoraSpec(r=RANK), HeadSpec(HEAD, 2), seed=seed) for seed in range(K)])
    plain = {
        way: transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=2, dtype=getattr(torch, dtype), attn_implementation=way
        ).eval()
        for way in ("eager", "sdpa")
    }
    sides: dict[str, Callable[[], Any]] = {way: lambda model=model: model(**batch) for way, model in plain.items()}  # type: ignore[misc]
    sides["engine"] = lambda: engine.forward(batch, slots)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 2):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            if round_ > 1:
                times[name].append(1000 * (time.perf_counter() - began))
    engine.close()
    ms = {name: statistics.median(values) for name, values in times.items()}
    bare = min(ms["eager"], ms["sdpa"])
    return {
        "bare_ms": round(bare, 2),
        "engine_ms": round(ms["engine"], 2),
        "engine/bare": round(ms["engine"] / bare, 3),
        "padding": round(1 - float(mask.float().mean()), 3),
        "way": engine.sharing.lengths,
    }


def nearest(rows: list[Features], tokens: int) -> list[Features]:
    return sorted(rows, key=lambda row: abs(len(row["input_ids"]) - tokens))[:K]


def save(kind: str, folder: Path) -> Path:
    """A base of a kind; MiniLM itself, or random weights of its size."""
    sizes = KINDS[kind]
    if sizes is None:
        return locate("minilm")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **sizes)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
