"""Three adapters with heads of different sizes answer behind one endpoint, on one base.

.venv/bin/python -m pipelines.rated_texts       # once: makes data/
.venv/bin/python examples/03_serve_mixed_batch.py
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from ray_lora import Adapter, AppArgs, LoraTrainer, Recipe, open_store
from ray_lora.serving.cluster.app import run

STORE = "./store-of-three"
TEXTS = {
    "mixed-tweets": "so happy with my new phone",
    "mixed-products": "the battery died after two weeks",
    "mixed-domains": "this camera takes sharp pictures",
}


def main() -> None:
    shared = {"training": {"max_steps": 24, "learning_rate": 3e-3}, "tracking": {"uri": None}}
    files = {name: f"data/{name.removeprefix('mixed-')}/train-1024.parquet" for name in TEXTS}
    recipes = [Recipe.parse({"name": name, "data": {"train": path}, **shared}) for name, path in files.items()]
    store = open_store(STORE)
    for recipe, result in zip(recipes, LoraTrainer(recipes).fit(), strict=True):  # the three train in one pack
        store.put(Adapter.load(Path(result.checkpoint.path)), recipe.name)

    address = run(AppArgs(store=STORE, port=0), block=False)

    def ask(name: str) -> dict:  # the endpoint puts requests that wait together into one pass
        return httpx.post(f"{address}/v1/predict", json={"model": name, "inputs": TEXTS[name]}, timeout=120).json()

    with ThreadPoolExecutor() as clients:
        for reply in clients.map(ask, TEXTS):
            print(f"{reply['model']:>15} version {reply['version']}: {reply['predictions']}")


if __name__ == "__main__":
    main()
