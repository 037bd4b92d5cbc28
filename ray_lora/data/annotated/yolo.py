"""YOLO's folders: a `data.yaml` that names the classes and the folders of pictures, and beside each folder `images/`
one `labels/` with a txt file a picture, one object a line:

    0 0.481 0.634 0.690 0.713         # class, middle x and y, width and height in shares of the upright picture's

    read_yolo(Place.of("road/data.yaml"), "train")

A picture without a txt file has no objects, as those tools have it. A txt file without a picture is a fault.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml
from pyarrow.fs import FileInfo, FileType

from ray_lora.data.annotated.pictures import ENDS, Annotated, Faults, Objects, Picture, all_seen, content_of
from ray_lora.data.places import Place
from ray_lora.errors import DataError
from ray_lora.tasks.rows import shown

_SPLITS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
_LINE = "a line is a class's number and four shares from 0 to 1: middle x, middle y, width, height"
_THREADS = 8  # for what waits for a disk or a bucket
_SLACK = 0.005  # by which rounded shares may lead out of the picture; what is beyond a pixel is seen with its row


def read_yolo(place: Place, split: str) -> Annotated:
    """The pictures of a split, by path, with their objects.

    Args:
        place: of the `data.yaml`.

    Raises:
        DataError: it names no classes or no such split, a folder is missing, or a line is wrong; the first faults are
            named.
    """
    tree = _tree(place)
    names = _names(place.name, tree)
    folders = _folders(place, tree, split)
    faults, said = Faults(place.name), hashlib.sha256(repr(names).encode())
    found: list[tuple[str, Objects]] = []
    listed: dict[str, FileInfo] = {}
    for folder in folders:
        labels = _labels(place.name, folder)
        texts = _texts(labels, faults)
        left = set(texts)
        stems: dict[str, str] = {}
        for name, info in folder.list():
            stem, _, end = name.rpartition(".")
            if f".{end.lower()}" not in ENDS or info.type != FileType.File:
                continue
            picture = folder.below(name)
            if stem in stems:
                faults.add(f"picture {picture.name}", f"{stems[stem]!r} has the same txt file; rename one of them")
                continue
            stems[stem] = name.rpartition("/")[2]
            text = texts.get(stem, "")
            said.update(f"\0{stem}\0{text}".encode())
            left.discard(stem)
            path = picture.from_folder(place.above)
            listed[path] = info
            found.append((path, _objects(labels.below(f"{stem}.txt").name, text, names, faults)))
        for stem in sorted(left - {"classes"}):
            faults.add(f"labels {labels.below(stem).name}.txt", f"no picture of this name is in {folder.name!r}")
    faults.close()
    if not found:
        raise DataError(f"{place.name}: no pictures are in {', '.join(repr(folder.name) for folder in folders)}")
    files = all_seen(place.above, [name for name, _ in found], listed)
    pictures = [Picture(name, None, objects, *file) for (name, objects), file in zip(found, files, strict=True) if file]
    return Annotated(place.name, place.above, tuple(pictures), said.hexdigest())


def _tree(place: Place) -> Mapping[str, Any]:
    try:
        tree = yaml.safe_load(content_of(place))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"data file {place.name!r} is broken: {error}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{place.name} is no YOLO's data.yaml, which has names, train and val")
    return tree


def _names(path: str, tree: Mapping[str, Any]) -> list[str]:
    """Classes in their order."""
    given = tree.get("names")
    if isinstance(given, dict) and sorted(given, key=str) == sorted(range(len(given)), key=str):
        given = [given[at] for at in range(len(given))]
    names = given if isinstance(given, list) else []
    whole = names and all(isinstance(name, str) and name.strip() for name in names)
    if not whole or len(set(names)) < len(names):
        raise DataError(
            f"{path}: names is {shown(given)}; give each class its own name, in a list or as 0: person, 1: car"
        )
    if tree.get("nc", len(names)) != len(names):
        raise DataError(f"{path}: nc is {shown(tree['nc'])} and there are {len(names)} names")
    return list(names)


def _folders(place: Place, tree: Mapping[str, Any], split: str) -> list[Place]:
    """Those of a split's pictures."""
    key = next((key for key in _SPLITS.get(split, (split,)) if key in tree), None)
    given = tree.get(key) if key is not None else None
    if given is None or key is None:
        known = [key for keys in _SPLITS.values() for key in keys if key in tree]
        raise DataError(f"{place.name} has no split {split!r}; it has {', '.join(known) or 'none'}")
    paths = given if isinstance(given, list) else [given]
    root = place.above.at(str(tree.get("path") or ""))
    found = []
    for one in paths:
        folder = root.at(str(one))
        if str(one).endswith(".txt"):
            raise DataError(f"{place.name}: {key} is {one!r}, a list of pictures, which is not read; name their folder")
        if folder.info().type != FileType.Directory:
            raise DataError(
                f"{place.name}: the folder {folder.name!r} of {key} does not exist; path is relative to this file's "
                "folder, and the splits' folders to path"
            )
        found.append(folder)
    return found


