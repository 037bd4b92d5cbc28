"""COCO's annotations (Lin et al. 2014, arXiv 1405.0312): one json file of images, categories and boxes.

    read_coco(Place.of("annotations/instances_train2017.json"), None)

Every fault is named with its annotation's or picture's id before anything else is done. A crowd (`iscrowd`) is kept:
what it means for learning and scores, the task says. Keypoints, segmentations and whatever else there is are not read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_lora.data.annotated.pictures import Annotated, Faults, Objects, Picture, all_seen, content_of, leads_out, seen
from ray_lora.data.places import Place
from ray_lora.errors import DataError, did_you_mean
from ray_lora.recipe import Json
from ray_lora.tasks.detection.objects import objects_of
from ray_lora.tasks.rows import shown

KEYS = ("images", "annotations", "categories")
_BEGINNING = re.compile(rb'\s*\{\s*"(info|licenses|images|annotations|categories|type|videos)"\s*:')
_SNIFFED = 4096  # bytes that say whether a json file may be COCO's


def is_coco(place: Place) -> bool:
    """Whether a json file is COCO's, and not rows a line."""
    try:
        with place.open() as file:
            if _BEGINNING.match(file.read(_SNIFFED)) is None:
                return False
            file.seek(0)
            found = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return False  # several lines, or broken: the reader of rows says where
    return isinstance(found, dict) and all(key in found for key in KEYS)


def read_coco(place: Place, images: str | None) -> Annotated:
    """The pictures of a file, in its order, with their objects.

    Args:
        images: the folder of the pictures; None: where COCO's tools and exporters put it, beside the file.

    Raises:
        DataError: a part of the file is missing or wrong, or a picture is not there; the first faults are named.
    """
    try:
        content = content_of(place)
        tree = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"data file {place.name!r} is broken: {place.why(error)}") from None
    parts: list[list[dict[str, Any]]] = []
    for key in KEYS:
        part = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(part, list) or not all(isinstance(one, dict) for one in part):
            raise DataError(f"{place.name}: {key!r} is no list of objects; COCO's json has {', '.join(KEYS)}")
        parts.append(part)
    given, annotations, categories = parts
    if not given:
        raise DataError(f"{place.name} has no images; it needs at least one")
    faults = Faults(place.name)
    pictures = _images(given, faults)
    words = _words(categories, faults)
    objects = _objects(annotations, pictures, words, faults)
    faults.close()
    folder = _folder(place, images, next(iter(pictures.values())).name)
    files = all_seen(folder, [one.name for one in pictures.values()])
    found = []
    for (number, one), file in zip(pictures.items(), files, strict=True):
        if file is None:
            faults.add(f"image {number}", f"picture {folder.below(one.name).name!r} does not exist")
        else:
            found.append(Picture(one.name, one.size, objects[number], *file))
    faults.close()
    return Annotated(place.name, folder, tuple(found), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class _Image:
    name: str
    size: tuple[int, int] | None


def _images(given: Sequence[Mapping[str, Any]], faults: Faults) -> dict[Any, _Image]:
    """Pictures by their ids."""
    found: dict[Any, _Image] = {}
    names: set[str] = set()
    for at, one in enumerate(given):
        number, name = one.get("id"), one.get("file_name")
        if not _is_id(number):
            faults.add(f"images[{at}]", f"its id is {shown(number)}; give a whole number or a text")
        elif number in found:
            faults.add(f"image {number}", "two images have this id; give each its own")
        elif not isinstance(name, str) or leads_out(name):
            faults.add(f"image {number}", f"its file_name {shown(name)} is no path below the folder of pictures")
        elif name in names:
            faults.add(f"image {number}", f"picture {name!r} is there twice; its objects would be in two rows")
        else:
            size = one.get("width"), one.get("height")
            if size != (None, None) and not all(type(side) is int and side > 0 for side in size):
                faults.add(f"image {number}", f"its width and height are {shown(list(size))}; give pixels")
            names.add(name)
            found[number] = _Image(name, None if None in size else (size[0], size[1]))  # type: ignore[arg-type]
    return found


def _words(given: Sequence[Mapping[str, Any]], faults: Faults) -> dict[Any, str]:
    """Categories' names by their ids."""
    found: dict[Any, str] = {}
    for at, one in enumerate(given):
        number, name = one.get("id"), one.get("name")
        if not _is_id(number):
            faults.add(f"categories[{at}]", f"its id is {shown(number)}; give a whole number or a text")
        elif number in found:
            faults.add(f"category {number}", "two categories have this id; give each its own")
        elif not isinstance(name, str) or not name.strip():
            faults.add(f"category {number}", f"its name is {shown(name)}; give a text")
        elif name in found.values():
            faults.add(f"category {number}", f"two categories are named {name!r}; give each its own name")
        else:
            found[number] = name
    return found


def _objects(
    given: Sequence[Mapping[str, Any]], pictures: Mapping[Any, _Image], words: Mapping[Any, str], faults: Faults
) -> dict[Any, Objects]:
    """Objects by their pictures' ids."""
    found: dict[Any, list[tuple[tuple[float, ...], str, bool]]] = {number: [] for number in pictures}
    ids: set[Any] = set()
    for at, one in enumerate(given):
        number = one.get("id")
        what = f"annotations[{at}]" if number is None else f"annotation {number}"
        image, category = one.get("image_id"), one.get("category_id")
        if number is not None and (not _is_id(number) or number in ids):
            faults.add(what, "two annotations have this id; give each its own" if _is_id(number) else "its id is no id")
            continue
        ids.add(number)
        if not _is_id(image) or image not in pictures:
            faults.add(what, f"its image_id {shown(image)} is the id of no image")
        elif not _is_id(category) or category not in words:
            known = did_you_mean(str(category), map(str, words))
            faults.add(what, f"its category_id {shown(category)} is the id of no category{known}")
        else:
            try:
                crowd = _flag(one.get("iscrowd"))
                (box,), _ = objects_of({"bbox": [one.get("bbox")], "category": [category]})
            except DataError as error:
                faults.add(what, str(error))
                continue
            found[image].append((tuple(box), words[category], crowd))
    return {
        number: Objects(
            tuple(box for box, _, _ in mine), tuple(word for _, word, _ in mine), tuple(crowd for _, _, crowd in mine)
        )
        for number, mine in found.items()
    }


def _flag(value: Json) -> bool:
    if value not in (None, 0, 1):
        raise DataError(f"its iscrowd is {shown(value)}; give 0 or 1")
    return bool(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _folder(place: Place, images: str | None, first: str) -> Place:
    """The folder of the pictures."""
    if images is not None:
        return Place.of(images)
    here, around = place.above, place.above.above
    split = re.sub(r"^(instances|annotations)_", "", place.plain.rpartition("/")[2].rpartition(".")[0])
    tried = [here, here.at("images"), around.at(split), around.at(f"images/{split}"), around.at("images")]
    found = next((folder for folder in tried if seen(folder.below(first)) is not None), None)
    if found is None:
        raise DataError(
            f"{place.name}: picture {first!r} is in none of {', '.join(repr(folder.name) for folder in tried)}; name "
            "the folder of its pictures as data.images"
        )
    return found
