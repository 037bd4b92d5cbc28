"""python -m tests.unit.programs FOLDER BERT: adapters of random numbers as ExecuTorch programs, a line of JSON each.

It is run by a Python that has executorch, which the tests' own has not: its packages would come along into everything.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ray_lora.export.edge.program import Bundle
from ray_lora.export.exporting import export_refs
from ray_lora.recipe import LoraSpec
from ray_lora.tasks.image_segmentation import ImageSegmentationSpec
from ray_lora.tasks.object_detection import ObjectDetectionSpec
from ray_lora.tasks.text_options import TextClassificationSpec
from tests.conftest import sentences
from tests.unit import detection, segmentation
from tests.unit.exported import put, said

TEXTS = [*sentences(6, seed=5), "Good unheard of, w7 bad!", "bad"]
PICTURES = [row["image"] for row in detection.rows(4)]


def main(folder: Path, bert: Path) -> None:
    torch.set_num_threads(1)
    boxes, masks = detection.tiny(folder / "yolox"), segmentation.tiny(folder / "unet")
    files = []
    for number, picture in enumerate(PICTURES):
        files.append(str(folder / f"{number}.png"))
        Path(files[-1]).write_bytes(picture)
    convolutions = LoraSpec(r=4, target_modules=("stem.conv.conv", "conv3.conv", "conv2.conv", "cls_convs.0.0.conv"))
    for name, base, spec, lora, spread, inputs in (
        ("texts", bert, TextClassificationSpec(labels=("no", "yes")), LoraSpec(r=4), (0.2, None), TEXTS),
        ("boxes", boxes, ObjectDetectionSpec(labels=("a", "b")), convolutions, (0.08, 2.0), files),
        (
            "masks",
            masks,
            ImageSegmentationSpec(labels=("background", "b")),
            LoraSpec(r=4, target_modules="all-convolutions", batch_norms="own"),
            (0.08, 2.0),
            files,
        ),
    ):
        store, out = folder / f"store-{name}", folder / name
        put(store, base, "one", spec, lora, 0, *spread)
        card = export_refs(["one"], out, format="executorch", store=str(store))
        found: list[Any] = Bundle(out).answer(list(inputs))
        alone = subprocess.run(
            [sys.executable, str(out / "runner.py"), inputs[0]], capture_output=True, text=True, check=True
        )
        first = json.loads(alone.stdout.splitlines()[-1])
        told = {"name": name, "card": card, "found": found, "wanted": said(store, "one", inputs), "first": first}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