def _labels(path: str, folder: Place) -> Place:
    """The folder of the txt files: the same path with its last `images` as `labels`."""
    steps = (folder.plain if folder.local is None else folder.local.as_posix()).split("/")
    if "images" not in steps:
        raise DataError(f"{path}: pictures lie in {folder.name!r}, and no folder on this path is named 'images'")
    below = steps[::-1].index("images")
    labels = folder
    for _ in range(below + 1):
        labels = labels.above
    labels = labels.at("/".join(["labels", *steps[len(steps) - below :]]))
    if labels.info().type != FileType.Directory:
        raise DataError(f"{path}: the folder {labels.name!r} of the labels of {folder.name!r} does not exist")
    return labels


def _texts(labels: Place, faults: Faults) -> dict[str, str]:
    """What the txt files below a folder say, by their names without their end."""
    stems = [name.removesuffix(".txt") for name, info in labels.list() if name.endswith(".txt") and _is_file(info)]

    def text(stem: str) -> str | Exception:
        try:
            return content_of(labels.below(f"{stem}.txt")).decode()
        except (OSError, ValueError) as error:
            return error

    found = {}
    with ThreadPoolExecutor(_THREADS) as threads:
        for stem, content in zip(stems, threads.map(text, stems), strict=True):
            if isinstance(content, Exception):
                faults.add(f"labels {labels.below(stem).name}.txt", f"it cannot be read: {labels.why(content)}")
                content = ""
            found[stem] = content
    return found


def _is_file(info: FileInfo) -> bool:
    return bool(info.type == FileType.File)


def _objects(path: str, text: str, names: Sequence[str], faults: Faults) -> Objects:
    boxes, categories = [], []
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not (words := line.split()):
            continue
        why = f"it is line {lines[line]} once more" if line in lines else next(_wrong(words, names), None)
        if why is not None:
            faults.add(f"{path}, line {number}", why)
            continue
        lines[line] = number
        x, y, wide, high = map(float, words[1:])
        boxes.append((x - wide / 2, y - high / 2, wide, high))
        categories.append(names[int(words[0])])
    return Objects(tuple(boxes), tuple(categories), (False,) * len(boxes), shares=True)


def _wrong(words: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """What is wrong with a line, if anything is."""
    if len(words) != 5:
        more = " (outlines and keypoints are not read)" if len(words) > 5 else ""
        yield f"it has {len(words)} values{more}; {_LINE}"
        return
    try:
        x, y, wide, high = map(float, words[1:])
    except ValueError:
        yield f"{shown(' '.join(words))} is no five numbers; {_LINE}"
        return
    if not (words[0].isascii() and words[0].isdecimal() and int(words[0]) < len(names)):
        yield f"class {words[0]!r} is the number of no name; there are 0 to {len(names) - 1}"
    if not all(map(math.isfinite, (x, y, wide, high))):
        yield f"{shown(' '.join(words))} is no five finite numbers; {_LINE}"
    elif wide <= 0 or high <= 0:
        yield f"a box of {wide:g} by {high:g} has no area; leave the line out"
    elif min(x - wide / 2, y - high / 2) < -_SLACK or max(x + wide / 2, y + high / 2) > 1 + _SLACK:
        yield f"the box leads out of its picture; {_LINE}"
