"""Whether two names mean one base, and what is said where they do not. Imports no torch and loads nothing.

place("./bases/minilm/")          # "/data/bases/minilm", which is there
place("Org/Model") == place("org/model")
"""

from __future__ import annotations

import re
from pathlib import Path

from ray_lora.atomic import expanded
from ray_lora.bases.converted import CONVERTED, converted
from ray_lora.bases.packaged import PACKAGED, cached

_QUANTISED = re.compile(r"(?:bnb|gptq|awq|nf4|fp8|fp4|gguf|hqq|eetq|[48]-?bit|int-?[48])", re.IGNORECASE)


def place(model: str) -> str:
    """One spelling of a base's name: the resolved path of what lies here under it; else a hub id, whose case does not
    count; else a path without what does not count in it."""
    if model in PACKAGED or model in CONVERTED:
        held = cached(model) if model in PACKAGED else converted(model)
        return str(held.resolve()) if held is not None else model
    path = expanded(model)
    try:
        if path.exists():
            return str(path.resolve())
    except OSError:  # a name too long for a file
        return model
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        return str(path.resolve())
    return model.casefold()


def means(named: str, model: str, folder: Path | None = None) -> bool:
    """Whether an adapter that names this base means `model`, which was read from `folder` where that is known."""
    ours = {place(model)}
    if folder is not None and folder != Path():
        ours.add(str(folder.resolve()))
        if folder.is_file() and len(list(folder.parent.glob("*.gguf"))) == 1:
            ours.add(str(folder.parent.resolve()))  # transformers names a GGUF file by its folder
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            ours.add(folder.parent.parent.name.removeprefix("models--").replace("--", "/").casefold())
    return place(named) in ours


def at_revision(folder: Path, revision: str | None) -> bool:
    """Whether a base read from `folder` is a hub id's at this revision; a folder that is no hub snapshot has none."""
    if revision in (None, "main") or folder.parent.name != "snapshots":
        return True
    told = folder.parent.parent / "refs" / str(revision)
    return folder.name == revision or (told.is_file() and told.read_text().strip() == folder.name)


def not_its_base(adapter: str, named: str | None, given: str, revision: str | None = None) -> str:
    """Why an adapter is not answered on the base `given`, and what to do.

    Args:
        adapter: what it is called in the sentence: a ref, or "the adapter".
        named: the base that it names; None: it names none.
    """
    adopt = f"ray-lora adapters import FOLDER NAME --base {given}"
    if named is None:
        return f"{adapter} does not name its base, so nothing says that it is {given!r}; if it is, say so once: {adopt}"
    at = f" at revision {revision!r}" if revision else ""
    kind = ", whose name says that its weights are quantised" if _QUANTISED.search(named) else ""
    return (
        f"{adapter} was trained on base {named!r}{at}{kind}; given is {given!r}, and nothing says that these are one: "
        f"use it on its own base, or, if it is to answer on {given!r}, say so once: {adopt} --rebase"
    )
