"""A SASRec pretrained on one group's interactions, from which other groups' adapters start.

    python -m pipelines.recommender_base [--out data]

pretrains on the source group of `pipelines.interactions`, and a second run reuses, `data/interactions-base/`: a folder
of ray_lora.bases.sasrec with a card and `pretraining.json`. It learns from the source's training rows alone; the other
groups' users are not among them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch.nn.functional import cross_entropy

from pipelines.interactions import FIRST, WORLD, write_rows
from pipelines.kept_rows import sha256
from ray_lora.bases.padding import pad
from ray_lora.bases.sasrec import Items, SasRecConfig, SasRecForNextItem, save_folder
from ray_lora.bases.sasrec.folder import fresh
from ray_lora.tasks import build_task
from ray_lora.tasks.sequential_recommendation import SequentialRecommendationSpec

SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
TRAINING = {"seed": 0, "epochs": 20, "batch_size": 128, "learning_rate": 5e-3, "weight_decay": 0.01}
CARD = """# {name}

A SASRec (Kang and McAuley 2018, arXiv 1808.09781) of {parameters:,} parameters, **pretrained by this project**
(`pipelines/recommender_base.py`) from random weights, on {rows:,} histories of {items:,} items and on nothing else:
{epochs} epochs, seed {seed}. {about}

On {held:,} held-out next items of its own users, over the full ranking without what they had before: {scores}.
sha256 of the weights: {sha256}.
"""


def pretrain(
    folder: Path,
    rows: Path,
    about: str,
    positions: int = 50,
    training: Mapping[str, Any] = TRAINING,
    catalogue: Sequence[int | str] = (),
) -> Path:
    """The folder of a base trained on `rows`/train.parquet, made where it is not there yet.

    Args:
        about: of the data, for the card.
        catalogue: items that nobody may have had yet and somebody of another group may.
    """
    read = {split: pq.read_table(rows / f"{split}.parquet").to_pylist() for split in ("train", "test")}
    making = {
        "rows": {split: sha256(rows / f"{split}.parquet") for split in read},
        "training": dict(training), "sizes": SIZES, "positions": positions,
        "catalogue": list(catalogue), "form": 1,
    }  # fmt: skip
    record = folder / "pretraining.json"
    if record.exists() and json.loads(record.read_text())["making"] == making:
        return folder
    known = sorted({*catalogue, *(item for row in read["train"] for item in (*row["items"], row["next"]))})
    config = SasRecConfig(items=tuple(known), max_position_embeddings=positions, **SIZES)
    model = _train(config, read["train"], training)
    scores = measure(model, config, read["test"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / "base"
        save_folder(model.sasrec.state_dict(), config, made)
        parameters, digest = sum(weight.numel() for weight in model.parameters()), sha256(made / "model.safetensors")
        card = CARD.format(
            name=folder.name, parameters=parameters, rows=len(read["train"]), items=len(known), about=about,
            held=len(read["test"]), scores=say(scores), sha256=digest, **training,
        )  # fmt: skip
        (made / "README.md").write_text(card)
        told = {"making": making, "parameters": parameters, "scores": scores, "sha256": digest}
        (made / "pretraining.json").write_text(json.dumps(told, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            made.rename(folder)
        except OSError:  # another process was first, and made the same
            if not record.exists():
                raise
    print(f"{folder}: {parameters:,} parameters, {len(known):,} items; its own users' test rows: {say(scores)}")
    return folder


def _train(config: SasRecConfig, rows: Sequence[Mapping[str, Any]], training: Mapping[str, Any]) -> SasRecForNextItem:
    """From random weights; every item but a row's first is a target."""
    items, size = Items(config.items, config.max_position_embeddings), int(training["batch_size"])
    ids = [[items.number(item) or 0 for item in (*row["items"], row["next"])] for row in rows]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(training["seed"]))
        model = SasRecForNextItem(config, fresh(config, int(training["seed"]))).train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=training["learning_rate"], weight_decay=training["weight_decay"]
        )
        total = int(training["epochs"]) * -(-len(ids) // size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training["learning_rate"], total, pct_start=0.1)
        for _ in range(int(training["epochs"])):
            for chosen in torch.randperm(len(ids)).split(size):
                batch = pad([ids[row][-items.positions - 1 :] for row in chosen.tolist()], items)
                logits = model(batch["input_ids"][:, :-1], batch["attention_mask"][:, :-1])["logits"]
                cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten() - 1, ignore_index=-1).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
    return model.eval()


def measure(model: SasRecForNextItem, config: SasRecConfig, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The task's measures of rows whose items it knows."""
    items = Items(config.items, config.max_position_embeddings)
    task = build_task(SequentialRecommendationSpec(), items)
    features = task.encode([row for row in rows if not items.unknown([*row["items"], row["next"]])])
    answers = []
    for begin in range(0, len(features), 64):
        part = features[begin : begin + 64]
        with torch.inference_mode():
            answers += task.decode(model(**task.collate(part)), part, {})
    return task.score(answers, features)


def say(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {score:.3f}" for name, score in scores.items())


def prepare(out: str | Path = "data", epochs: int | None = None) -> Path:
    """The base on generated interactions; `epochs`: fewer than usual."""
    rows = write_rows(out)
    training = TRAINING if epochs is None else TRAINING | {"epochs": epochs}
    about = "The interactions are generated (`pipelines/interactions.py`): nobody took these things."
    catalogue = range(FIRST, FIRST + int(WORLD["items"]))
    return pretrain(
        Path(out) / "interactions-base", rows / "source", about, training=training, catalogue=tuple(catalogue)
    )


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--out", default="data", help="folder to write to")
    prepare(options.parse_args().out)
