"""From parts of one kind to parts of another: which have a defect, where few have one, on EfficientNet-Lite0.

    python -m pipelines.inspection [--solar] [--smoke] [--seeds N] [--json] [--keep] [key=value ...]

By default brushed and cast surfaces that this project generates (`pipelines.surfaces`); with `--solar` photographs of
mono- and polycrystalline solar cells, a download whose terms (CC-BY-NC-SA-4.0) are said before it. Before stands an
adapter that learnt the first kind and is asked of the second.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from pipelines.story import Asked, Line, asked, tell
from pipelines.surfaces import prepare, prepare_solar
from ray_lora.data.read import read

RECIPE = Path(__file__).parents[1] / "examples/inspection.yaml"


def main(argv: Sequence[str] | None = None) -> None:
    told = list(sys.argv[1:] if argv is None else argv)
    solar = "--solar" in told
    given = asked(__doc__, [word for word in told if word != "--solar"])
    logging.disable_progress_bar()
    if solar:
        prepare_solar("data")
        tell("inspection-solar", [line(given, "solar", "mono", "poly", "monocrystalline cells")], given)
    else:
        prepare("data")
        tell("inspection", [line(given, "surfaces", "brushed", "cast", "brushed surfaces")], given)


def line(given: Asked, kind: str, source: str, target: str, words: str) -> Line:
    """What is trained and compared: `data/KIND-SOURCE` and `data/KIND-TARGET`."""
    recipe, before = (
        given.recipe(RECIPE, [f"data.{split}=data/{kind}-{name}/{split}.parquet" for split in ("train", "validation")])
        for name in (target, source)
    )
    test = f"data/{kind}-{target}/test.parquet"
    picture = base64.b64encode(read(test).to_pylist()[0]["image"]).decode()
    return Line(
        f"inspection-{target}", recipe, test, picture, words, before, "average_precision", full_rates=(3e-4, 1e-3)
    )


if __name__ == "__main__":
    main()
