"""The endpoints that ours is measured against: what Ray's and PEFT's documentation lead to, and what an expert builds.

Both take `{"inputs": text}` with the header `serve_multiplexed_model_id` and answer `{"label", "score"}`.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request

LABELS = ("negative", "positive")


class Plain:
    """`@serve.multiplexed` loads an adapter, `set_adapter` selects it, a request is a pass."""

    def __init__(self, base: str, store: str, slots: int) -> None:
        self.tokenizer, self.model = _open(base, store)
        self.store = Path(store)

    @serve.multiplexed(max_num_models_per_replica=64)
    async def get_adapter(self, name: str) -> str:
        if name not in self.model.peft_config:
            self.model.load_adapter(self.store / name, adapter_name=name)
        return name

    async def __call__(self, request: Request) -> dict[str, Any]:
        import torch

        text = (await request.json())["inputs"]
        self.model.set_adapter(await self.get_adapter(serve.get_multiplexed_model_id()))
        with torch.inference_mode():
            probabilities = self.model(**self.tokenizer(text, return_tensors="pt", truncation=True)).logits.softmax(-1)
        return _answer(probabilities[0])


class Expert:
    """All adapters resident, requests gathered into batches of up to 32 rows, one pass with `adapter_names`."""

    def __init__(self, base: str, store: str, slots: int) -> None:
        self.tokenizer, self.model = _open(base, store)
        for folder in sorted(Path(store).iterdir()):
            if folder.name not in self.model.peft_config:
                self.model.load_adapter(folder, adapter_name=folder.name)
        self.model.eval()
        self.queue: asyncio.Queue[tuple[str, str, asyncio.Future[Any]]] = asyncio.Queue()
        self.thread = ThreadPoolExecutor(1)
        self.worker: asyncio.Task[None] | None = None

    async def __call__(self, request: Request) -> dict[str, Any]:
        if self.worker is None:
            self.worker = asyncio.create_task(self.work())
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        name = request.headers["serve_multiplexed_model_id"]
        self.queue.put_nowait(((await request.json())["inputs"], name, done))
        return _answer(await done)

    async def work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            while len(batch) < 32 and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            texts, names, futures = zip(*batch, strict=True)
            rows = await loop.run_in_executor(self.thread, self.compute, list(texts), list(names))
            for future, row in zip(futures, rows, strict=True):
                if not future.done():  # else its client has gone
                    future.set_result(row)

    def compute(self, texts: list[str], names: list[str]) -> Any:
        import torch

        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
        with torch.inference_mode():
            return self.model(**inputs, adapter_names=names).logits.softmax(-1)


def _open(base: str, store: str) -> tuple[Any, Any]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    first = min(Path(store).iterdir())
    return AutoTokenizer.from_pretrained(base), PeftModel.from_pretrained(model, first, adapter_name=first.name).eval()


def _answer(probabilities: Any) -> dict[str, Any]:
    best = int(probabilities.argmax())
    return {"label": LABELS[best], "score": float(probabilities[best])}
