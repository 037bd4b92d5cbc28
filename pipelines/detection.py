"""From a detector that knows captchas' glyphs to adapters that find emoji of four classes on photographs, served on it.

    python -m pipelines.detection [--smoke] [--seeds N] [--json] [--keep] [key=value ...]

The base is YOLOX-Tiny as sml2h3 trained it (PyPI's ddddocr, MIT), for pictures of 256 x 256; what it knows is one
class, the glyphs and icons of captchas. Before stands the base, whose four classes begin unsure.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from pipelines.emoji_scenes import prepare
from pipelines.story import Asked, Line, asked, tell
from ray_lora.data.read import read
from ray_lora.recipe import Json

RECIPE = Path(__file__).parents[1] / "examples/detection.yaml"
TEST = "data/detection/test.parquet"
SURE = 0.2  # of an adapter that has learnt for minutes


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    base = prepare("data")
    tell("detection", [line(given, base)], given)


def line(given: Asked, base: Path) -> Line:
    """What is trained and compared: before stands the base, whose classes are fresh."""
    recipe = given.recipe(RECIPE, [f"base.model={base}"])
    picture = base64.b64encode(read(TEST).to_pylist()[0]["image"]).decode()
    asked: dict[str, Json] = {"threshold": SURE, "top_k": 3}
    return Line("emoji-detector", recipe, TEST, picture, "captchas' glyphs", full_rates=(3e-4, 1e-3), parameters=asked)


if __name__ == "__main__":
    main()
