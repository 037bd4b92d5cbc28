"""From a U-Net that knows plain shapes to adapters for textures and lesions, and from table lines to emoji.

    python -m pipelines.segmentation [--smoke] [--seeds N] [--json] [--keep] [key=value ...]

Two bases: a small U-Net that `pipelines.segmentation_base` pretrains on drawn scenes, and ERFNet as others trained it
for the lines of tables (`erfnet-lines`, fetched and converted once). Each adapter's score beside the base's own before,
the head alone and every weight trained shows what adaptation does. All scenes are `pipelines.segmentation_scenes`'s.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.segmentation_base import prepare
from pipelines.segmentation_scenes import LABELS
from pipelines.segmentation_scenes import prepare as draw
from pipelines.story import Asked, Line, asked, tell
from ray_lora.data.read import read

KINDS = ("textured", "lesions", "emoji")
RECIPE = Path(__file__).parents[1] / "examples/segmentation.yaml"
ERFNET = (  # what differs from the recipe
    "base.model=erfnet-lines",
    "task.image_size=[96, 96]",
    "training.learning_rate=3e-3",
    "training.max_steps=120",
)
FEW = ("training.max_steps=120",)


def main(argv: Sequence[str] | None = None) -> None:
    given = asked(__doc__, argv)
    prepare("data")
    for kind in KINDS:
        draw(kind)
    tell("segmentation", [line(given, kind) for kind in KINDS], given)


def line(given: Asked, kind: str) -> Line:
    """What is trained for a kind of scene and compared: before stands the base, with its own classifier where the
    labels are the same, else with a fresh one."""
    files = [f"data.{split}=data/scenes-{kind}/{split}.parquet" for split in ("train", "validation")]
    others = {"textured": (), "lesions": FEW, "emoji": ERFNET}[kind]
    recipe = given.recipe(RECIPE, [*files, f"task.labels={json.dumps(LABELS[kind])}", *others])
    test = f"data/scenes-{kind}/test.parquet"
    picture = base64.b64encode(read(test).to_pylist()[0]["image"]).decode()
    source = "table lines" if kind == "emoji" else "plain scenes"
    return Line(f"segmentation-{kind}", recipe, test, picture, source, full_rates=(1e-3, 3e-3))


if __name__ == "__main__":
    main()
