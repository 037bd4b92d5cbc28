"""Train one adapter on real tweets, put it into a store, ask it.

    .venv/bin/python -m pipelines.rated_texts       # once: makes data/
    .venv/bin/python examples/01_one_adapter.py

Run it again and nothing is trained twice: the same recipe goes on where it was.
"""

from pathlib import Path

from ray_lora import Adapter, LoraTrainer, Recipe, open_store, predict_ref


def main() -> None:
    recipe = Recipe.parse(
        {
            "name": "first",
            "base": {"model": "minilm"},
            "task": {"type": "text-classification", "labels": ["negative", "positive"]},
            "data": {"train": "data/tweets/train-1024.parquet", "validation": "data/tweets/validation-512.parquet"},
            "lora": {"r": 4, "lora_alpha": 16},
            "training": {"max_steps": 40, "learning_rate": 3e-3, "eval_steps": 20},
            "tracking": {"uri": None},  # examples/tweets.yaml tracks in MLflow
        }
    )
    result = LoraTrainer(recipe).fit()  # a ray.train.Result; its checkpoint is a PEFT folder
    print("accuracy", result.metrics["accuracy"], "in", result.checkpoint.path)

    entry = open_store("./store").put(Adapter.load(Path(result.checkpoint.path)), "first", aliases=["champion"])
    print("stored as", entry.ref, "with", entry.num_parameters, "parameters")

    texts = ["so happy with my new phone", "the bus is late again, worst day ever"]
    for text, answer in zip(texts, predict_ref("first@champion", texts)["predictions"], strict=True):
        print(f"{answer['label']:>8} {answer['score']:.3f}  {text}")


if __name__ == "__main__":
    main()
