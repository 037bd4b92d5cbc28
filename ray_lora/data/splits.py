"""Which of a folder's files belong to a split, where names tell: Hugging Face's layouts of repositories and its
`save_to_disk`.

    of_split("rows", ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"], "train")

It knows names; it knows nothing of rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from pyarrow.fs import FileType

from ray_lora.data.places import Place
from ray_lora.data.split_names import canonical_split, listed, splits_in
from ray_lora.errors import DataError

_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.\w+")


def of_split(where: str, names: Sequence[str], split: str, pattern: str = "") -> list[str]:
    """Those of the paths that are a split's: all of them where no name tells.

    Args:
        where: what was given, for messages.
        names: paths below what was given.
        pattern: the glob that found them. One that itself names a split has chosen.

    Raises:
        DataError: they tell splits apart and the split is not among them, or one tells none or two.
    """
    told = [_told(where, name) for name in names]
    if not any(any(splits_in(one)) for one in told if one):
        return list(names)  # shards of things that are no splits, or names that tell nothing
    if pattern and splits_in(pattern) and len(set(told)) == 1:
        return list(names)
    if silent := [name for name, one in zip(names, told, strict=True) if not one]:
        raise DataError(
            f"{where!r} holds files of the splits {listed(told)} and others whose names tell no split, such as "
            f"{silent[0]!r}; give the {split} files themselves"
        )
    taken = [name for name, one in zip(names, told, strict=True) if one == canonical_split(split)]
    if not taken:
        raise DataError(f"{where!r} has no split {split!r}; its names tell {listed(told)}; give the files themselves")
    return taken


def saved(folder: Place, split: str) -> list[str] | None:
    """The files of a dataset that `save_to_disk` wrote, or None where a folder is none.

    Raises:
        DataError: the split is not among its splits.
    """
    at = ""
    splits = _json(folder, "dataset_dict.json").get("splits")
    if isinstance(splits, list):
        taken = [name for name in splits if canonical_split(str(name)) == canonical_split(split)]
        if len(taken) != 1:
            raise DataError(
                f"{folder.name!r} has no split {split!r}; it has {listed(map(str, splits))}; give a split's folder"
            )
        at = f"{taken[0]}/"
    state = _json(folder, f"{at}state.json")
    if not isinstance(files := state.get("_data_files"), list):
        if at:
            raise DataError(f"{folder.below(at + 'state.json').name!r} names no files; save the dataset anew")
        return None
    if not at and split == "train" and canonical_split(str(state.get("_split"))) == "test":
        raise DataError(f"{folder.name!r} holds the split {state['_split']!r}; rows of a test split do not train")
    names = [at + str(one.get("filename")) for one in files if isinstance(one, dict)]
    if not names:
        raise DataError(f"{folder.name!r} holds a dataset without rows; it needs at least one")
    return names


def _json(folder: Place, name: str) -> dict[str, object]:
    place = folder.below(name)
    if place.info().type != FileType.File:
        return {}
    try:
        with place.open() as file:
            found = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{place.name!r} is broken: {error}") from None
    return found if isinstance(found, dict) else {}


def _told(where: str, path: str) -> str:
    """The split that a path tells, or "": its outermost folder that tells one, else its own name."""
    *folders, name = path.split("/")
    for folder in folders:
        column, equals, value = folder.partition("=")
        if equals and column != "split":
            continue  # a value of a column, and no split
        if found := _one(where, path, value if equals else folder):
            return found
    if shard := _SHARD.fullmatch(name):
        return canonical_split(shard[1])
    return _one(where, path, name.rpartition(".")[0])


def _one(where: str, path: str, name: str) -> str:
    found = splits_in(name)
    if len(found) > 1:
        raise DataError(f"{where!r}: {path!r} tells the splits {listed(found)} at once; give the files themselves")
    return next(iter(found), "")
