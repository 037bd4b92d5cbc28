"""What a search is worth to speech: the tuned adapter's word errors beside the library's default one's.

    python -m benchmarks.speech_search [--seeds 3] [--languages it es]

Whisper tiny.en with a window of 6 seconds learns the recipe's telephone prompts (`examples/speech.yaml`) by a search of
ranks 8 and 32 at rates 1e-3 and 3e-3, of which rank 8 at 1e-3 is the library's default; every trial is trained to
its end. The validation rows choose, as they do for anybody; `wer` is of the test rows, which no trial has seen. Each
seed is a search of its own: its order of rows and its adapters' first weights. `worth` is the share of the default's
errors that the tuned adapter does not make. A seed that is known is not searched again; a killed call goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ray
from ray import tune

from benchmarks.machine import RESULTS, write
from pipelines import prompts
from pipelines.baselines import Data
from pipelines.scores import score_adapters
from ray_lora.adapters.adapter import Adapter
from ray_lora.recipe import Recipe
from ray_lora.search.tuner import LoraTuner

RANKS, RATES = (8, 32), (1e-3, 3e-3)
DEFAULT = ("lora.r=8", "lora.lora_alpha=16", "training.learning_rate=1e-3")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--languages", nargs="*", default=("it", "es"), choices=tuple(prompts.VOICES))
    asked = options.parse_args()
    prompts.prepare("data")
    path = RESULTS / "speech-search.json"
    known: dict[str, Any] = json.loads(path.read_text())["languages"] if path.exists() else {}
    for language in asked.languages:
        mine = known.setdefault(language, {"seeds": {}})
        for seed in range(asked.seeds):
            if str(seed) not in mine["seeds"]:
                mine["seeds"][str(seed)] = searched(language, seed)
            worth = [one["worth"] for one in mine["seeds"].values()]
            mine["worth"] = statistics.mean(worth)
            path = write("speech-search", {"what": __doc__, "languages": known})
            told = {key: value for key, value in mine["seeds"][str(seed)].items() if key != "trials"}
            print(language, seed, json.dumps(told), flush=True)
    print({language: round(mine["worth"], 3) for language, mine in known.items()}, path)


def searched(language: str, seed: int) -> dict[str, Any]:
    """One search, and the test rows' errors of its default and of its best."""
    rows = Path("data").resolve() / f"prompts-{language}"
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.load(
            Path(__file__).parents[1] / "examples/speech.yaml",
            [
                *(f"data.{split}={rows / split}.parquet" for split in ("train", "validation")),
                *DEFAULT, f"training.seed={seed}", "search.early_stopping=none", "tracking.uri=null",
                f"output_dir={folder}/runs", f"store={folder}/store",
            ],
        )  # fmt: skip
        space = {"lora.r": tune.grid_search(list(RANKS)), "training.learning_rate": tune.grid_search(list(RATES))}
        ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        tuner = LoraTuner(recipe, param_space=space)
        tuner.fit()
        ray.shutdown()
        summary, data = tuner.summary, Data(recipe, str(rows / "test.parquet"))
        chosen = {"default": summary.default, "tuned": summary.best}
        adapters = [Adapter.load(Path(trial.adapter)) for trial in chosen.values() if trial and trial.adapter]
        before, errors, _ = score_adapters(data, adapters, None, "wer", "min")
        sides: dict[str, Any] = {"before": {"wer": before}}
        for (side, trial), wer in zip(chosen.items(), errors, strict=True):
            assert trial is not None
            sides[side] = {"config": trial.config, "validation": trial.metrics["wer"], "wer": wer}
        trials = [{**trial.config, "validation": trial.metrics["wer"]} for trial in summary.trials]
    worth = 1 - sides["tuned"]["wer"] / sides["default"]["wer"]
    return {**sides, "worth": worth, "seconds": tuner.seconds, "trials": trials}


if __name__ == "__main__":
    main()
