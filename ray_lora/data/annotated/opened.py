"""Which files hold annotations of pictures, and what they say: read once, and kept while they stay as they are.

how = How("coco", None, "train")
found = look("instances_train.json", how)          # Annotated
again("instances_train.json", how, found.stamp)    # the same, or a DataError where anything was written anew
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ray_lora.data.annotated.coco import is_coco, read_coco
from ray_lora.data.annotated.pictures import Annotated
from ray_lora.data.annotated.yolo import read_yolo
from ray_lora.data.places import Place
from ray_lora.errors import DataError

YAML = "data.yaml"  # what YOLO's tools call it
_KEPT = 4  # files' annotations in memory


@dataclass(frozen=True)
class How:
    """How a file's annotations are read.

    Attributes:
        images: the folder of COCO's pictures, as a `Place`'s address; None: where they are looked for.
        split: of a YOLO's data.yaml.
    """

    kind: Literal["coco", "yolo"]
    images: str | None
    split: str


_RECENT: dict[tuple[str, How, str], Annotated] = {}


def kind_of(place: Place) -> Literal["coco", "yolo"] | None:
    """What annotations a file holds; None for another file."""
    end = place.plain.rsplit(".", 1)[-1].lower()
    if end in ("yaml", "yml"):
        return "yolo"
    return "coco" if end == "json" and is_coco(place) else None


def look(path: str, how: How) -> Annotated:
    """What a file's annotations say now; it is given as a `Place`'s address.

    Raises:
        DataError: something of them is wrong, or a picture is missing.
    """
    place = Place.of(path)
    found = read_coco(place, how.images) if how.kind == "coco" else read_yolo(place, how.split)
    while len(_RECENT) >= _KEPT:
        _RECENT.pop(next(iter(_RECENT)))
    _RECENT[path, how, found.stamp] = found
    return found


def again(path: str, how: How, stamp: str) -> Annotated:
    """What was found before; DataError where anything of it has been written anew."""
    found = _RECENT.get((path, how, stamp)) or look(path, how)
    if found.stamp != stamp:
        raise DataError(f"data file {found.where!r} has changed since it was found; start again when nobody writes it")
    return found
