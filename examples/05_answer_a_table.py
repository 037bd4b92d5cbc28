"""One table, rows of several adapters: each row is answered by the adapter that it names, with Ray Data.

.venv/bin/python -m pipelines.rated_texts       # once: makes data/
.venv/bin/python examples/05_answer_a_table.py

On the command line: ray-lora predict --data rows/ --adapter-column adapter_of --output answers/ --store store-of-two
"""

from pathlib import Path

import pyarrow as pa
import ray

from ray_lora import Adapter, LoraPredictor, LoraTrainer, Recipe, open_store
from ray_lora.inference.comparing import compare

STORE = Path("store-of-two").absolute()  # actors have folders of their own
TEXTS = {"table-products": "the battery died after two weeks", "table-tweets": "so happy with my new phone"}


def main() -> None:
    shared = {"training": {"max_steps": 24, "learning_rate": 3e-3}, "tracking": {"uri": None}}
    files = {name: f"data/{name.removeprefix('table-')}/train-1024.parquet" for name in TEXTS}
    recipes = [Recipe.parse({"name": name, "data": {"train": path}, **shared}) for name, path in files.items()]
    store = open_store(str(STORE))
    for recipe, result in zip(recipes, LoraTrainer(recipes).fit(), strict=True):
        store.put(Adapter.load(Path(result.checkpoint.path)), recipe.name)

    rows = [{"adapter_of": name, "text": text} for name, text in TEXTS.items() for _ in range(8)]
    rows += [{"adapter_of": "nobody", "text": "whose row is this?"}]  # its error stops no other row
    answered = ray.data.from_arrow(pa.Table.from_pylist(rows)).map_batches(
        LoraPredictor,
        fn_constructor_kwargs={"store": str(STORE), "adapter_column": "adapter_of"},
        batch_format="pyarrow",
        batch_size=4096,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
    )
    for row in answered.take_all()[::8]:
        print(f"{row['adapter_of']:>15}: {row['prediction'] or row['error']}")

    (name, path), *_ = files.items()  # which of an adapter's versions is better on rows whose labels are known
    refs = [entry.ref for entry in store.list() if entry.name == name]
    for line in compare(refs, path.replace("train-1024", "validation-512"), str(STORE))["scores"]:
        print(line["ref"], line["metrics"]["accuracy"], "best" if line["best"] else "")


if __name__ == "__main__":
    main()
