"""A base of convolutions with a share of its channels: what adapters score on it, beside the whole and a random cut.

    python -m benchmarks.pruned [--keep 0.6 0.4] [--seeds 3]

EfficientNet-Lite0 on drawings of Twemoji, as `examples/pictures.yaml` says. The first adapter on the whole base says
which channels matter least; adapters of every seed then train on the cut base, and on one of the same shape whose
channels were drawn.

    score           accuracy on held-out pictures, all seeds trained in one pack
    untrained       of the first adapter, cut like its base and not trained again, on training rows
    ms_a_row        a picture alone, one thread, in turns with the whole base, whose own is `whole_ms`

What is known is not measured again; a killed call goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.few_resources import spread
from benchmarks.lines import KEPT, LINES, scores, trained
from benchmarks.machine import RESULTS, write
from pipelines.baselines import Data
from ray_lora.adapters.adapter import Adapter
from ray_lora.pruning import prune_ref
from ray_lora.store import open_store

LINE = LINES["pictures"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--keep", nargs="+", type=float, default=(0.6, 0.4))
    options.add_argument("--seeds", type=int, default=3)
    asked = options.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "pruned.json"
    arms: dict[str, Any] = json.loads(path.read_text())["arms"] if path.exists() else {}

    def keep(name: str, found: dict[str, Any]) -> None:
        arms[name] = found
        print(name, found, write("pruned", {"what": __doc__, "arms": arms}), flush=True)

    data, seeds = LINE.ready("float32"), range(asked.seeds)
    adapters = trained(data, KEPT / "pictures" / "float32", seeds)
    if "whole" not in arms:
        keep("whole", {"score": spread(scores(data, adapters, LINE.metric))})
    for share in asked.keep:
        for how in ("lora", "random"):
            if f"{share} {how}" not in arms:
                keep(f"{share} {how}", cut(data, adapters[0], share, how, seeds))


def cut(data: Data, adapter: Adapter, share: float, how: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Adapters of every seed on a cut base."""
    with tempfile.TemporaryDirectory() as place:
        card = adapter.card.model_copy(update={"task": data.task.spec})
        open_store(f"{place}/store").put(replace(adapter, card=card), "first")
        told = prune_ref(
            "first", Path(place) / "small", keep=share, data=str(data.recipe.data.train),
            random=0 if how == "random" else None, store=f"{place}/store",
        )  # fmt: skip
        small = Data(data.recipe.override({"base.model": f"{place}/small"}), LINE.test)
        found = scores(small, trained(small, Path(place) / "runs", seeds), LINE.metric)
    before, after = told["before"], told["after"]
    return {
        "score": spread(found),
        "untrained": after["score"],
        "share": told["share"],
        "channels": after["channels"],
        "parameters": after["parameters"],
        "whole_parameters": before["parameters"],
        "ms_a_row": after["ms_a_row"],
        "whole_ms": before["ms_a_row"],
    }


if __name__ == "__main__":
    main()
