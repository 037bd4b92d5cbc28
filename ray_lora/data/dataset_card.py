"""What the README.md of a Hugging Face dataset's repository says of its files: which of them are which split's.

    patterns(Place.of("imdb"), "train")            # ["plain_text/train-*"]; None where it says nothing

It knows YAML and names; it knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml
from pyarrow.fs import FileType

from ray_lora.data.places import Place
from ray_lora.data.split_names import canonical_split, listed
from ray_lora.errors import DataError
from ray_lora.recipe import Json


def patterns(folder: Place, split: str) -> list[str] | None:
    """Globs, below a folder, of a split's files.

    Raises:
        DataError: the card names several configurations and none is the default, or the split is not among its splits.
    """
    card = folder.below("README.md")
    configs = [one for one in _configs(card) if isinstance(one, dict) and ("data_files" in one or "data_dir" in one)]
    if not configs:
        return None
    chosen = [one for one in configs if one.get("default") or one.get("config_name") == "default"] or configs
    if len(chosen) > 1:
        names = [str(one.get("config_name")) for one in configs]
        raise DataError(
            f"{folder.name!r} holds the configurations {listed(names)}; give the folder or a glob of one's files"
        )
    if "data_files" not in chosen[0]:
        return None if chosen[0]["data_dir"] in (".", "./", "") else [f"{str(chosen[0]['data_dir']).rstrip('/')}/**"]
    told = list(_told(chosen[0]["data_files"]))
    below = f"{str(chosen[0]['data_dir']).strip('/')}/" if chosen[0].get("data_dir") else ""
    taken = [below + path for name, path in told if canonical_split(name) == canonical_split(split)]
    if not taken:
        raise DataError(f"{folder.name!r} has no split {split!r}; {card.name!r} names {listed(n for n, _ in told)}")
    return taken


def _configs(card: Place) -> list[Json]:
    if card.info().type != FileType.File:
        return []
    try:
        with card.open() as file:
            text = bytes(file.read()).decode()
        begin, _, rest = text.partition("---\n")
        found = yaml.safe_load(rest.partition("\n---")[0]) if not begin.strip() else {}
    except (OSError, ValueError, yaml.YAMLError):
        return []  # a page for people
    configs = found.get("configs") if isinstance(found, dict) else None
    return configs if isinstance(configs, list) else []


def _told(files: Json) -> Iterator[tuple[str, str]]:
    """(split, pattern) of what `data_files` may be: a pattern or several, of the training rows or by split."""
    if isinstance(files, str):
        yield "train", files
    elif isinstance(files, dict):
        for split, path in files.items():
            yield from ((split, inner) for _, inner in _told(path))
    elif isinstance(files, list):
        for one in files:
            if isinstance(one, dict) and "split" in one:
                yield from ((str(one["split"]), inner) for _, inner in _told(one.get("path")))
            elif isinstance(one, str):
                yield "train", one
