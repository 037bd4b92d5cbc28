"""From a ResNet that knows upright digits to adapters for rotated and inverted ones, served on it. No text anywhere.

    python -m pipelines.digits [--smoke] [--seeds N] [--json] [--keep] [key=value ...]

LoRA sits on the ResNet's convolutions. The base is pretrained by `pipelines.digits_base` on upright digits alone, so
each adapter's score beside the bare base's shows what adaptation does.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from pipelines.digits_base import prepare
from pipelines.story import Asked, Line, asked, tell
from ray_lora.data.read import read

VARIANTS = ("rotated", "inverted")
RECIPE = Path(__file__).parents[1] / "examples/digits.yaml"


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    logging.disable_progress_bar()
    prepare("data")
    tell("digits", [line(given, variant) for variant in VARIANTS], given)


def line(given: Asked, variant: str) -> Line:
    """What is trained for a variant and compared: before stands the base with its own head."""
    files = [f"data.{split}=data/digits-{variant}/{split}.parquet" for split in ("train", "validation")]
    test = f"data/digits-{variant}/test.parquet"
    picture = base64.b64encode(read(test).to_pylist()[0]["image"]).decode()
    recipe = given.recipe(RECIPE, files)
    return Line(f"digits-{variant}", recipe, test, picture, "upright digits", full_rates=(1e-3, 3e-3))


if __name__ == "__main__":
    main()
