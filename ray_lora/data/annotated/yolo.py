"""YOLO's folders: a `data.yaml` that names the classes and the folders of pictures, and beside each folder `images/`
one `labels/` with a txt file a picture, one object a line:

    0 0.481 0.634 0.690 0.713         # class, middle x and y, width and height in shares of the upright picture's

    read_yolo(Path("road/data.yaml"), "train")

A picture without a txt file has no objects, as those tools have it. A txt file without a picture is a fault.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ray_lora.data.annotated.pictures import ENDS, Annotated, Faults, Objects, Picture, all_seen
from ray_lora.errors import DataError
from ray_lora.tasks.rows import shown

_SPLITS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
_LINE = "a line is a class's number and four shares from 0 to 1: middle x, middle y, width, height"
_SLACK = 0.005  # by which rounded shares may lead out of the picture; what is beyond a pixel is seen with its row


def read_yolo(path: Path, split: str) -> Annotated:
    """The pictures of a split, by path, with their objects.

    Args:
        path: of the `data.yaml`.

    Raises:
        DataError: it names no classes or no such split, a folder is missing, or a line is wrong; the first faults are
            named.
    """
    tree = _tree(path)
    names = _names(path, tree)
    folders = _folders(path, tree, split)
    faults, said = Faults(str(path)), hashlib.sha256(repr(names).encode())
    found: list[tuple[str, Objects]] = []
    for folder in folders:
        labels = _labels(path, folder)
        left = {one.relative_to(labels).with_suffix("").as_posix() for one in labels.rglob("*.txt")}
        mine = sorted(one for one in folder.rglob("*") if one.suffix.lower() in ENDS and one.is_file())
        stems: dict[str, Path] = {}
        for picture in mine:
            stem = picture.relative_to(folder).with_suffix("").as_posix()
            if stem in stems:
                faults.add(f"picture {picture}", f"{stems[stem].name!r} has the same txt file; rename one of them")
                continue
            stems[stem] = picture
            text = _text(labels / f"{stem}.txt", faults) if stem in left else ""
            said.update(f"\0{stem}\0{text}".encode())
            left.discard(stem)
            found.append((os.path.relpath(picture, path.parent), _objects(labels / f"{stem}.txt", text, names, faults)))
        for stem in sorted(left - {"classes"}):
            faults.add(f"labels {labels / stem}.txt", f"no picture of this name is in {str(folder)!r}")
    faults.close()
    if not found:
        raise DataError(f"{path}: no pictures are in {', '.join(repr(str(folder)) for folder in folders)}")
    files = all_seen(path.parent, [name for name, _ in found])
    pictures = [Picture(name, None, objects, *file) for (name, objects), file in zip(found, files, strict=True) if file]
    return Annotated(str(path), path.parent, tuple(pictures), said.hexdigest())


def _tree(path: Path) -> Mapping[str, Any]:
    try:
        tree = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"data file {str(path)!r} is broken: {error}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path} is no YOLO's data.yaml, which has names, train and val")
    return tree


def _names(path: Path, tree: Mapping[str, Any]) -> list[str]:
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


def _folders(path: Path, tree: Mapping[str, Any], split: str) -> list[Path]:
    """Those of a split's pictures."""
    key = next((key for key in _SPLITS.get(split, (split,)) if key in tree), None)
    given = tree.get(key) if key is not None else None
    if given is None or key is None:
        known = [key for keys in _SPLITS.values() for key in keys if key in tree]
        raise DataError(f"{path} has no split {split!r}; it has {', '.join(known) or 'none'}")
    paths = given if isinstance(given, list) else [given]
    root = path.parent / str(tree.get("path") or "")
    found = []
    for one in paths:
        folder = root / str(one)
        if folder.suffix == ".txt":
            raise DataError(f"{path}: {key} is {one!r}, a list of pictures, which is not read; name their folder")
        if not folder.is_dir():
            raise DataError(
                f"{path}: the folder {str(folder)!r} of {key} does not exist; path is relative to this file's folder, "
                "and the splits' folders to path"
            )
        found.append(folder)
    return found


def _labels(path: Path, folder: Path) -> Path:
    """The folder of the txt files: the same path with its last `images` as `labels`."""
    steps = list(folder.parts)
    if "images" not in steps:
        raise DataError(f"{path}: pictures lie in {str(folder)!r}, and no folder on this path is named 'images'")
    at = len(steps) - 1 - steps[::-1].index("images")
    labels = Path(*steps[:at], "labels", *steps[at + 1 :])
    if not labels.is_dir():
        raise DataError(f"{path}: the folder {str(labels)!r} of the labels of {str(folder)!r} does not exist")
    return labels


def _text(path: Path, faults: Faults) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        faults.add(f"labels {path}", f"it cannot be read: {error}")
        return ""


def _objects(path: Path, text: str, names: Sequence[str], faults: Faults) -> Objects:
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
