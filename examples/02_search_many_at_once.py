"""Four configurations, one base: every one is a Ray Tune trial, and all train in the same passes.

    .venv/bin/python -m pipelines.rated_texts       # once: makes data/
    .venv/bin/python examples/02_search_many_at_once.py

`param_space` and `TuneConfig` are Ray's own: any searcher, scheduler, stopper or callback of Ray Tune fits.
"""

from pathlib import Path

from ray import tune

from ray_lora import LoraTuner, Recipe


def main() -> None:
    recipe = Recipe.load(
        Path(__file__).with_name("tweets.yaml"),
        ["name=second", "training.max_steps=32", "training.eval_steps=32", "tracking.uri=null"],
    )
    tuner = LoraTuner(
        recipe,
        param_space={
            "lora.r": tune.grid_search([2, 8]),
            "training.learning_rate": tune.grid_search([1e-3, 3e-3]),
        },
        tune_config=tune.TuneConfig(metric="accuracy", mode="max"),
    )
    results = tuner.fit()  # a ray.tune.ResultGrid
    for result in sorted(results, key=lambda result: -result.metrics["accuracy"]):
        config = result.config
        print(f"{result.metrics['accuracy']:.3f}  r={config['lora.r']} rate={config['training.learning_rate']:g}")
    print("best:", results.get_best_result().config, "\nadvice:", tuner.summary.advice)


if __name__ == "__main__":
    main()
