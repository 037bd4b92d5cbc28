"""From ImageNet by way of Noto's emoji to Twemoji's: what a drawing shows, on EfficientNet-Lite0.

    python -m pipelines.pictures [--smoke] [--seeds N] [--json] [--keep] [key=value ...]

The base has Google's weights of ImageNet (`efficientnet-lite0`). Before stands an adapter that learnt Noto's drawings
of the same things (`pipelines.drawings`) and is asked of Twemoji's.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from pipelines.drawings import prepare
from pipelines.story import Asked, Line, asked, changed, tell
from ray_lora.data.read import read

RECIPE = Path(__file__).parents[1] / "examples/pictures.yaml"


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    logging.disable_progress_bar()
    prepare("data")
    tell("pictures", [line(given)], given)


def line(given: Asked) -> Line:
    """What is trained and compared."""
    recipe = given.recipe(RECIPE)
    source = changed(
        recipe,
        data__train="data/drawings-noto/train.parquet",
        data__validation="data/drawings-noto/validation.parquet",
    )
    test = "data/drawings-twemoji/test.parquet"
    picture = base64.b64encode(read(test).to_pylist()[0]["image"]).decode()
    return Line("pictures", recipe, test, picture, "Noto's drawings", before=source, full_rates=(3e-4, 1e-3))


if __name__ == "__main__":
    main()
